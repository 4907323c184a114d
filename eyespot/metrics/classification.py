"""Accuracies as pure functions of class scores."""

from __future__ import annotations

import torch
from torch import Tensor


def true_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one, int64 [n], for scores [n, C] and labels [n].

    Equal scores are ordered by the class number, so ranks are deterministic. A true score that is not a number
    comes last.
    """
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"need scores [n, C] and labels [n], got {tuple(scores.shape)} and {tuple(labels.shape)}")
    true = scores.gather(1, labels[:, None])
    column = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true) | ((scores == true) & (column < labels[:, None]))
    return torch.where(true[:, 0].isnan(), scores.shape[1], before.sum(1))


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of the n samples whose true class is among the k best scores; scores [n, C], labels int64 [n]."""
    if len(labels) == 0:
        raise ValueError("the accuracy of no samples is not defined")
    return 100.0 * int((true_ranks(scores, labels) < k).sum()) / len(labels)


def recalls(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Recall in percent, weighted by how frequent the classes are (the accuracy), and the plain mean over the classes
    that occur: what emotion recognition calls WAR and UAR. Scores [n, C], labels int64 [n]."""
    if len(labels) == 0:
        raise ValueError("the recall of no samples is not defined")
    right = true_ranks(scores, labels) == 0
    each = [float(right[labels == c].double().mean()) for c in labels.unique().tolist()]
    return 100.0 * float(right.double().mean()), 100.0 * sum(each) / len(each)
