"""BYOL: bootstrap your own latent (Grill, Strub, Altche, Tallec, Richemond et al.; NeurIPS 2020; arXiv 2006.07733).

The network predicts, from one view, what a slowly moving copy of itself makes of the other view. No negatives: the
predictor and the copy without gradient keep the constant solution away.

    L = (2 - 2 cos(p_1, z'_2)) + (2 - 2 cos(p_2, z'_1))            (eq. 2, both directions)

p is predictor(projector(backbone)), z' the projector of the copy, whose momentum goes from 0.99 to 1 by a cosine.

Paper and code: the copy averages parameters only; its batch norms keep the statistics of the views that it sees itself.
Defaults are for small nets and short runs: hidden layers of 1024 in place of 4096, a momentum that starts at 0.99 in
place of 0.996, crops from 0.2 of the area in place of 0.08, AdamW in place of LARS.

    >>> method = BYOL(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'prediction': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.losses.predictive import byol
from eyespot.methods.common import AsymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.nets.teacher import Teacher, cosine_momentum


@dataclass(frozen=True)
class BYOLConfig(AsymmetricViews):
    momentum: float = 0.99
    """Share of the copy that a step keeps at the start (0.996 on ImageNet)."""
    momentum_end: float = 1.0
    """The same at the end of training; a half cosine leads there."""
    hidden: int = 1024
    """Width of the hidden layers of projector and predictor (4096 in the paper)."""
    out: int = 256
    """Width of the prediction."""


class BYOL(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key"."""

    needs = "image"
    Config = BYOLConfig
    accepts = ("views", "view_pair", "positives", "terms")
    directions = 2
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10)

    def __init__(self, backbone: Backbone, config: BYOLConfig = BYOLConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, momentum=SHARE, momentum_end=SHARE, hidden=WIDTH, out=WIDTH)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.out, norm="batch")
        self.predictor = mlp(config.out, config.hidden, config.out, norm="batch")
        self.teacher = Teacher(self._student())

    def _student(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.projector)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Predictions "query" [2B, out] from view 1, then from view 2; targets "key" [2B, out], what the copy makes of
        the view opposite to each, without gradient. Neither is normalised.
        """
        both = views["view1"], views["view2"]
        predictions = [self.predictor(self.projector(self.backbone(v))) for v in both]
        targets = [self.teacher(v) for v in both]
        return {"query": torch.cat(predictions), "key": torch.cat(targets[::-1])}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        return {"prediction": 2 * byol(encoded["query"], encoded["key"])}  # 2: the sum of both directions

    def after_step(self) -> None:
        c = self.config
        self.teacher.update(self._student(), cosine_momentum(c.momentum, c.momentum_end, self.progress))

    def plateau(self, batch: int) -> dict[str, float]:
        return {"prediction": 4.0}
