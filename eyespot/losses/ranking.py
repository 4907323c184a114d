"""Ranking of pairs against hard negatives of the same batch (Wang and Gupta 2015; Wang, He and Gupta 2017).

Rows 2i and 2i + 1 are a pair (x, x+). Its negatives are chosen among the rows of the batch that break the margin with x
and have nothing to do with either side; then each of them is pushed away from both:

    L = 1 / (2 n P) sum over pairs and their negatives of
        max(0, m + x.x- - x.x+) + max(0, m + x+.x- - x.x+)

which is the paper's hinge of D(u, v) = 1 - u.v. The divisor is the nominal number n of negatives of P pairs, also where
fewer break the margin. Pure functions of one global batch of unit rows: a method gathers before it calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


def same_label(labels: Tensor) -> Tensor:
    """Which rows are related because they share a label: bool [N, N] for labels int64 [N]."""
    return labels[:, None] == labels[None, :]


@torch.no_grad()
@full_precision
def choose_negatives(
    features: Tensor,
    related: Tensor,
    negatives: int,
    margin: float,
    hard: float = 1.0,
    random: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """The negatives of each pair: rows int64 [P, negatives], the most similar first, -1 where there are no more.

    Candidates of a pair break the margin with its first row, x.x- > x.x+ - m, and are related to neither row. Where
    there are more than `negatives`, the most similar `negatives` of them are the pool: round(hard * negatives) are
    drawn from it and round(random * negatives) from the rest; otherwise all are taken.

    Args:
        features: [2P, D] unit rows, 2i and 2i + 1 a pair.
        related: bool [2P, 2P], which rows may not be each other's negatives; a pair's own rows never are.
        negatives: how many of each pair at most.
        margin: m, in units of cosine.
        hard, random: shares of the negatives drawn from the pool and from the rest.
        noise: [P, 2P] uniform numbers that decide the draws; none takes the most similar.
    """
    sims = features[0::2] @ features.T
    pairs, rows = sims.shape
    own = torch.arange(pairs, device=sims.device)
    positive = sims[own, 2 * own + 1]
    allowed = ~(related[0::2] | related[1::2]) & (margin + sims - positive[:, None] > 0)
    allowed[own, 2 * own] = allowed[own, 2 * own + 1] = False
    order = sims.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
    count = allowed.sum(1, keepdim=True)
    place = torch.arange(rows, device=sims.device).expand(pairs, rows)
    luck = place.float() if noise is None else noise.float()
    few, pool = count <= negatives, place < negatives
    lots = [(pool, round(hard * negatives)), (~pool, min(round(random * negatives), negatives))]
    taken = torch.zeros_like(allowed)
    for part, wanted in lots:
        among = luck.masked_fill(~(part & (place < count)), torch.inf)
        taken |= (among.argsort(dim=1, stable=True).argsort(dim=1) < wanted) & (among < torch.inf)
    taken = torch.where(few, place < count, taken)
    first = (~taken).to(torch.uint8).argsort(dim=1, stable=True)[:, :negatives]
    chosen = order.gather(1, first).masked_fill(~taken.gather(1, first), -1)
    missing = chosen.new_full((pairs, max(0, negatives - rows)), -1)
    return torch.cat([chosen, missing], 1)


@full_precision
def rank_hinge(features: Tensor, chosen: Tensor, margin: float) -> Tensor:
    """The loss of pairs against the negatives chosen for them, a scalar.

    Args:
        features: [2P, D] unit rows, 2i and 2i + 1 a pair.
        chosen: int64 [P, n] rows, -1 for none; a constant.
        margin: m, in units of cosine.

    Returns:
        0 with a zero gradient where nothing was chosen; m where all rows coincide and all negatives are there.
    """
    first, second = features[0::2], features[1::2]
    there = chosen >= 0
    other = features[chosen.clamp_min(0)]
    positive = (first * second).sum(1, keepdim=True)
    terms = [(margin + torch.einsum("pd,pnd->pn", x, other) - positive).clamp_min(0) for x in (first, second)]
    # where, not product: a row that stands for none may break the margin too
    total = torch.where(there, terms[0] + terms[1], torch.zeros_like(positive)).sum()
    return total / (2 * chosen.numel())
