"""Losses on the cross-correlation of two batches of embeddings.

Statistics are those of the rows given: a method gathers its embeddings before it calls these.
"""

from __future__ import annotations

from torch import Tensor

from eyespot.losses.precision import full_precision


def standardise(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Each column of [N, D] with mean 0 and (biased) variance 1 over the rows: batch norm without affine."""
    centred = z - z.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + eps).sqrt()


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-5) -> Tensor:
    """Correlation [D, D] of the columns of `z1` with the columns of `z2`, both [N, D], over the N rows.

    Zbontar et al. 2021, eq. 2; `eps` is added to the variances, so that a constant column correlates 0 with all.
    """
    return standardise(z1, eps).T @ standardise(z2, eps) / len(z1)


def off_diagonal(c: Tensor) -> Tensor:
    """The D (D - 1) entries of a square matrix [D, D] that are not on its diagonal."""
    d = len(c)
    return c.flatten()[1:].view(d - 1, d + 1)[:, :-1].flatten()  # one entry later, the diagonal is the last column


def barlow(z1: Tensor, z2: Tensor, redundancy: float = 0.005) -> tuple[Tensor, Tensor]:
    """The two terms of Barlow Twins (Zbontar et al. 2021, eq. 1) on embeddings [N, D]; their sum is the loss.

    Returns:
        invariance, sum_i (1 - C_ii)^2, and redundancy, `redundancy` times sum_i sum_{j != i} C_ij^2: two scalars.
    """
    c = cross_correlation(z1, z2)
    return (1 - c.diagonal()).square().sum(), redundancy * off_diagonal(c).square().sum()
