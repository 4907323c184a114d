"""Metrics of pictures with captions, and of sentences, as pure functions of scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

RANKS = (1, 5, 10)


def first_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Rank of the best item that belongs to each query, from 1; M + 1 where none does: int64 [N].

    Of equal scores those that do not belong come first, so that constant vectors earn nothing.

    Args:
        scores: [N, M] of N queries and M items.
        relevant: bool [N, M], which item belongs to which query; several may.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~relevant).sum(1)


def recall(ranks: Tensor, k: int) -> float:
    """Share of queries whose rank is at most k."""
    return float((ranks <= k).double().mean())


def median_rank(ranks: Tensor) -> int:
    """The lower of the two middle ranks where their number is even."""
    return int(ranks.median())


def retrieval_metrics(to_text: Tensor, to_image: Tensor, ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """Recalls in percent and median ranks of both directions, and the sum of all recalls.

    Args:
        to_text: int64 [N], the rank that each picture gives to the first of its captions.
        to_image: int64 [M], the rank that each caption gives to its picture.
    """
    named = {"image_to_text": to_text, "text_to_image": to_image}
    found = {f"{name}_R@{k}": 100 * recall(first, k) for name, first in named.items() for k in ranks}
    medians = {f"{name}_median_rank": float(median_rank(first)) for name, first in named.items()}
    return found | {"rsum": sum(found.values())} | medians


def class_weight(features: Tensor, unit: bool = True) -> Tensor:
    """What a picture is compared with to be of a class, from the features [n, E] of the class's descriptions: [E].

    Each is brought to unit length, then their mean is (Radford et al. 2021, section 3.1.4). Features that are compared
    by their product (`unit` false) keep their length.
    """
    return F.normalize(F.normalize(features, dim=1).mean(0), dim=0) if unit else features.mean(0)


def average_ranks(x: Tensor) -> Tensor:
    """Ranks from 1 of numbers [n], float64; equal numbers share the mean of their ranks."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two lists [n] of numbers, in [-1, 1]; 0 where one of them is constant."""
    a, b = x.double() - x.double().mean(), y.double() - y.double().mean()
    norm = a.norm() * b.norm()
    return float((a * b).sum() / norm) if float(norm) > 0 else 0.0


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of the ranks of two lists [n] of numbers."""
    return pearson(average_ranks(x), average_ranks(y))
