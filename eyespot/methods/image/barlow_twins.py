"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun, Deny; ICML 2021; arXiv 2103.03230).

Two views of each picture are embedded; the cross-correlation matrix C of the two batches of embeddings is driven to
the identity: its diagonal to 1 (the views agree), the rest to 0 (no dimension repeats another).

    L = sum_i (1 - C_ii)^2 + redundancy * sum_i sum_{j != i} C_ij^2            (eq. 1)

Paper and code: a dimension is standardised by its biased deviation over the global batch, which is the authors' batch
norm without scale and shift; an unbiased one, as in some forks, would move the optimum of the diagonal by (N - 1) / N.
The authors' lambda is 0.0051, and they multiply the whole loss by 0.024 to 0.1 for LARS (`scale`). The projector is 512
wide in place of 8192, and the optimizer is AdamW.

    >>> method = BarlowTwins(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'invariance': tensor(...), 'redundancy': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eyespot.draws import Draws
from eyespot.losses.correlation import barlow
from eyespot.methods.common import AsymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather


@dataclass(frozen=True)
class BarlowTwinsConfig(AsymmetricViews):
    redundancy: float = 0.005
    """Weight of the off-diagonal terms, lambda in eq. 1."""
    scale: float = 1.0
    """Factor on the whole loss (0.024 to 0.1 when trained by LARS)."""
    hidden: int = 512
    """Width of the two hidden layers of the projector (8192 on ImageNet)."""
    out: int = 512
    """Width D of the embedding whose D x D correlation is decorrelated (8192 on ImageNet)."""


class BarlowTwins(Method):
    needs = "image"
    Config = BarlowTwinsConfig
    accepts = ("views", "view_pair", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10)

    def __init__(self, backbone: Backbone, config: BarlowTwinsConfig = BarlowTwinsConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, redundancy=(0, None), scale=POSITIVE, hidden=WIDTH, out=WIDTH)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.hidden, config.out, norm="batch")

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Embeddings "query" of view 1 and "key" of view 2, [B, out] each."""
        query, key = (self.projector(self.backbone(views[name])) for name in ("view1", "view2"))
        return {"query": query, "key": key}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        invariance, redundancy = barlow(gather(encoded["query"]), gather(encoded["key"]), c.redundancy)
        return {"invariance": c.scale * invariance, "redundancy": c.scale * redundancy}

    def plateau(self, batch: int) -> dict[str, float]:
        return {"invariance": self.config.scale * self.config.out}
