"""Predictive losses: a prediction is drawn to a target that gets no gradient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.precision import full_precision


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine of rows (Chen and He 2021, SimSiam, eq. 1), in [-1, 1].

    Args:
        prediction: [N, D], normalised here.
        target: [N, D], normalised here; no gradient flows into it.
    """
    return -F.cosine_similarity(prediction, target.detach(), dim=1).mean()


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, the mean over rows (Grill et al. 2020, BYOL, eq. 2), in [0, 4].

    Arguments as in `negative_cosine`; one direction, the method adds the other.
    """
    return 2 + 2 * negative_cosine(prediction, target)


@full_precision
def latent(prediction: Tensor, target: Tensor, distance: Literal["smooth_l1", "l2"] = "smooth_l1") -> Tensor:
    """Distance of predicted features from those of a target encoder (Assran et al. 2023, I-JEPA, eq. 1): the mean.

    Args:
        prediction: [..., D].
        target: [..., D], brought to mean 0 and variance 1 over D here (no scale, no shift); no gradient flows into it.
        distance: "smooth_l1" (beta 1) as in the authors' code, or "l2", the squared distance as in the paper.
    """
    wanted = F.layer_norm(target.detach(), target.shape[-1:])
    return F.smooth_l1_loss(prediction, wanted) if distance == "smooth_l1" else F.mse_loss(prediction, wanted)
