"""Balanced assignment of samples to prototypes (Sinkhorn-Knopp)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


def _alone(x: Tensor) -> Tensor:
    return x


@full_precision
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, across: Callable[[Tensor], Tensor] = _alone
) -> Tensor:
    """Codes that use all prototypes equally (Cuturi 2013; Caron et al. 2020, SwAV, eq. 3; DINOv2, section 4).

    exp(scores / epsilon) is scaled in turns so that each prototype has the same total over all samples, then so that
    each sample's codes sum to 1.

    Args:
        scores: [N, P], cosines of samples and prototypes; no gradient flows into them.
        epsilon: the lower, the harder the codes.
        across: adds up [P] totals over processes, which may hold different numbers of samples, also none
            (`eyespot.process.all_sum`); the samples of all processes are then balanced together.

    Returns:
        [N, P], rows sum to 1.
    """
    codes = ((scores.detach() - 1.0) / epsilon).exp()  # a cosine is at most 1: nothing overflows
    least = torch.finfo(codes.dtype).tiny
    for _ in range(iterations):
        codes = codes / across(codes.sum(0)).clamp_min(least)
        codes = codes / codes.sum(1, keepdim=True).clamp_min(least)
    return codes
