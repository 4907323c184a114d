"""Metrics of segmentation, from one confusion matrix over the whole set: pure functions of whole numbers.

Never a mean over pictures: a class that is rare in a picture would count as much there as a frequent one.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def confusion(true: Tensor, predicted: Tensor, classes: int, predictions: int | None = None) -> Tensor:
    """How many pixels of each true class (rows) were given each number (columns): int64 [classes, predictions].

    Args:
        true, predicted: int64 of one shape; pixels with a negative true class are not counted.
        predictions: numbers that may be predicted; None takes `classes`.
    """
    if true.shape != predicted.shape:
        raise ValueError(f"need equal shapes, got {tuple(true.shape)} and {tuple(predicted.shape)}")
    width = classes if predictions is None else predictions
    counted = true >= 0
    pairs = true[counted] * width + predicted[counted]
    return torch.bincount(pairs, minlength=classes * width).view(classes, width)


def intersection_over_union(counts: Tensor) -> Tensor:
    """TP / (TP + FP + FN) of each class of a confusion [C, P], P >= C: float64 [C]; not a number for a class that is
    neither in the truth nor in the prediction. Columns beyond C are predictions of no class."""
    counts = counts.double()
    hit = counts.diagonal()
    union = counts.sum(1) + counts[:, : len(counts)].sum(0) - hit
    return torch.where(union > 0, hit / union, torch.nan)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that are in the truth or in the prediction, in percent."""
    return 100 * float(intersection_over_union(counts).nanmean())


def pixel_accuracy(counts: Tensor) -> float:
    """Share of the pixels with the right class, in percent, of a confusion [C, P]."""
    return 100 * float(counts.diagonal().sum().double() / counts.sum())


def matched(counts: Tensor) -> tuple[Tensor, Tensor]:
    """One assignment of clusters to classes for the whole set: that with the most pixels right (Hungarian algorithm).

    Args:
        counts: [C, K] pixels of each class in each cluster.

    Returns:
        The confusion [C, C + 1] of the named clusters, its last column the clusters that were left over; and the class
        of each cluster int64 [K], C where it is left over.
    """
    rows, columns = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
    names = torch.full((counts.shape[1],), len(counts), dtype=torch.int64, device=counts.device)
    names[torch.from_numpy(columns).to(counts.device)] = torch.from_numpy(rows).to(counts.device)
    return renamed(counts, names), names


def renamed(counts: Tensor, names: Tensor) -> Tensor:
    """The confusion [C, C + 1] when each cluster of [C, K] is called by a class int64 [K]; C is no class."""
    return counts.new_zeros(len(counts), len(counts) + 1).index_add(1, names, counts)
