"""Masked image modelling: patches, their normalised targets, the losses of MAE and SimMIM."""

from __future__ import annotations

from torch import Tensor

from eyespot.errors import UserError
from eyespot.losses.precision import full_precision


def patchify(x: Tensor, patch: int) -> Tensor:
    """Pictures [B, C, H, W] -> patches [B, L, patch * patch * C], row-major; within one: row, column, channel."""
    b, c, h, w = x.shape
    if h % patch or w % patch:
        raise UserError(f"Pictures of {h} x {w} are not a multiple of the patch, {patch} pixels; choose another size.")
    cells = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: Tensor, patch: int, shape: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for shape = (rows, columns) of patches."""
    h, w = shape
    cells = patches.reshape(len(patches), h, w, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * patch, w * patch)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch [..., n] with mean 0 and variance 1: (t - mean) / sqrt(var + eps), unbiased variance (n - 1)."""
    mean = patches.mean(-1, keepdim=True)
    return (patches - mean) / (patches.var(-1, keepdim=True) + eps).sqrt()


@full_precision
def mae_loss(prediction: Tensor, target: Tensor, mask: Tensor, norm_pix: bool = True) -> Tensor:
    """Mean squared error over the removed patches (He et al., CVPR 2022, section 3).

    Args:
        prediction: [B, L, n].
        target: patches [B, L, n] from `patchify`.
        mask: [B, L], 1 where the patch was removed.
        norm_pix: whether the target is normalised patch by patch.
    """
    target = normalise_patches(target) if norm_pix else target
    error = (prediction - target).square().mean(-1)
    mask = mask.to(error.dtype)
    return (error * mask).sum() / mask.sum().clamp_min(1.0)


@full_precision
def simmim_loss(reconstruction: Tensor, target: Tensor, mask: Tensor, patch: int, eps: float = 1e-5) -> Tensor:
    """Mean absolute error over hidden pixels (Xie et al., CVPR 2022): sum |x - x_hat| m / (sum m + eps) / C.

    Args:
        reconstruction, target: [B, C, H, W], the target standardised by the backbone's statistics.
        mask: [B, H / patch, W / patch], 1 where hidden.
        eps: keeps the loss of a mask that hides nothing at 0. With 0 the mean over equal parts of a batch is the
            loss of the batch.
    """
    pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1).to(target.dtype)
    error = (reconstruction - target).abs() * pixels
    return error.sum() / (pixels.sum() + eps) / target.shape[1]
