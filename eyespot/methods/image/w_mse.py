"""W-MSE: whitening for self-supervised representation learning (Ermolov, Siarohin, Sangineto, Sebe; ICML 2021; arXiv
2007.06346).

The embeddings of each view are whitened over the batch, so that they scatter alike in all directions and cannot become
constant; then the views of a picture are drawn together on the unit sphere. No negatives, no copy of the network.

    L = mean over pictures and pairs of views of 2 - 2 cos(w_i, w_j),  w = L^-1 (z - mean),  L L^T = Cov(z)     (sec. 3)

Each view is whitened in blocks of a few times as many rows as dimensions, made anew at every step by a random
permutation of the batch, which keeps the estimate of the covariance noisy (section 3).

Paper and code: covariances are unbiased and blocks are cut from the global batch. The paper's block has twice as many
rows as dimensions (128 for 64), here four times as many (128 for 32), since the estimate is bad where they are close.
A share of 1e-4 of the identity is added, so that constant embeddings give no error (0 in the authors' code).

    >>> method = WMSE(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(128, 3, 32, 32), "view2": torch.rand(128, 3, 32, 32)})
    {'w_mse': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.whitening import w_mse, whiten_blocks
from eyespot.methods.common import SymmetricViews
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import view


@dataclass(frozen=True)
class WMSEConfig(SymmetricViews):
    positives: int = 2
    """Number of views of each picture (4 in the paper's W-MSE 4)."""
    block: int | None = None
    """Rows that are whitened together; none is four times `out` (twice in the paper)."""
    partitions: int = 1
    """Random partitions of the batch into blocks a step, whose losses are averaged."""
    shrinkage: float = 1e-4
    """Share of the identity in the covariance, so that it can be inverted (0 in the authors' code)."""
    hidden: int = 1024
    """Width of the projector's hidden layer."""
    out: int = 32
    """Width of the embedding that is whitened, below the batch (64 on CIFAR in the paper)."""


class WMSE(Method):
    needs = "image"
    Config = WMSEConfig
    accepts = ("views", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=4e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        expected="CIFAR-10, ResNet-18, 1000 epochs, Adam 2e-3, decay 1e-6, batch 256: linear top-1 88.7 % (solo-learn)",
    )

    def __init__(self, backbone: Backbone, config: WMSEConfig = WMSEConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, positives=(2, None), block=WIDTH, partitions=(1, None), shrinkage=SHARE)
        check_ranges(c, hidden=WIDTH, out=WIDTH)
        self.block = c.block or 4 * c.out
        if self.block <= c.out:
            raise UserError(f"block={c.block} is too small for out={c.out} dimensions; give at least {2 * c.out}.")
        # whitening takes the mean away, so a last bias would never learn
        self.projector = mlp(backbone.embed_dim, c.hidden, c.out, norm="batch", last_bias=False)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        spec, names = c.view_spec(), [f"view{i + 1}" for i in range(c.positives)]
        return {name: view(batch["image"], draws.scope(name), spec).pixels for name in names}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Embeddings "embedding" [V, B, out] of the views, not whitened."""
        features = torch.cat([self.backbone(pixels) for name, pixels in views.items() if name.startswith("view")])
        return {"embedding": self.projector(features).unflatten(0, (-1, len(views["view1"])))}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        embeddings = [gather(z) for z in encoded["embedding"]]
        draws = ensure(draws, encoded["embedding"].shape[1], embeddings[0].device)
        each = [self._whitened(embeddings, draws, f"partition{i}") for i in range(self.config.partitions)]
        return {"w_mse": torch.stack(each).mean()}

    def _whitened(self, embeddings: list[Tensor], draws: Draws, name: str) -> Tensor:
        """The loss under one random partition of the global batch, the same for all views."""
        c, rows = self.config, len(embeddings[0])
        if rows <= c.out:
            raise UserError(
                f"{rows} pictures cannot whiten {c.out} dimensions; use a batch (or part of it) of at least "
                f"{2 * c.out}, or --set out={max(1, rows // 2)}."
            )
        # blocks of nearly equal size, none smaller than asked for where the batch is that large
        blocks = draws.permutation(name, rows).tensor_split(max(1, rows // self.block))
        return w_mse([whiten_blocks(z, blocks, c.shrinkage) for z in embeddings])

    def plateau(self, batch: int) -> dict[str, float]:
        return {"w_mse": 2.0}
