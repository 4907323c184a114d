"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun, Deny; ICML 2021; arXiv 2103.03230).

Two views of each picture are embedded; the cross-correlation matrix C of the two batches of embeddings is driven to
the identity: its diagonal to 1 (the views agree), the rest to 0 (no dimension repeats another).

    L = sum_i (1 - C_ii)^2 + redundancy * sum_i sum_{j != i} C_ij^2            (eq. 1)

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
from eyespot.methods.common import ColorConfig
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, VIEW, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import two_views
from eyespot.views.recipes import asymmetric


@dataclass(frozen=True)
class BarlowTwinsConfig(ColorConfig):
    redundancy: float = 0.005
    """Weight of the off-diagonal terms, lambda in eq. 1."""
    scale: float = 1.0
    """Factor on the whole loss (0.024 to 0.1 when trained by LARS)."""
    hidden: int = 512
    """Width of the two hidden layers of the projector (8192 on ImageNet)."""
    out: int = 512
    """Width D of the embedding whose D x D correlation is decorrelated (8192 on ImageNet)."""
    crop_min: float = 0.2
    """Least share of the picture's area that a crop keeps (0.08 in the paper)."""
    jitter: float = 0.5
    """Strength of the colour jitter."""
    grey: float = 0.2
    """Probability that a view loses its colour."""
    blur: float | None = None
    """Probability that view 1 is blurred (view 2: a tenth); none is 1 above 64 px and 0 on smaller pictures."""
    solarize: float = 0.2
    """Probability that bright pixels of view 2 are inverted."""
    flip: float = 0.5
    """Probability that a view is mirrored left to right."""


class BarlowTwins(Method):
    needs = "image"
    Config = BarlowTwinsConfig
    accepts = ("views", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10)

    def __init__(self, backbone: Backbone, config: BarlowTwinsConfig = BarlowTwinsConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, redundancy=(0, None), scale=POSITIVE, hidden=WIDTH, out=WIDTH, solarize=SHARE, **VIEW)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.hidden, config.out, norm="batch")

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        pair = asymmetric(c.image_size, c.crop_min, c.jitter, c.grey, c.blur, c.solarize, c.flip, color=c.color)
        return two_views(batch["image"], draws, *pair)

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
