"""Losses on the correlation and covariance of batches of embeddings.

Statistics are those of the rows given: a method gathers its embeddings before it calls these.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.precision import full_precision


def standardise(z: Tensor, eps: float = 1e-5, unbiased: bool = False) -> Tensor:
    """Each column of [N, D] with mean 0 and variance 1 over the rows: batch norm without affine.

    Args:
        eps: added to the variances.
        unbiased: whether these are divided by N - 1; then N > 1.
    """
    centred = z - z.mean(dim=0)
    variance = centred.square().mean(dim=0)
    if unbiased:
        variance = variance * (len(z) / (len(z) - 1))
    return centred / (variance + eps).sqrt()


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-5, unbiased: bool = False) -> Tensor:
    """Correlation [D, D] of the columns of `z1` with the columns of `z2`, both [N, D], over the N rows.

    Zbontar et al. 2021, eq. 2; `eps` is added to the variances, so that a constant column correlates 0 with all. With
    unbiased variances a column's correlation with itself is (N - 1) / N.
    """
    return standardise(z1, eps, unbiased).T @ standardise(z2, eps, unbiased) / len(z1)


def off_diagonal(c: Tensor) -> Tensor:
    """The D (D - 1) entries of a square matrix [D, D] that are not on its diagonal."""
    d = len(c)
    return c.flatten()[1:].view(d - 1, d + 1)[:, :-1].flatten()  # one entry later, the diagonal is the last column


def barlow(
    z1: Tensor, z2: Tensor, redundancy: float = 0.005, eps: float = 1e-5, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """The two terms of Barlow Twins (Zbontar et al. 2021, eq. 1) on embeddings [N, D]; their sum is the loss.

    Args:
        redundancy: weight of the off-diagonal terms.
        eps, unbiased: of the variances, see `cross_correlation`.

    Returns:
        invariance, sum_i (1 - C_ii)^2, and redundancy, `redundancy` times sum_i sum_{j != i} C_ij^2: two scalars.
    """
    c = cross_correlation(z1, z2, eps, unbiased)
    return (1 - c.diagonal()).square().sum(), redundancy * off_diagonal(c).square().sum()


@full_precision
def mixed_distance(
    z1: Tensor,
    z2: Tensor,
    mixed: Tensor,
    share: Tensor,
    order: Tensor,
    eps: float = 1e-5,
    unbiased: bool = False,
    target: Literal["paper", "imagenet"] = "paper",
) -> Tensor:
    """How far the correlations of mixed pictures are from the mixture of correlations (Bandara, De Melo and Patel 2023,
    Mixed Barlow Twins): ||C_MA - G_MA||^2 + ||C_MB - G_MB||^2, a scalar. Gradients pass through the targets G too.

    Args:
        z1, z2: [N, D] embeddings of the views A and B.
        mixed: [N, D] embeddings of share * A + (1 - share) * B[order].
        share: a number in [0, 1], one for the batch.
        order: int64 [N], a permutation.
        eps, unbiased: of the variances, see `cross_correlation`; each batch is standardised by its own statistics.
        target: "imagenet" repeats the authors' ImageNet script, whose G_MB begins with the correlation of B with itself
            where the paper has that of A with B.
    """
    a, b, m = (standardise(z, eps, unbiased) for z in (z1, z2, mixed))
    return mixture_distance(a, b, m, share, order, target)


def mixture_distance(
    a: Tensor, b: Tensor, m: Tensor, share: Tensor, order: Tensor, target: Literal["paper", "imagenet"] = "paper"
) -> Tensor:
    """`mixed_distance` of embeddings that are taken as they are, not standardised: 0 where they are linear."""
    n, share = len(a), share.to(a.dtype)
    shuffled = (1 - share) * b[order]
    wanted_a = (share * a + shuffled).T @ a / n
    wanted_b = (share * (a if target == "paper" else b) + shuffled).T @ b / n
    return (m.T @ a / n - wanted_a).square().sum() + (m.T @ b / n - wanted_b).square().sum()


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
