"""Losses on the correlation and covariance of batches of embeddings.

Statistics are those of the rows given: a method gathers its embeddings before it calls these.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

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


def covariance(z: Tensor) -> Tensor:
    """Unbiased covariance [D, D] of the columns of [N, D], N > 1, over the rows."""
    centred = z - z.mean(dim=0)
    return centred.T @ centred / (len(z) - 1)


@full_precision
def vicreg(z1: Tensor, z2: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of VICReg (Bardes, Ponce and LeCun 2022) on embeddings [N, D], N > 1, not yet weighted.

    Args:
        eps: added to the variances under the root.

    Returns:
        Three scalars. Invariance, the mean squared difference over all N D entries (eq. 5 as the authors' code has it,
        which also divides by D). Variance, the sum over the two views of the mean over columns of
        max(0, 1 - sqrt(var + eps)) (eq. 1; the code takes half of this sum). Covariance, the sum over the two views of
        sum_{i != j} C_ij^2 / D (eq. 3 and 4). Variances and covariances are unbiased.
    """
    c1, c2 = covariance(z1), covariance(z2)
    variance = [F.relu(1 - (c.diagonal() + eps).sqrt()).mean() for c in (c1, c2)]
    repeats = [off_diagonal(c).square().sum() / len(c) for c in (c1, c2)]
    return F.mse_loss(z1, z2), variance[0] + variance[1], repeats[0] + repeats[1]
