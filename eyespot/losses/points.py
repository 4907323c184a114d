"""Chamfer distances of point sets."""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


def _to_nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """b at the nearest of each a, and a at the nearest of each b, as differences."""
    with torch.no_grad():
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        to_b, to_a = distance.argmin(-1), distance.argmin(-2)
    # differences of the chosen pairs: the gradient of a distance of 0 is 0, where that of cdist is not a number
    pick_b = b.gather(-2, to_b.unsqueeze(-1).expand(*to_b.shape, b.shape[-1]))
    pick_a = a.gather(-2, to_a.unsqueeze(-1).expand(*to_a.shape, a.shape[-1]))
    return a - pick_b, b - pick_a


@full_precision
def chamfer_l2(a: Tensor, b: Tensor) -> Tensor:
    """mean_a min_b |a - b|^2 + mean_b min_a |b - a|^2 (Fan et al., CVPR 2017, with means), not halved.

    Args:
        a: [..., n, D] and b: [..., m, D], point sets.

    Returns:
        [...], one number a pair of sets.
    """
    there, back = _to_nearest(a, b)
    return there.square().sum(-1).mean(-1) + back.square().sum(-1).mean(-1)


@full_precision
def chamfer_l1(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """(mean_a min_b |a - b| + mean_b min_a |b - a|) / 2, as Point-BERT and its followers report it.

    Args:
        a, b: as in `chamfer_l2`.
        eps: added to the squared distances below the root. The root of 0 has no gradient; it is taken as 0 there.
    """
    return (_mean_length(a, b, eps)) / 2


def _mean_length(a: Tensor, b: Tensor, eps: float) -> Tensor:
    def length(difference: Tensor) -> Tensor:
        square = difference.square().sum(-1) + eps
        root = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        return torch.where(square > 0, root, torch.zeros_like(square)).mean(-1)

    there, back = _to_nearest(a, b)
    return length(there) + length(back)
