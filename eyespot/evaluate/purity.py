"""How pure clusters of frozen features are, version 1: what pseudo labels made of these features would be worth.

As many clusters as there are classes, by k-means on the unit features of at most 20,000 training samples (drawn by the
seed), the best of 10 starts by its own objective; no label is used. Each test sample belongs to the nearest centre.

    purity      share of the test samples that are of the most frequent class of their cluster
    accuracy    the same when each class gets one cluster of its own (Hungarian algorithm)
    nmi, ari    normalised mutual information (arithmetic mean of the entropies), adjusted Rand index

Purity is never below the share of the largest class. Pseudo labels that a run made itself before its training
(G-SimCLR) are measured beside it, in `config["pseudo_labels"]`, when the training side is the data of that run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eyespot.draws import epoch_permutation
from eyespot.evaluate.clusters import STARTS, kmeans, nearest_centre
from eyespot.metrics.clustering import matched_accuracy, mutual_information, purity, rand_index

NAME = "purity"
VERSION = 1
SAMPLES = 20_000
"""Most training samples that are clustered."""


def run(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: purity, accuracy, nmi and ari in percent, and the constants it used.

    Args:
        train, test: float32 or float64 features [n, D] and [m, D].
        train_labels, test_labels: int64 class numbers; of the training ones only how many differ is used.
        classes: not used.
        seed: of the samples that are clustered and of the starts of k-means.
        device: where test samples are compared with the centres.
    """
    rows = torch.from_numpy(epoch_permutation(seed, 0, len(train), "purity")[:SAMPLES].copy())
    clusters = min(int(train_labels.unique().numel()), len(rows))
    centres = kmeans(train[rows], clusters, seed).to(device)
    found = nearest_centre(test.to(device, centres.dtype), centres).cpu()
    return agreement(found, test_labels.cpu()), {"clusters": clusters, "samples": len(rows), "starts": STARTS}


def agreement(clusters: Tensor, labels: Tensor) -> dict[str, float]:
    """All metrics of clusters int64 [n] against labels int64 [n]."""
    return {
        "purity": purity(clusters, labels),
        "accuracy": matched_accuracy(clusters, labels),
        "nmi": mutual_information(clusters, labels),
        "ari": rand_index(clusters, labels),
    }
