"""DINOv2: learning robust visual features without supervision (Oquab, Darcet, Moutakanni, Vo et al.; TMLR 2024;
arXiv 2304.07193).

The losses of DINO (class tokens across views) and iBOT (hidden patches of the same view), with the teacher's
distributions balanced over the batch instead of centred, and a term that spreads the class tokens of a batch:

    L = L_cls + L_mim + 0.1 sum over the two large views of L_koleo
    L_koleo = -mean_i log |z_i - z_nn(i)|        z: class tokens of unit length, before the head        (section 4)

Balanced (Sinkhorn-Knopp, 3 iterations): exp(t / T_t) is scaled until every prototype has the same share of the batch,
class tokens and hidden patches each for themselves; `centring="softmax"` subtracts iBOT's centres instead. Exactly
`mask_probability` of the large views of a batch have hidden patches, with shares spread evenly over `mask_ratio`.

Paper and code: balancing, nearest neighbours and the spread of the shares are over the global batch, so that a run does
not depend on the number of processes; the authors' code looks for neighbours and spreads shares within one device. What
it adds to the architecture (LayerScale 1e-5, drop path 0.3) belongs to the backbone.

    >>> method = DINOv2(backbone("vit_micro", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'class': tensor(...), 'patches': tensor(...), 'koleo': tensor(...)}
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.losses.assignment import sinkhorn
from eyespot.losses.koleo import koleo
from eyespot.methods.image.ibot import IBOT, IBOTConfig
from eyespot.methods.method import Info, Recipe
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.process import all_sum, gather

FIRST = ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre")
"""Parts of a vision transformer before its blocks."""


@dataclass(frozen=True)
class DINOv2Config(IBOTConfig):
    koleo_weight: float = 0.1
    """Weight of L_koleo."""
    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"
    """How the teacher's logits are kept from one prototype: balanced over the batch, or centred."""
    sinkhorn_iterations: int = 3
    """Rounds of balancing."""
    layer_decay: float = 0.9
    """Factor of the rate from one block to the block before it."""
    patch_rate: float = 0.2
    """Factor of the rate of the patch projection."""
    crop_min: float = 0.32
    """Least share of the picture's area that a large view keeps."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Least and largest share of the area that a small view keeps."""
    momentum: float = 0.992
    """Share of the copy that a step keeps at the start."""


class DINOv2(IBOT):
    needs = "image"
    Config = DINOv2Config
    recipe = Recipe(
        optimizer="adamw",
        lr=4e-3,
        lr_rule="sqrt",
        lr_batch=1024,
        weight_decay=0.04,
        weight_decay_end=0.4,
        batch_size=256,
        epochs=100,
        warmup_epochs=10.0,
        min_lr=0.00025,
        clip=3.0,
        backbone="vit_small",
        image_size=224,
        expected="ImageNet-1k alone, ViT-L/16, the short setup: k-NN 81.6, linear 82.9 (authors' repository).",
    )

    def __init__(self, backbone: Backbone, config: DINOv2Config = DINOv2Config(), info: Info | None = None):
        check_ranges(config, koleo_weight=(0.0, None), sinkhorn_iterations=WIDTH, layer_decay=POSITIVE)
        check_ranges(config, patch_rate=POSITIVE)
        super().__init__(backbone, config, info)

    def ratios(self, draws: Draws) -> np.ndarray:
        """As iBOT's, but the shares of the global batch are one of each: the views are ordered by a draw of their own,
        the first of them are masked, the further on the more."""
        low, high = self.config.mask_ratio
        u = torch.stack([draws.scope(name).uniform("mask") for name in ("view1", "view2")], 1)
        order = gather(u).flatten().sort().values
        place = torch.searchsorted(order, u).T.cpu().numpy()
        masked = int(self.config.mask_probability * len(order))
        within = np.stack([draws.scope(name).uniform64("ratio") for name in ("view1", "view2")])
        return np.where(place < masked, low + (high - low) * (place + within) / max(1, masked), 0.0)

    def targets(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.config.centring == "softmax":
            return super().targets(encoded)
        rounds, teacher = self.config.sinkhorn_iterations, encoded["teacher"]
        classes = sinkhorn(teacher.flatten(0, 1), self.teacher_temperature(), rounds, all_sum)
        temperature = self.teacher_temperature(self.config.teacher_patch_temperature)
        patches = sinkhorn(encoded["teacher_patches"], temperature, rounds, all_sum)
        return classes.unflatten(0, teacher.shape[:2]), patches

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        near = torch.stack([koleo(gather(tokens)) for tokens in encoded["classes"]]).sum()
        return super().loss(encoded, draws) | {"koleo": self.config.koleo_weight * near}

    def plateau(self, batch: int) -> dict[str, float]:
        c = self.config
        share = int(c.mask_probability * 2 * batch) / (2 * batch)
        return {name: w * math.log(c.prototypes) for name, w in (("class", 1.0), ("patches", c.patch_weight * share))}

    def param_groups(self) -> Iterable[dict[str, Any]]:
        """The rate falls from block to block towards the pixels, and is lower still in the patch projection."""
        c, groups = self.config, {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                scale = rate_scale(name, len(self.backbone.net.blocks), c.layer_decay, c.patch_rate)
                groups.setdefault(scale, []).append((name, parameter))
        return [{"params": params, "lr_scale": scale} for scale, params in groups.items()]


def rate_scale(name: str, blocks: int, decay: float, patch_rate: float) -> float:
    """Factor of a parameter's rate: decay^(blocks + 1) for what comes before the blocks, decay^(blocks - i) for block
    i = 0, 1, ..., 1 for what comes after them and for the heads."""
    parts = name.split(".")
    if parts[:3] == ["backbone", "net", "blocks"]:
        return decay ** (blocks - int(parts[3]))
    if name == "mask_token" or (parts[:2] == ["backbone", "net"] and parts[2] in FIRST):
        return decay ** (blocks + 1) * (patch_rate if "patch_embed" in parts else 1.0)
    return 1.0
