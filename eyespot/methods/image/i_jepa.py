"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture (Assran, Duval, Misra,
Bojanowski, Vincent, Rabbat, LeCun, Ballas; CVPR 2023; arXiv 2301.08243).

The encoder sees one large block of a picture's patches. A narrow predictor is told the places of four other blocks and
predicts, one block apart from the other, the features that a slowly moving copy of the encoder gives them when it sees
the whole picture. There are no pixels to rebuild and no hand-made augmentations but a crop.

    L = mean over blocks, tokens and dimensions of d( predictor(context, places), norm(copy(picture))[places] )
    copy <- m copy + (1 - m) encoder,  m from `momentum` to 1 linearly over the steps                       (section 3)

norm is a layer norm without scale and shift. Sizes of the blocks are drawn once a step and their places for every
picture; contexts are cut to the shortest of the global batch.

Paper and code: d is smooth L1 as in the authors' code; the paper writes the squared distance (`distance="l2"`). In that
code a context that the targets leave too small may overlap them; here other places are drawn (see
`eyespot.views.masks.context_and_targets`). The paper's transformers have no class token. One that is there takes part
in the encoder and is not given to the predictor.

Features are the mean of the patch tokens, of the encoder itself and not of its copy.

    >>> method = IJEPA(backbone("vit_micro", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'latent': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.predictive import latent
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import CROP, SHARE, WIDTH, check_pair, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.decoders import BlockPredictor
from eyespot.nets.teacher import Teacher
from eyespot.nets.vit import ViTBackbone, gather_tokens
from eyespot.process import all_max
from eyespot.views.image import ViewSpec, view
from eyespot.views.masks import context_and_targets, first_tokens


@dataclass(frozen=True)
class IJEPAConfig(MethodConfig):
    targets: int = 4
    """Number of target blocks."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Least and largest share of the patches that a target block takes."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Least and largest height over width of a target block."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Least and largest share of the patches that the context takes before the targets are left out."""
    context_least: int | None = None
    """Fewest patches of a context; None: 10 (the paper's), on small grids an eighth of the patches."""
    distance: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Distance of prediction and target."""
    predictor_dim: int | None = None
    """Width of the predictor; None: the encoder's, at most 384 (so the paper's for ViT-B, L and H)."""
    predictor_depth: int | None = None
    """Blocks of the predictor; None: half of the encoder's (the paper's 6 for ViT-B, 12 for ViT-L), at least 3."""
    predictor_heads: int | None = None
    """Attention heads of the predictor; None: one for 32 dimensions."""
    momentum: float = 0.996
    """Share of the copy that a step keeps at the start."""
    momentum_end: float = 1.0
    """The same at the end of training; a straight line leads there."""
    crop_min: float = 0.3
    """Least share of the picture's area that a crop keeps."""
    flip: float = 0.0
    """Probability of mirroring left to right."""
    pooling: Literal["avg", "native"] = "avg"
    """Features of the trained backbone: "avg", mean of the patch tokens; "native", mostly the class token."""


class IJEPA(Method):
    needs = "image"
    Config = IJEPAConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        lr_rule="sqrt",
        lr_batch=2048,
        weight_decay=0.04,
        weight_decay_end=0.4,
        batch_size=256,
        epochs=100,
        warmup_epochs=10.0,
        min_lr=0.001,
        backbone="vit_small",
        image_size=224,
        expected="ImageNet-1k, linear: ViT-B/16 72.9 (600 epochs), ViT-H/14 79.3 (300 epochs) (paper).",
    )

    def __init__(self, backbone: Backbone, config: IJEPAConfig = IJEPAConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        if not isinstance(backbone, ViTBackbone):
            raise UserError(
                f"I-JEPA leaves out tokens, so it needs a vision transformer such as vit_micro or vit_small, not "
                f"'{getattr(backbone, 'name', type(backbone).__name__)}'; for other backbones take byol."
            )
        _check(config, backbone.grid)
        backbone.set_pooling(config.pooling)
        self.teacher = Teacher(backbone)
        dim, depth, heads = predictor_shape(config, backbone.embed_dim, len(backbone.net.blocks))
        self.predictor = BlockPredictor(backbone.embed_dim, backbone.grid, dim, depth, heads)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        crop = (c.crop_min, 1.0)
        spec = ViewSpec(c.image_size, crop, flip=c.flip, jitter=None, grey_p=0.0, interpolation="bicubic")
        return {"image": view(batch["image"], draws, spec).pixels}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x, net = views["image"], self.backbone
        shape = (x.shape[2] // net.patch, x.shape[3] // net.patch)
        keep, targets = self.blocks(ensure(draws, len(x), x.device), shape)
        seen = _normed(net, net.tokens(x, keep=keep))
        predicted = self.predictor(seen, keep, targets, shape)
        with torch.no_grad():
            whole = _normed(self.teacher.module, self.teacher.module.tokens(x))
        wanted = gather_tokens(whole, targets.flatten(1)).unflatten(1, targets.shape[1:])
        return {"latent": latent(predicted, wanted, self.config.distance)}

    def blocks(self, draws: Draws, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Places of the contexts [B, l], all cut to the shortest of the global batch, and of the targets [B, T, n]."""
        c = self.config
        least = context_least(c, shape[0] * shape[1])
        scales = {"target_scale": c.target_scale, "context_scale": c.context_scale, "target_aspect": c.target_aspect}
        context, targets = context_and_targets(draws, shape, c.targets, **scales, least=least)
        context = context.flatten(1)
        shortest = -all_max(-int(context.sum(1).min()))[0]
        if shortest < 1:
            raise UserError(
                f"{c.targets} targets of up to {c.target_scale[1]} of {shape[0]} x {shape[1]} patches leave no context "
                "in some picture; choose fewer or smaller targets."
            )
        return first_tokens(context, shortest), targets

    def after_step(self) -> None:
        c = self.config
        self.teacher.update(self.backbone, c.momentum + (c.momentum_end - c.momentum) * self.progress)


def _normed(net: ViTBackbone, tokens: Tensor) -> Tensor:
    """Patch tokens; nets that norm after pooling norm here each token, in all others fc_norm is the identity."""
    return net.net.fc_norm(tokens[:, net.prefix :])


def context_least(config: IJEPAConfig, patches: int) -> int:
    """Fewest patches of a context on a grid of so many."""
    return config.context_least or max(1, min(10, patches // 8))


def predictor_shape(config: IJEPAConfig, width: int, blocks: int) -> tuple[int, int, int]:
    """Width, depth and heads of the predictor for an encoder of some width and number of blocks."""
    dim = config.predictor_dim or min(384, max(32, width // 32 * 32))
    return dim, config.predictor_depth or min(12, max(3, blocks // 2)), config.predictor_heads or max(1, dim // 32)


def _check(config: IJEPAConfig, grid: int) -> None:
    check_ranges(config, targets=WIDTH, predictor_dim=WIDTH, predictor_depth=WIDTH, predictor_heads=WIDTH)
    check_ranges(config, context_least=WIDTH, momentum=SHARE, momentum_end=SHARE, crop_min=CROP, flip=SHARE)
    check_pair(config, "target_scale")
    check_pair(config, "context_scale")
    low, high = config.target_aspect
    if not 0 < low <= high:
        raise UserError(f"target_aspect={config.target_aspect} is out of range; give two increasing positive numbers.")
    if grid < 3:
        raise UserError(f"I-JEPA needs at least 3 x 3 patches, not {grid} x {grid}; choose larger pictures or patches.")
