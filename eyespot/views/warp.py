"""Strong changes of pose: turns and changes of perspective about the middle of a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.views.resample import piece


def homographies(draws: Draws, rotation: float, perspective: float) -> Tensor:
    """Drawn maps of the plane, float32 [B, 3, 3], about the middle of a picture with sides from -1 to 1.

    Args:
        rotation: largest angle in degrees, to both sides.
        perspective: largest share by which one border is farther away than the middle, below 1.
    """
    angle = torch.deg2rad(draws.uniform("angle", low=-rotation, high=rotation))
    tilt = draws.uniform("tilt", 2, -perspective, perspective) / 2
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [(cos, -sin, zero), (sin, cos, zero), (tilt[:, 0], tilt[:, 1], one)]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def warp(pixels: Tensor, maps: Tensor) -> Tensor:
    """Pictures seen through maps of the plane, bilinear; what comes from outside is mirrored at the border.

    Args:
        pixels: [B, C, H, W] floating.
        maps: [B, 3, 3], from the new picture's plane to the old one's; both have sides from -1 to 1.
    """
    side = [
        torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=pixels.device, dtype=pixels.dtype) for n in pixels.shape[2:]
    ]
    y, x = torch.meshgrid(*side, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1)
    out = torch.empty_like(pixels)
    step = piece(2 * pixels[0].numel(), pixels.device)
    for a in range(0, len(pixels), step):
        rows = slice(a, a + step)
        moved = torch.einsum("bij,hwj->bhwi", maps[rows].to(pixels), points)
        grid = moved[..., :2] / moved[..., 2:]
        out[rows] = F.grid_sample(pixels[rows], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return out
