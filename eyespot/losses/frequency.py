"""Pictures and their spectra: masking frequencies, and distances between spectra (MFM, Xie et al., ICLR 2023).

Spectra are shifted: the constant component of an S x S picture is at (S // 2, S // 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.errors import UserError
from eyespot.losses.precision import full_precision


@full_precision
def keep_frequencies(x: Tensor, mask: Tensor, clamp: bool = True) -> Tensor:
    """Pictures with only some of their frequencies: real part of the inverse of F(x) * mask.

    Args:
        x: [B, C, H, W] in [0, 1].
        mask: [B, 1, H, W], 1 where the frequency is kept.
        clamp: to [0, 1], as the authors' code does; it cuts off the negative half of a picture without its low
            frequencies, whose mean is 0.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) * mask.to(x.dtype)
    kept = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
    return kept.clamp(0.0, 1.0) if clamp else kept


@full_precision
def spectrum(x: Tensor, patch_factor: int = 1) -> Tensor:
    """Orthonormal shifted spectrum, complex [B * patch_factor^2, C, h, w], of pictures [B, C, H, W].

    Args:
        patch_factor: pictures are first cut into patch_factor x patch_factor sub-images, each with its own spectrum.
    """
    if patch_factor > 1:
        b, c, h, w = x.shape
        if h % patch_factor or w % patch_factor:
            raise UserError(f"patch_factor={patch_factor} does not divide pictures of {h} x {w}; choose a divisor.")
        cells = x.reshape(b, c, patch_factor, h // patch_factor, patch_factor, w // patch_factor)
        x = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(-2, -1))


@full_precision
def spectral_distance(a: Tensor, b: Tensor, gamma: float = 1.0, eps: float = 1e-12) -> Tensor:
    """|a - b|^gamma per frequency of two complex spectra, with eps under the root: real, of the same shape."""
    difference = a - b
    return (difference.real.square() + difference.imag.square() + eps).sqrt() ** gamma


@full_precision
def focal_weight(a: Tensor, b: Tensor, alpha: float = 1.0, log: bool = False) -> Tensor:
    """Weight in [0, 1] per frequency that grows with the distance of two spectra [..., h, w]; no gradient.

    |a - b|^alpha, optionally log(1 + .), divided by its largest value in each spectrum (Jiang et al., ICCV 2021).
    """
    with torch.no_grad():
        weight = (a - b).abs() ** alpha
        weight = weight.log1p() if log else weight
        largest = weight.amax((-2, -1), keepdim=True)
        return torch.where(largest > 0, weight / largest, torch.zeros_like(weight)).clamp(0.0, 1.0)
