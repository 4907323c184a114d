"""MAE: masked autoencoders are scalable vision learners (He, Chen, Xie, Li, Dollár, Girshick; CVPR 2022;
arXiv 2111.06377).

Three quarters of a picture's patches are removed at random. A vision transformer encodes the few that are left; a light
decoder receives them with mask tokens in the places of the others and predicts the pixels of the removed patches.

    L = sum_i m_i mean((p_i - t_i)^2) / sum_i m_i        m_i = 1 where patch i was removed        (section 3)

with t_i the patch, standardised by its own mean and deviation (`norm_pix`).

Paper and code: the library's own transformers (`vit_micro`, `vit_small`, ...) carry the paper's frozen sine-cosine
positions and initialisation; those by timm name keep timm's learned positions. The decoder's positions are always the
frozen ones. Patches are standardised by their unbiased variance, as in the authors' code. Features are the mean of the
patch tokens after the last norm, as in the paper's fine-tuning; `pooling="native"` gives the class token, which its
linear probe takes. The rate follows the root of the batch from the paper's 4096; the paper's linear rule would starve
batches of a few hundred. Encoders of fewer than 12 blocks get a decoder of 2 blocks in place of 8.

    >>> method = MAE(backbone("vit_micro", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'pixels': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.masked import mae_loss, patchify
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import CROP, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.decoders import TokenDecoder
from eyespot.nets.vit import ViTBackbone
from eyespot.views.image import ViewSpec, view
from eyespot.views.masks import random_mask


@dataclass(frozen=True)
class MAEConfig(MethodConfig):
    mask_ratio: float = 0.75
    """Share of the patches that is removed."""
    norm_pix: bool = True
    """Whether the target is standardised patch by patch."""
    decoder_dim: int | None = None
    """Width of the decoder; None: two thirds of the encoder's, at most 512 (so the paper's for ViT-B and ViT-L)."""
    decoder_depth: int | None = None
    """Blocks of the decoder; None: 8 (the paper's) for encoders of 12 blocks and more, else 2."""
    decoder_heads: int | None = None
    """Attention heads of the decoder; None: one for 32 dimensions (the paper's 16 at 512)."""
    crop_min: float = 0.2
    """Least share of the picture's area that a crop keeps."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    pooling: Literal["avg", "native"] = "avg"
    """Features of the trained backbone: "avg", mean of the patch tokens; "native", mostly the class token."""


class MAE(Method):
    needs = "image"
    Config = MAEConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=2.4e-3,  # the paper's at its batch; its linear rule would starve batches of a few hundred
        lr_rule="sqrt",
        lr_batch=4096,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        batch_size=256,
        epochs=100,
        warmup_epochs=10.0,
        backbone="vit_small",
        image_size=224,
        expected="ImageNet-1k, ViT-B, 1600 epochs: linear 68.0, fine-tuned 83.6 (paper, tables 3 and 8).",
    )

    def __init__(self, backbone: Backbone, config: MAEConfig = MAEConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        if not isinstance(backbone, ViTBackbone):
            raise UserError(
                f"MAE leaves out tokens, so it needs a vision transformer such as vit_micro or vit_small, not "
                f"'{getattr(backbone, 'name', type(backbone).__name__)}'; for other backbones take mfm."
            )
        check_ranges(config, decoder_dim=WIDTH, decoder_depth=WIDTH, decoder_heads=WIDTH, crop_min=CROP, flip=SHARE)
        self._check(backbone)
        backbone.set_pooling(self.config.pooling)
        dim, depth, heads = decoder_shape(config, backbone.embed_dim, len(backbone.net.blocks))
        self.numbers = backbone.patch**2 * backbone.channels
        self.decoder = TokenDecoder(backbone.embed_dim, self.numbers, backbone.grid, dim, depth, heads, backbone.prefix)

    def _check(self, backbone: ViTBackbone) -> None:
        ratio, patches = self.config.mask_ratio, backbone.grid**2
        if not 0 < ratio < 1 or int(patches * (1 - ratio)) < 1:
            raise UserError(
                f"mask_ratio={ratio} leaves none or all of {patches} patches of {backbone.patch} px; choose a ratio "
                "between 0 and 1, a larger picture or a smaller patch."
            )

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        crop = (c.crop_min, 1.0)
        spec = ViewSpec(c.image_size, crop, flip=c.flip, jitter=None, grey_p=0.0, interpolation="bicubic")
        return {"image": view(batch["image"], draws, spec).pixels}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x, net = views["image"], self.backbone
        patches = net.embed_patches(x)
        noise = ensure(draws, len(x), x.device).noise("mask", patches.shape[1])
        keep, mask, restore = random_mask(noise, self.config.mask_ratio)
        visible = net.net.fc_norm(net.run(patches, keep))  # Identity unless the net norms after pooling
        predicted = self.decoder(visible, restore, (x.shape[2] // net.patch, x.shape[3] // net.patch))
        target = patchify(net.normalize(x), net.patch)
        return {"pixels": mae_loss(predicted, target, mask, self.config.norm_pix)}

    def plateau(self, batch: int) -> dict[str, float]:
        """With standardised targets, the variance that a constant prediction leaves: 1, less one degree of freedom."""
        return {"pixels": 1.0 - 1.0 / self.numbers} if self.config.norm_pix else {}


def decoder_shape(config: MAEConfig, width: int, blocks: int) -> tuple[int, int, int]:
    """Width, depth and heads of the decoder for an encoder of some width and number of blocks."""
    dim = config.decoder_dim or min(512, max(32, width * 2 // 3 // 32 * 32))
    depth = config.decoder_depth or (8 if blocks >= 12 else 2)
    return dim, depth, config.decoder_heads or max(1, dim // 32)
