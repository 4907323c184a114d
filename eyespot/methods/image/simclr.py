"""SimCLR: a simple framework for contrastive learning (Chen, Kornblith, Norouzi, Hinton; ICML 2020; arXiv 2002.05709).

Two random views of each picture are embedded; every embedding must pick its partner among all other embeddings of
the batch, which makes the batch itself the negatives.

    L = mean over the 2N rows of -log( exp(z_i z_j / T) / sum_{k != i} exp(z_i z_k / T) ),  z of unit length   (eq. 1)

Paper and code: as in both, a row's denominator leaves out the row itself and nothing else. T is 0.2, as solo-learn has
it on CIFAR-10 (the paper's 0.1 goes with batches of 4096, lightly takes 0.5), so that loss values of the three do not
compare. Defaults are for small nets and batches: AdamW in place of LARS, a hidden layer of 512 in place of 2048, crops
from 0.2 of the area in place of 0.08, colours jittered half as much.

    >>> method = SimCLR(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'nt_xent': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.losses.contrastive import nt_xent
from eyespot.methods.common import SymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather


@dataclass(frozen=True)
class SimCLRConfig(SymmetricViews):
    temperature: float = 0.2
    """T, divides the cosines (0.1 on ImageNet at batch 4096)."""
    hidden: int = 512
    """Width of the projector's hidden layer (2048 in the paper)."""
    out: int = 128
    """Width of the embedding that is compared."""


class SimCLR(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key"."""

    needs = "image"
    Config = SimCLRConfig
    accepts = ("views", "view_pair", "positives", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10)

    def __init__(self, backbone: Backbone, config: SimCLRConfig = SimCLRConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, temperature=POSITIVE, hidden=WIDTH, out=WIDTH)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.out, norm="batch")

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Embeddings "query" of view 1 and "key" of view 2, [B, out] each, not normalised."""
        z = self.projector(self.backbone(torch.cat([views["view1"], views["view2"]])))
        query, key = z.chunk(2)
        return {"query": query, "key": key}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        return {"nt_xent": nt_xent(gather(encoded["query"]), gather(encoded["key"]), self.config.temperature)}

    def plateau(self, batch: int) -> dict[str, float]:
        return {"nt_xent": math.log(2 * batch - 1)}
