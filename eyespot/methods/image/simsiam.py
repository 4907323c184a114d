"""SimSiam: exploring simple siamese representation learning (Chen, He; CVPR 2021; arXiv 2011.10566).

The network predicts, from one view, its own embedding of the other view, which gets no gradient. No negatives, no
large batch, no slowly moving copy: the predictor and the stopped gradient alone keep the constant solution away.

    L = D(p_1, sg z_2) / 2 + D(p_2, sg z_1) / 2,  D(p, z) = -cos(p, z)            (eq. 1 to 4)

p is predictor(projector(backbone)), z the projector's output. The predictor keeps the peak rate for the whole training,
because it must follow embeddings that change; the rest follows the schedule (section 4.2).

Paper and code: the projector has the 2 layers that the paper takes on CIFAR (`layers=3` on ImageNet), batch norm after
each, the last without scale and shift. Ports that let the predictor follow the schedule are `constant_rate=false`.
Widths are a quarter of the paper's 2048 and 512, and the optimizer is AdamW in place of SGD.

    >>> method = SimSiam(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'prediction': tensor(...)}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.losses.predictive import negative_cosine
from eyespot.methods.common import SymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp


@dataclass(frozen=True)
class SimSiamConfig(SymmetricViews):
    layers: int = 2
    """Linear layers of the projector (2 on CIFAR, 3 on ImageNet)."""
    hidden: int = 512
    """Width of the projector's hidden layers (2048 in the paper)."""
    out: int = 512
    """Width of the embedding and of its prediction (2048 in the paper)."""
    bottleneck: int = 128
    """Width of the predictor's hidden layer (512 in the paper)."""
    constant_rate: bool = True
    """Whether the predictor keeps the peak rate instead of following the schedule."""


class SimSiam(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key"."""

    needs = "image"
    Config = SimSiamConfig
    accepts = ("views", "view_pair", "positives", "terms")
    directions = 2
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        expected="ImageNet, ResNet-50, 800 epochs, SGD 0.05 x batch / 256, decay 1e-4, batch 512: linear top-1 71.3 % "
        "(paper). CIFAR-10, ResNet-18, 1000 epochs, SGD 0.5 x batch / 256, decay 1e-5: linear top-1 90.5 % "
        "(solo-learn)",
    )

    def __init__(self, backbone: Backbone, config: SimSiamConfig = SimSiamConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, layers=(1, None), hidden=WIDTH, out=WIDTH, bottleneck=WIDTH)
        self.projector = mlp(backbone.embed_dim, *[c.hidden] * (c.layers - 1), c.out, norm="batch", last_norm="plain")
        self.predictor = mlp(c.out, c.bottleneck, c.out, norm="batch")

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Predictions "query" [2B, out] from view 1, then from view 2; "key" [2B, out], the embeddings of the view
        opposite to each, without gradient. Neither is normalised.
        """
        z1, z2 = (self.projector(self.backbone(views[name])) for name in ("view1", "view2"))
        query = torch.cat([self.predictor(z1), self.predictor(z2)])
        return {"query": query, "key": torch.cat([z2, z1]).detach()}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        return {"prediction": negative_cosine(encoded["query"], encoded["key"])}

    def param_groups(self) -> Iterable[dict[str, Any]]:
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        head = [(n, p) for n, p in named if n.startswith("predictor.")]
        rest = [(n, p) for n, p in named if not n.startswith("predictor.")]
        return [{"params": rest}, {"params": head, "scheduled": not self.config.constant_rate}]

    def plateau(self, batch: int) -> dict[str, float]:
        return {"prediction": 0.0}
