"""Whitening of embeddings and the distance between whitened views (W-MSE).

Source: Ermolov, Siarohin, Sangineto and Sebe, "Whitening for self-supervised representation learning" (ICML 2021;
arXiv 2007.06346). Statistics are those of the rows given: a method gathers its embeddings before it calls these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.correlation import covariance
from eyespot.losses.precision import full_precision


@full_precision
def whiten(z: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Rows [N, D] with mean 0 and identity (unbiased) covariance: L^-1 (z - mean), L L^T the covariance (section 3).

    Args:
        z: [N, D] with N > D, else the covariance has no inverse.
        shrinkage: share e of the identity in (1 - e) covariance + e I, which is what L then factors. Above 0, constant
            rows give zeros and finite gradients.

    Returns:
        [N, D]; not a number where the covariance cannot be inverted.
    """
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    factor, failed = torch.linalg.cholesky_ex((1 - shrinkage) * covariance(z) + shrinkage * eye)
    factor = torch.where(failed == 0, factor, torch.nan)  # a loss that is not finite is reported by the loop
    return torch.linalg.solve_triangular(factor, (z - z.mean(dim=0)).T, upper=False).T


def whiten_blocks(z: Tensor, blocks: Sequence[Tensor], shrinkage: float = 0.0) -> Tensor:
    """Rows [N, D] whitened in blocks, the paper's sub-batches: `blocks` are int64 rows that cover 0..N-1 once."""
    parts = torch.cat([whiten(z[rows], shrinkage) for rows in blocks])
    return parts[torch.cat(list(blocks)).argsort()]


@full_precision
def w_mse(views: Sequence[Tensor]) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, the mean over rows and pairs of views (section 3), in [0, 4].

    Args:
        views: V >= 2 tensors [N, D], whitened and not normalised; gradients flow into all.
    """
    unit = [F.normalize(v, dim=1) for v in views]
    return torch.stack([2 - 2 * (a * b).sum(dim=1).mean() for a, b in combinations(unit, 2)]).mean()
