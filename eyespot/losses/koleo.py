"""Rows kept apart: the Kozachenko-Leonenko estimate of entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.precision import full_precision


@full_precision
def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Minus the mean log distance of each row from its nearest neighbour on the unit sphere (Sablayrolles et al. 2019,
    eq. 3; DINOv2, Oquab et al. 2023, section 4).

    Args:
        x: [N, D], normalised here. The nearest of all N rows is sought: give the gathered batch, so that the loss
            does not depend on the number of processes (the authors' code looks within the batch of one device).
        eps: added to every coordinate of a difference and to the distance, so that equal rows give
            -log((1 + sqrt(D)) eps).

    Returns:
        A scalar; 0 for fewer than two rows.
    """
    if len(x) < 2:
        return x.sum() * 0.0
    x = F.normalize(x, dim=1, eps=eps)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-2.0).argmax(1)
    distance = (x - x[nearest] + eps).norm(dim=1)
    return -(distance + eps).log().mean()
