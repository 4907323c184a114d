"""How a set of features fills its space: pure functions, on any device, in the precision of their input.

A representation collapses in two ways: completely, when all features are equal (spread 0, mean cosine 1, effective
rank 1), or in dimension, when they fill only a few directions (low effective rank).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _matrix(features: Tensor, least: int = 1) -> Tensor:
    if features.dim() != 2 or features.shape[0] < least:
        raise ValueError(f"features must be [n, D] with n >= {least}, got {tuple(features.shape)}")
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def effective_rank(features: Tensor) -> Tensor:
    """RankMe, the smooth rank of [n, D] features: between 1 and min(n, D), a scalar.

    exp(-sum_k p_k log p_k) with p_k = sigma_k / sum_j sigma_j over the singular values of the features as they are,
    not centred (Garrido, Balestriero, Najman, LeCun; ICML 2023; arXiv 2210.02885, eq. 1-2, without its epsilon).
    All-zero features have rank 1.
    """
    sigma = torch.linalg.svdvals(_matrix(features))
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.exp(-torch.special.xlogy(p, p).sum())


def spread(features: Tensor) -> Tensor:
    """Standard deviation of the unit features, mean over dimensions, times sqrt(D): a scalar in [0, 1].

    1 when directions are spread evenly over the sphere, 0 when all features point the same way (the diagnostic of
    Chen and He, SimSiam, CVPR 2021, arXiv 2011.10566, section 4.1, scaled so that it does not depend on D).
    """
    unit = F.normalize(_matrix(features), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine over all pairs of two different rows of [n, D], n >= 2: a scalar in [-1, 1]; 1 when constant."""
    unit = F.normalize(_matrix(features, 2), dim=1)
    n = unit.shape[0]
    # |sum u|^2 holds every ordered pair and the n squares
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))


def alignment(first: Tensor, second: Tensor, power: float = 2.0) -> Tensor:
    """Mean distance of positive pairs, E |u1 - u2|^power over rows of two [n, D], as unit features; 0 is best.

    Wang and Isola, ICML 2020, arXiv 2005.10242, section 4.1.
    """
    u, v = F.normalize(_matrix(first), dim=1), F.normalize(_matrix(second), dim=1)
    return (u - v).norm(dim=1).pow(power).mean()


def uniformity(features: Tensor, t: float = 2.0, chunk: int = 1024) -> Tensor:
    """log E exp(-t |u_i - u_j|^2) over pairs of different rows of [n, D], as unit features; lower is more even.

    Wang and Isola, ICML 2020, arXiv 2005.10242, section 4.1. Memory is chunk x n.
    """
    unit = F.normalize(_matrix(features, 2), dim=1)
    n = unit.shape[0]
    sums = []
    for start in range(0, n, chunk):
        block = unit[start : start + chunk]
        distance = (2 - 2 * block @ unit.T).clamp_min(0)
        own = torch.arange(len(block), device=unit.device)
        distance = distance.index_put((own, own + start), distance.new_tensor(math.inf))
        sums.append(torch.logsumexp((-t * distance).flatten(), 0))
    return torch.logsumexp(torch.stack(sums), 0) - math.log(n * (n - 1))
