"""Balanced assignment to prototypes: Sinkhorn codes and the swapped prediction of SwAV.

Codes are balanced over the rows given: a method gathers its scores before it calls `sinkhorn`.
"""

from __future__ import annotations

from torch import Tensor

from eyespot.losses.distillation import other_views
from eyespot.losses.precision import full_precision


@full_precision
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes of samples over prototypes that share the samples out evenly (Caron et al. 2020, SwAV, eq. 3-5).

    exp(scores / epsilon) is scaled, prototypes first and samples last, in the logarithm so that nothing overflows.

    Args:
        scores: [N, K] similarities of N samples with K prototypes; no gradient flows into them.
        epsilon: entropy; the smaller, the harder the codes.
        iterations: scalings of prototypes and samples, at least 1.

    Returns:
        [N, K]; rows sum to 1 exactly, columns to N / K after many iterations.
    """
    log_q = scores.detach() / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


@full_precision
def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Each view must predict the codes of the other views of its sample (Caron et al. 2020, SwAV, eq. 2 and 6).

    Args:
        scores: [V, N, K] similarities of V views of N samples with K prototypes; the first G are those with codes.
        codes: [G, N, K] codes of G views, rows sum to 1; no gradient flows into them.
        temperature: divides the scores.

    Returns:
        The mean cross entropy over samples and over the pairs (coded view g, view v != g); log K for equal scores.
    """
    return other_views(codes.detach(), (scores / temperature).log_softmax(dim=-1))
