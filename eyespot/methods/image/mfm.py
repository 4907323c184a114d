"""MFM: masked frequency modeling for self-supervised visual pre-training (Xie, Li, Zhan, Liu, Ong, Loy; ICLR 2023;
arXiv 2206.07706).

A disc of low frequencies, or everything outside it, is cut out of the spectrum of a picture. Any encoder, transformer
or convolutional, sees what is left; one 1x1 convolution and a pixel shuffle predict the picture, and only the
frequencies that were removed count:

    L = sum_{n,c,u,v} |F(x_rec) - F(x)|^gamma (1 - m) / (C sum_{n,u,v} (1 - m))        m = 1: kept

The three other corruptions of the paper (super-resolution, deblurring, denoising) are `task`; their loss counts all
frequencies.

Paper and code: three details follow the authors' code. What is left is clamped to [0, 1] before the encoder sees it,
which cuts off the negative half of a picture without its low frequencies; the corruption works on plain pixels while
the loss compares standardised ones; and the mean runs over all removed frequencies of the (global) batch at once, so
pictures that lost many weigh more. One does not: batch norms take their running statistics from clean pictures (a pass
without gradient every eighth step), because frozen features are read from clean ones; the paper fine-tunes, where that
is no matter. The disc keeps the paper's share of the picture, but at least 4 bins: at 32 px the share alone leaves 2.3.

    >>> method = MFM(backbone("resnet8", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'frequency': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.frequency import focal_weight, keep_frequencies, spectral_distance, spectrum
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import CROP, POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.decoders import MapDecoder
from eyespot.nets.norms import frozen_statistics, has_batch_norm
from eyespot.nets.vit import ViTBackbone
from eyespot.process import all_mean, global_mean
from eyespot.views.image import ViewSpec, view
from eyespot.views.masks import frequency_mask

CLEAN_EVERY = 8
"""Steps from one pass of clean pictures for the statistics of batch norms to the next."""


@dataclass(frozen=True)
class MFMConfig(MethodConfig):
    task: Literal["mfm", "sr", "deblur", "denoise"] = "mfm"
    """What is done to the picture: frequencies removed, resolution lowered, blurred, or noise added."""
    radius: float | None = None
    """Radius of the disc in frequency bins; None: 16 at 224 px (the paper's), in proportion elsewhere, at least 4."""
    outer_radius: float = 999.0
    """The low-pass mask also keeps what lies this far out; 999 keeps nothing there."""
    low_pass: float | None = None
    """Probability that the disc is kept rather than removed; None: 0.5 for transformers, 0.3 for convolutional nets."""
    gamma: float = 1.0
    """Power of the distance between spectra."""
    count: Literal["auto", "removed", "all"] = "auto"
    """Which frequencies the loss counts; auto: those removed for "mfm", all for the other tasks."""
    focal: bool = False
    """Whether frequencies that are predicted badly weigh more."""
    focal_alpha: float = 1.0
    """Power of the focal weight."""
    focal_log: bool = False
    """Whether the focal weight is taken in logarithm."""
    patch_factor: int = 1
    """Spectra of patch_factor x patch_factor sub-images instead of the whole; only where all frequencies count."""
    average_spectrum: bool = False
    """Whether spectra are averaged over the batch before they are compared; only where all frequencies count."""
    sr_factor: int | None = None
    """Task "sr": how many times smaller the picture gets; None: 8 (the paper's) from 128 px on, else 4."""
    blur_sigma: float = 5.0
    """Task "deblur": sigma in pixels."""
    blur_kernel: tuple[int, int] = (7, 21)
    """Task "deblur": smallest and largest side of the kernel, drawn among the odd numbers between."""
    noise_sigma: float = 75.0
    """Task "denoise": sigma of the noise for pixels in 0..255."""
    decoder_depth: int = 0
    """Transformer blocks in the decoder; 0 is the paper's single convolution."""
    decoder_dim: int = 512
    """Width of those blocks."""
    decoder_heads: int = 16
    """Their attention heads."""
    crop_min: float = 0.2
    """Least share of the picture's area that a crop keeps."""
    flip: float = 0.5
    """Probability of mirroring left to right."""


class MFM(Method):
    needs = "image"
    Config = MFMConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=1.2e-3,
        lr_rule="none",
        weight_decay=0.05,
        betas=(0.9, 0.95),
        batch_size=256,
        epochs=100,
        warmup_epochs=7.0,
        min_lr=0.002,
        clip=3.0,
        backbone="resnet18",
        image_size=224,
        expected="ImageNet-1k, ViT-B, 300 epochs, fine-tuned: 83.1; sr 82.4, deblur 81.7, denoise 82.7 (paper).",
    )

    def __init__(self, backbone: Backbone, config: MFMConfig = MFMConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = self.config
        check_ranges(c, radius=(0.0, None), low_pass=SHARE, gamma=POSITIVE, focal_alpha=POSITIVE, patch_factor=WIDTH)
        check_ranges(c, sr_factor=WIDTH, blur_sigma=POSITIVE, noise_sigma=(0.0, None), crop_min=CROP, flip=SHARE)
        self.counts_all = c.count == "all" or (c.count == "auto" and c.task != "mfm")
        self._check(backbone)
        is_vit = isinstance(backbone, ViTBackbone)
        if isinstance(backbone, ViTBackbone):
            backbone.set_pooling("avg")  # the loss sees patch tokens only, and the paper fine-tunes their mean
        self.low_pass = c.low_pass if c.low_pass is not None else (0.5 if is_vit else 0.3)
        self.decoder = MapDecoder(
            backbone.embed_dim, backbone.stride, backbone.channels, c.decoder_dim, c.decoder_depth, c.decoder_heads
        )

    def _check(self, backbone: Backbone) -> None:
        c = self.config
        if not backbone.stride:
            raise UserError(f"MFM needs a feature map, which '{backbone.name}' does not give; take another backbone.")
        if not self.counts_all and (c.patch_factor > 1 or c.average_spectrum):
            raise UserError(
                "patch_factor and average_spectrum compare spectra in which no frequency is marked as removed; set "
                "count to all."
            )
        if not self.counts_all and c.task != "mfm":
            raise UserError(f"count=removed has no meaning for task={c.task}, which removes no frequency; use all.")
        if not 1 <= c.blur_kernel[0] <= c.blur_kernel[1]:
            raise UserError(f"blur_kernel={c.blur_kernel} is out of range; give two increasing sides of at least 1.")

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        crop = (c.crop_min, 1.0)
        spec = ViewSpec(c.image_size, crop, flip=c.flip, jitter=None, grey_p=0.0, interpolation="bicubic")
        return {"image": view(batch["image"], draws, spec).pixels}

    def corrupt(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """What the encoder sees of pictures [B, C, S, S]; for task "mfm" also the mask [B, 1, S, S], 1 where kept."""
        c, size = self.config, min(x.shape[2:])
        if c.task == "mfm":
            radius = c.radius if c.radius is not None else max(4.0, size / 14)
            low = draws.coin("low_pass", self.low_pass)
            mask = frequency_mask((x.shape[2], x.shape[3]), radius, c.outer_radius, low)
            return keep_frequencies(x, mask), mask
        if c.task == "sr":
            return lower_resolution(x, c.sr_factor or (8 if size >= 128 else 4)), None
        if c.task == "deblur":
            low, high = c.blur_kernel[0] // 2, c.blur_kernel[1] // 2
            return blur(x, low + draws.integers("kernel", high - low + 1), high, c.blur_sigma), None
        noise = draws.noise("noise", *x.shape[1:], normal=True).to(x.dtype)
        return (x + noise * (c.noise_sigma / 255)).clamp(0, 1), None

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x = views["image"]
        draws = ensure(draws, len(x), x.device)
        seen, mask = self.corrupt(x, draws)
        rebuilt = self.decoder(self._encode(seen, x, draws))
        if rebuilt.shape != x.shape:  # sizes that the stride does not divide
            rebuilt = F.interpolate(rebuilt, size=x.shape[2:], mode="bilinear")
        target = self.backbone.normalize(x)
        with torch.no_grad():  # what predicting the input itself would cost
            self.watch["identity"] = self._loss(self.backbone.normalize(seen), target, mask)
        return {"frequency": self._loss(rebuilt, target, mask)}

    def _encode(self, seen: Tensor, x: Tensor, draws: Draws) -> Tensor:
        """Map of the corrupted pictures; running statistics of batch norms come from the clean ones, now and then."""
        if not (self.training and has_batch_norm(self.backbone)):
            return self.backbone.forward_dense(seen)
        if draws.step % CLEAN_EVERY == 0:
            with torch.no_grad():
                self.backbone.forward_dense(x)
        with frozen_statistics(self.backbone):
            return self.backbone.forward_dense(seen)

    def _loss(self, rebuilt: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Mean distance of the spectra of two standardised batches [B, C, S, S] over the frequencies that count."""
        c = self.config
        a, b = spectrum(rebuilt, c.patch_factor), spectrum(target, c.patch_factor)
        if c.average_spectrum:
            a, b = all_mean(a.mean(0, keepdim=True)), all_mean(b.mean(0, keepdim=True))
        distance = spectral_distance(a, b, c.gamma)
        if c.focal:
            distance = distance * focal_weight(a, b, c.focal_alpha, c.focal_log)
        removed = None if self.counts_all or mask is None else (mask == 0).expand_as(distance)
        return global_mean(distance, removed)


def lower_resolution(x: Tensor, factor: int) -> Tensor:
    """Bicubic down by `factor` (antialiased) and up again, in [0, 1]."""
    small = [max(1, round(side / factor)) for side in x.shape[2:]]
    down = F.interpolate(x, size=small, mode="bicubic", antialias=True)
    return F.interpolate(down, size=x.shape[2:], mode="bicubic").clamp(0, 1)


def blur(x: Tensor, radius: Tensor, most: int, sigma: float) -> Tensor:
    """Isotropic Gaussian of side 2 radius + 1, one radius a picture (int [B], at most `most`); borders mirrored.

    A mirror cannot reach further than the picture, so `most` is cut to the side less one.
    """
    b, c, h, w = x.shape
    most = min(most, h - 1, w - 1)
    place = torch.arange(-most, most + 1, device=x.device)
    kernel = torch.exp(-place.to(x.dtype).square() / (2 * sigma**2)).expand(b, -1)
    kernel = kernel * (place.abs() <= radius.to(x.device).unsqueeze(1))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    padded = F.pad(x, (most,) * 4, mode="reflect").reshape(1, b * c, h + 2 * most, w + 2 * most)
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=b * c)
    return F.conv2d(rows, kernel[:, None, None, :], groups=b * c).reshape(x.shape)
