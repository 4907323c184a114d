"""How well clusters agree with classes: pure functions of two lists of whole numbers, in percent.

Purity grows with the number of clusters and is 100 when every sample is its own; normalised mutual information and the
adjusted Rand index do not reward that so much, the latter not at all.
"""

from __future__ import annotations

import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from eyespot.metrics.segmentation import matched


def contingency(clusters: Tensor, labels: Tensor) -> Tensor:
    """How many samples of each class (rows) lie in each cluster (columns), int64 [C, K]."""
    if clusters.shape != labels.shape or clusters.dim() != 1 or not len(labels):
        raise ValueError(f"need two lists of one length, got {tuple(clusters.shape)} and {tuple(labels.shape)}")
    (classes, y), (found, x) = (torch.unique(v, return_inverse=True) for v in (labels, clusters))
    return torch.bincount(y * len(found) + x, minlength=len(classes) * len(found)).view(len(classes), len(found))


def purity(clusters: Tensor, labels: Tensor) -> float:
    """Share of the samples that are of the most frequent class of their cluster."""
    return 100 * float(contingency(clusters, labels).amax(0).sum()) / len(labels)


def matched_accuracy(clusters: Tensor, labels: Tensor) -> float:
    """Share of the samples in the right cluster, when each class gets one cluster of its own (Hungarian algorithm)."""
    return 100 * float(matched(contingency(clusters, labels))[0].diagonal().sum()) / len(labels)


def mutual_information(clusters: Tensor, labels: Tensor) -> float:
    """Normalised mutual information, by the arithmetic mean of the two entropies."""
    return 100 * float(normalized_mutual_info_score(labels.cpu().numpy(), clusters.cpu().numpy()))


def rand_index(clusters: Tensor, labels: Tensor) -> float:
    """Adjusted Rand index: 0 for clusters by chance, negative below."""
    return 100 * float(adjusted_rand_score(labels.cpu().numpy(), clusters.cpu().numpy()))
