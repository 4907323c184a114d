"""Ranking metrics of retrieval as pure functions of scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """How well the relevant items of each of Q queries are ranked.

    Attributes:
        first: int64 [Q], rank of the best relevant item, from 1; n + 1 where a query has none.
        precision: float64 [Q], average precision in [0, 1]; not a number where a query has no relevant item.
    """

    first: Tensor
    precision: Tensor


def ranking(scores: Tensor, relevant: Tensor, ignored: Tensor | None = None) -> Ranking:
    """Rank n items for each of Q queries by score, largest first.

    Average precision is the mean, over the relevant items, of the share of relevant items among those up to it, without
    interpolation. Of equal scores the irrelevant items come first, so that constant features earn nothing.

    Args:
        scores: [Q, n] of any floating type.
        relevant: bool [Q, n].
        ignored: bool [Q, n], items taken out of a query's list (in re-identification: the same person by the same
            camera).
    """
    if scores.dim() != 2 or relevant.shape != scores.shape:
        raise ValueError(f"need scores and relevant [Q, n], got {tuple(scores.shape)} and {tuple(relevant.shape)}")
    if ignored is not None:
        scores, relevant = scores.masked_fill(ignored, -torch.inf), relevant & ~ignored
    values, order = scores.sort(dim=1, descending=True)
    hit = relevant.gather(1, order)
    miss = ~hit if ignored is None else ~hit & ~ignored.gather(1, order)
    before = miss.cumsum(1).gather(1, _last_equal(values))  # irrelevant items that score as much or more
    found = hit.cumsum(1)
    share = found.double() / (found + before)
    total = hit.sum(1)
    precision = torch.where(hit, share, 0.0).sum(1) / total
    first = torch.where(hit, found + before, scores.shape[1] + 1).amin(1)
    return Ranking(first, precision)


def _last_equal(values: Tensor) -> Tensor:
    """For each place of sorted rows [Q, n] the last place that holds the same value, int64 [Q, n]."""
    n = values.shape[1]
    place = torch.arange(n, device=values.device).expand_as(values)
    ends = torch.cat([values[:, 1:] != values[:, :-1], torch.ones_like(values[:, :1], dtype=torch.bool)], 1)
    return torch.where(ends, place, n).flip(1).cummin(1).values.flip(1)
