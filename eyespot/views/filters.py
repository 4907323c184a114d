"""Gaussian blur and solarisation of the pictures that a draw chose, in place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eyespot.views.resample import piece

MATRIX_SIDE = 48
"""Side up to which a blur is faster as a matrix an axis than as a convolution on a CPU."""


def blur_radius(sigma: float, size: int) -> int:
    """Radius of the kernel for a largest sigma: three sigma, so that 99.7 % of its mass is inside, and less than the
    picture, which is mirrored at its border. The kernel size is 2 r + 1."""
    return max(0, min(math.ceil(3 * sigma), size - 1))


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Normalised kernels [B, 2 r + 1] for sigma [B] > 0 in pixels."""
    at = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    return torch.softmax(-0.5 * (at / sigma[:, None]).square(), dim=1)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """torchvision's `gaussian_blur` with kernel size 2 r + 1 and one sigma a picture.

    Args:
        x: floating [B, C, S, S], S > r.
        sigma: [B] > 0, pixels.
        radius: r.
    """
    kernels = gaussian_kernels(sigma.to(x), radius)
    return _by_matrix(x, kernels, radius) if x.shape[-1] <= MATRIX_SIDE else _by_convolution(x, kernels, radius)


def _by_matrix(x: Tensor, kernels: Tensor, radius: int) -> Tensor:
    batch, channels, height, width = x.shape
    across = _band(kernels, radius, width)
    down = across if height == width else _band(kernels, radius, height)
    rows = torch.bmm(x.reshape(batch, channels * height, width), across.transpose(1, 2))
    return torch.matmul(down[:, None], rows.view_as(x))


def _band(kernels: Tensor, radius: int, n: int) -> Tensor:
    """[B, n, n] matrices that convolve with the kernels, the border mirrored without repeating its pixel."""
    at = torch.arange(n, device=kernels.device)[:, None] + torch.arange(-radius, radius + 1, device=kernels.device)
    at = at.abs()
    at = torch.where(at > n - 1, 2 * (n - 1) - at, at)
    band = kernels.new_zeros(len(kernels), n, n)
    return band.scatter_add_(2, at.expand(len(kernels), -1, -1), kernels[:, None].expand(-1, n, -1))


def _by_convolution(x: Tensor, kernels: Tensor, radius: int) -> Tensor:
    batch, channels, _, width = x.shape
    groups = batch * channels
    weight = kernels.repeat_interleave(channels, 0)[:, None, None]  # [B * C, 1, 1, 2 r + 1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect").view(1, groups, -1, width + 2 * radius)
    rows = F.conv2d(padded, weight, groups=groups)
    return F.conv2d(rows, weight.transpose(2, 3), groups=groups).view_as(x)


def blur_(x: Tensor, rows: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blurs the pictures `rows` (int64 [n]) of x in place, sigma [n]."""
    if radius == 0 or not len(rows):
        return x
    step = piece(4 * x[0].numel(), x.device)
    for a in range(0, len(rows), step):
        some = rows[a : a + step]
        x[some] = gaussian_blur(x[some], sigma[a : a + step], radius)
    return x


def solarize_(x: Tensor, rows: Tensor, threshold: float = 0.5) -> Tensor:
    """Inverts the values at or above the threshold of the pictures `rows` of x in place; x in [0, 1]."""
    if len(rows):
        part = x[rows]
        x[rows] = torch.where(part >= threshold, 1 - part, part)
    return x
