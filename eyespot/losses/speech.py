"""Losses of speech, see the review of Mohamed et al. (2022; arXiv 2205.10643)."""

from __future__ import annotations

from torch import Tensor

from eyespot.losses.precision import full_precision


@full_precision
def apc(prediction: Tensor, frames: Tensor, ahead: int) -> Tensor:
    """How far each prediction is from the frame `ahead` steps later: mean over t of |x_{t+n} - y_t|, and over the bands
    (Chung et al. 2019, APC, eq. 2, which sums over the bands).

    Args:
        prediction: y, [B, T, D].
        frames: x, [B, T, D].
        ahead: n, from 0 to T - 1.
    """
    if not 0 <= ahead < frames.shape[1]:
        raise ValueError(f"{ahead} frames ahead are not within {frames.shape[1]} frames")
    return (frames[:, ahead:] - prediction[:, : frames.shape[1] - ahead]).abs().mean()
