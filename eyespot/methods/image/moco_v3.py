"""MoCo v3: an empirical study of training self-supervised vision transformers (Chen, Xie, He; ICCV 2021; arXiv
2104.02057).

Each prediction from one view must pick, among the keys of the whole batch, the key that a slowly moving copy of the
encoder makes of the other view of its picture. The batch is large enough to need no queue.

    L = ctr(q_1, k_2) + ctr(q_2, k_1),  ctr(q, k) = -2 T log( exp(q k+ / T) / sum_j exp(q k_j / T) )        (eq. 1)

q is predictor(projector(backbone)), k the projector of the copy, both of unit length; the copy gets no gradient and its
momentum goes from 0.99 to 1 by a cosine. Transformers keep their random patch projection, which makes training stable
(section 4).

Paper and code: the factor 2 T is that of the authors' code, and both directions are added. Linear layers have no bias,
and the projector ends in a batch norm without scale and shift. For transformers the authors' code has 3 layers in the
projector (`layers=3`) and a batch norm after the predictor (`predictor_norm=true`); ResNets, the default here, have
neither. On ImageNet T is 1.0 and the hidden layers are 4096 wide, here 0.2 and 1024; AdamW in place of LARS.

    >>> method = MoCoV3(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'info_nce': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.losses.contrastive import moco_v3
from eyespot.methods.common import AsymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.nets.teacher import Teacher, cosine_momentum
from eyespot.nets.vit import ViTBackbone
from eyespot.process import gather, rank


@dataclass(frozen=True)
class MoCoV3Config(AsymmetricViews):
    temperature: float = 0.2
    """T, divides the cosines (1.0 for ResNet-50 on ImageNet)."""
    momentum: float = 0.99
    """Share of the copy that a step keeps at the start (0.996 for ResNet-50 on ImageNet)."""
    momentum_end: float = 1.0
    """The same at the end of training; a half cosine leads there."""
    layers: int = 2
    """Linear layers of the projector (3 for transformers in the paper)."""
    hidden: int = 1024
    """Width of the hidden layers of projector and predictor (4096 in the paper)."""
    out: int = 256
    """Width of queries and keys."""
    predictor_norm: bool = False
    """Whether a batch norm without scale follows the predictor, as for transformers in the authors' code."""
    freeze_patches: bool = True
    """Whether the patch projection of a transformer keeps its first weights."""


class MoCoV3(Method):
    needs = "image"
    Config = MoCoV3Config
    accepts = ("views", "view_pair", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        expected="ImageNet, ResNet-50, 1000 epochs, LARS 0.3 x batch / 256, decay 1.5e-6, batch 4096, T 1.0: linear "
        "top-1 74.6 % (paper). CIFAR-10, ResNet-18, 1000 epochs, LARS 0.3 x batch / 256, decay 1e-6, T 0.2: linear "
        "top-1 93.1 % (solo-learn)",
    )

    def __init__(self, backbone: Backbone, config: MoCoV3Config = MoCoV3Config(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, temperature=POSITIVE, momentum=SHARE, momentum_end=SHARE)
        check_ranges(c, layers=(1, None), hidden=WIDTH, out=WIDTH)
        self.projector = mlp(
            backbone.embed_dim, *[c.hidden] * (c.layers - 1), c.out, norm="batch", last_norm="plain", bias=False
        )
        last_norm = "plain" if c.predictor_norm else False
        self.predictor = mlp(c.out, c.hidden, c.out, norm="batch", last_norm=last_norm, bias=False)
        if c.freeze_patches and isinstance(backbone, ViTBackbone):
            backbone.net.patch_embed.requires_grad_(False)
        self.teacher = Teacher(self._student())

    def _student(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.projector)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Predictions "query" [2, B, out] from view 1 and from view 2; "key" [2, B, out], what the copy makes of the
        view opposite to each, without gradient. Neither is normalised.
        """
        both = views["view1"], views["view2"]
        query = torch.stack([self.predictor(self.projector(self.backbone(v))) for v in both])
        return {"query": query, "key": torch.stack([self.teacher(v) for v in both[::-1]])}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        query, key = encoded["query"], encoded["key"]
        rows = query.shape[1]
        positives = rank() * rows + torch.arange(rows, device=query.device)
        each = [moco_v3(q, gather(k), positives, self.config.temperature) for q, k in zip(query, key, strict=True)]
        return {"info_nce": each[0] + each[1]}

    def after_step(self) -> None:
        c = self.config
        self.teacher.update(self._student(), cosine_momentum(c.momentum, c.momentum_end, self.progress))

    def plateau(self, batch: int) -> dict[str, float]:
        return {"info_nce": 4 * self.config.temperature * math.log(batch)}
