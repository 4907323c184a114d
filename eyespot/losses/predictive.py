"""Predictive losses: a prediction is drawn to a target that gets no gradient."""

from __future__ import annotations

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
