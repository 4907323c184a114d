"""VICReg: variance-invariance-covariance regularization (Bardes, Ponce, LeCun; ICLR 2022; arXiv 2105.04906).

Two views of each picture are embedded close to each other, while two terms on each batch of embeddings keep them apart
from each other: the deviation of every dimension stays above 1, and no dimension repeats another.

    L = l s(Z, Z') + m [v(Z) + v(Z')] + n [c(Z) + c(Z')]                         (eq. 6)
    v = mean_d max(0, 1 - sqrt(Var(z_d) + eps)),  c = sum_{i != j} Cov(Z)_ij^2 / D        (eq. 1 to 4)

Paper and code: s is the mean of the squared difference over pictures and dimensions as in the authors' code (the
paper's eq. 5 sums over dimensions). v is summed over the two views as in the paper; the authors' code takes half of it,
which is `variance=12.5` here. Variances and covariances are unbiased. The last layer of the projector has no bias, as
covariances do not see it. The projector is 512 wide in place of 8192; AdamW in place of LARS.

    >>> method = VICReg(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'invariance': tensor(...), 'variance': tensor(...), 'covariance': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eyespot.draws import Draws
from eyespot.losses.correlation import vicreg
from eyespot.methods.common import AsymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather


@dataclass(frozen=True)
class VICRegConfig(AsymmetricViews):
    invariance: float = 25.0
    """Weight l of the distance between the views."""
    variance: float = 25.0
    """Weight m of the deviations, summed over both views."""
    covariance: float = 1.0
    """Weight n of the covariances, summed over both views."""
    eps: float = 1e-4
    """Added to the variances under the root."""
    hidden: int = 512
    """Width of the two hidden layers of the projector (8192 on ImageNet)."""
    out: int = 512
    """Width D of the embedding (8192 on ImageNet)."""


class VICReg(Method):
    needs = "image"
    Config = VICRegConfig
    accepts = ("views", "view_pair", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        expected="ImageNet, ResNet-50, 1000 epochs, LARS 0.2 x batch / 256, decay 1e-6, batch 2048: linear top-1 "
        "73.2 % (paper). CIFAR-10, ResNet-18, 1000 epochs, LARS 0.3 x batch / 256, decay 1e-4: linear top-1 92.1 % "
        "(solo-learn)",
    )

    def __init__(self, backbone: Backbone, config: VICRegConfig = VICRegConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, invariance=(0, None), variance=(0, None), covariance=(0, None), eps=POSITIVE)
        check_ranges(c, hidden=WIDTH, out=WIDTH)
        self.projector = mlp(backbone.embed_dim, c.hidden, c.hidden, c.out, norm="batch", last_bias=False)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Embeddings "query" of view 1 and "key" of view 2, [B, out] each."""
        query, key = (self.projector(self.backbone(views[name])) for name in ("view1", "view2"))
        return {"query": query, "key": key}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        invariance, variance, covariance = vicreg(gather(encoded["query"]), gather(encoded["key"]), c.eps)
        return {
            "invariance": c.invariance * invariance,
            "variance": c.variance * variance,
            "covariance": c.covariance * covariance,
        }

    def plateau(self, batch: int) -> dict[str, float]:
        c = self.config
        return {"variance": 2 * c.variance * max(0.0, 1 - math.sqrt(c.eps))}
