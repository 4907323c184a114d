"""Balanced assignment to prototypes: Sinkhorn codes and the swapped prediction of SwAV."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eyespot.losses.distillation import across_views
from eyespot.losses.precision import full_precision


@full_precision
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    across: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Soft codes of samples over prototypes that share the samples out evenly (Caron et al. 2020, SwAV, eq. 3-5;
    Oquab et al. 2023, DINOv2, section 4).

    exp(scores / epsilon) is scaled, prototypes first and samples last, in the logarithm so that nothing overflows. The
    codes are balanced over the rows given: a method gathers them before, or gives `across`.

    Args:
        scores: [N, K] similarities of N samples with K prototypes; no gradient flows into them.
        epsilon: entropy; the smaller, the harder the codes.
        iterations: scalings of prototypes and samples, at least 1.
        across: adds up [K] totals over processes (`eyespot.process.all_sum`), which may hold different numbers of
            samples, also none; the samples of all are then balanced together. The scores must be cosines.

    Returns:
        [N, K]; rows sum to 1 exactly, columns to N / K after many iterations.
    """
    log_q = scores.detach() / epsilon
    if across is not None:
        log_q = log_q - 1 / epsilon  # a cosine is at most 1: the totals do not overflow
    for _ in range(iterations):
        log_q = log_q - _log_totals(log_q, across)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


def _log_totals(log_q: Tensor, across: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Logarithm of the totals [K] of the prototypes over the samples of all processes."""
    if across is None:
        return log_q.logsumexp(dim=0)
    return across(log_q.exp().sum(0)).clamp_min(torch.finfo(log_q.dtype).tiny).log()


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Each view must predict the codes of the other views of its sample (Caron et al. 2020, SwAV, eq. 2 and 6).

    Args:
        scores: [V, N, K] similarities of V views of N samples with K prototypes; the first G are those with codes.
        codes: [G, N, K] codes of G views, rows sum to 1; no gradient flows into them.
        temperature: divides the scores.

    Returns:
        The mean cross entropy over samples and over the pairs (coded view g, view v != g); log K for equal scores.
    """
    return across_views(scores, codes, temperature)
