"""SimMIM: a simple framework for masked image modeling (Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu; CVPR 2022;
arXiv 2111.09886).

Squares of a picture, larger than a patch, are hidden: a learned token stands for each patch inside them. The whole
sequence goes through the vision transformer, and one 1x1 convolution with a pixel shuffle predicts the pixels; only
the hidden ones count.

    L = sum |x - x_rec| m / (C sum m)        m = 1 at hidden pixels        (section 3.3)

x is the picture standardised by the backbone's mean and deviation, not patch by patch.

The token takes the place of the embedding before the position is added. Features are the mean of the patch tokens.

Paper and code: transformers here carry absolute positions, where the authors' ViT has a relative bias shared by its
blocks.

    >>> method = SimMIM(backbone("vit_micro", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'pixels': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.masked import simmim_loss
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import CROP, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import PixelShuffleDecoder
from eyespot.nets.vit import ViTBackbone
from eyespot.views.image import ViewSpec, view
from eyespot.views.masks import simmim_mask


@dataclass(frozen=True)
class SimMIMConfig(MethodConfig):
    mask_ratio: float = 0.6
    """Share of the squares that is hidden, rounded up to whole ones."""
    mask_unit: int | None = None
    """Side of a square in pixels; None: 32 (the paper's) from 128 px on, else two patches, or one on small grids."""
    crop_min: float = 0.67
    """Least share of the picture's area that a crop keeps."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    pooling: Literal["avg", "native"] = "avg"
    """Features of the trained backbone: "avg", mean of the patch tokens; "native", mostly the class token."""


class SimMIM(Method):
    needs = "image"
    Config = SimMIMConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=8e-4,
        lr_rule="sqrt",
        lr_batch=2048,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        batch_size=256,
        epochs=100,
        warmup_epochs=10.0,
        clip=5.0,
        backbone="vit_small",
        image_size=224,
        expected="ImageNet-1k, ViT-B, 800 epochs: fine-tuned 83.8, linear 56.7 (paper).",
    )

    def __init__(self, backbone: Backbone, config: SimMIMConfig = SimMIMConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        if not isinstance(backbone, ViTBackbone):
            raise UserError(
                f"SimMIM replaces tokens, so it needs a vision transformer such as vit_micro or vit_small, not "
                f"'{getattr(backbone, 'name', type(backbone).__name__)}'; for other backbones take mfm."
            )
        check_ranges(config, mask_unit=WIDTH, crop_min=CROP, flip=SHARE)
        self.unit = config.mask_unit or mask_unit(backbone.image_size, backbone.patch)
        self._check(backbone)
        backbone.set_pooling(config.pooling)
        self.mask_token = nn.Parameter(torch.empty(backbone.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = PixelShuffleDecoder(backbone.embed_dim, backbone.patch, backbone.channels)

    def _check(self, backbone: ViTBackbone) -> None:
        ratio, size = self.config.mask_ratio, backbone.image_size
        if size % self.unit or self.unit % backbone.patch:
            raise UserError(
                f"mask_unit={self.unit} must divide the picture's {size} px and be a multiple of the patch, "
                f"{backbone.patch} px; choose another."
            )
        units = (size // self.unit) ** 2
        if not 0 < ratio < 1 or math.ceil(round(ratio * units, 9)) == units:
            raise UserError(
                f"mask_ratio={ratio} hides none or all of {units} squares of {self.unit} px; choose a ratio between "
                "0 and 1, a larger picture or a smaller mask_unit."
            )

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        crop = (c.crop_min, 1.0)
        spec = ViewSpec(c.image_size, crop, flip=c.flip, jitter=None, grey_p=0.0, interpolation="bicubic")
        return {"image": view(batch["image"], draws, spec).pixels}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x, net = views["image"], self.backbone
        noise = ensure(draws, len(x), x.device).noise("mask", (x.shape[2] // self.unit) ** 2)
        mask = simmim_mask(noise, x.shape[2], self.unit, net.patch, self.config.mask_ratio)
        tokens = net.tokens(x, replace=(mask.flatten(1), self.mask_token))
        rebuilt = self.decoder(net.feature_map(tokens, (x.shape[2], x.shape[3])))
        # every picture has as many hidden pixels, so without eps the mean over processes is the mean over all
        return {"pixels": simmim_loss(rebuilt, net.normalize(x), mask, net.patch, eps=0.0)}


def mask_unit(size: int, patch: int) -> int:
    """The usual side of a hidden square in pixels: a multiple of the patch that cuts the picture into 4 x 4 or more."""
    usual = [32] if size >= 128 else []
    fitting = [u for u in (*usual, 2 * patch) if size % u == 0 and u % patch == 0 and size >= 4 * u]
    return fitting[0] if fitting else patch
