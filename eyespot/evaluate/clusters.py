"""Clusters of unit features by scikit-learn's k-means, the one that all protocols use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STARTS = 10
"""Starts, of which the one with the best objective is kept."""


def kmeans(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Centres [clusters, D] of the unit features of [n, D], by k-means++ and Lloyd's steps."""
    from sklearn.cluster import KMeans

    unit = F.normalize(features.cpu(), dim=1)
    starts: Any = STARTS
    means: Any = KMeans(n_clusters=clusters, n_init=starts, random_state=seed)
    return torch.from_numpy(means.fit(unit.numpy()).cluster_centers_).to(features.dtype)


def nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """The centre [K, D] that is nearest to each unit feature of [n, D]: int64 [n]."""
    return (F.normalize(features, dim=1) @ centres.T - centres.square().sum(1) / 2).argmax(1)
