"""MoCo v2: improved baselines with momentum contrastive learning (Chen, Fan, Girshick, He; 2020; arXiv 2003.04297).

Each query must pick the key of the other view of its picture, made by a slowly moving copy of the encoder, among a
queue of older keys: many consistent negatives at a small batch.

    L = -log( exp(q k / T) / (exp(q k / T) + sum_{n in queue} exp(q n / T)) ),  q and k of unit length
        (MoCo, arXiv 1911.05722, eq. 1; k and the queue get no gradient)

Paper and code: the engine synchronises batch norm over processes, so the statistics cannot tell which key belongs to a
query, and the paper's shuffling of batches is left out. Keys enter the queue after the step. One direction, view 1 as
the query, as in the paper; solo-learn and lightly add the other. The queue begins with random directions. For small
data the queue holds 4096 keys in place of 65536, the momentum is 0.99 in place of 0.999, and the optimizer is AdamW in
place of SGD.

    >>> method = MoCoV2(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'info_nce': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.losses.contrastive import moco
from eyespot.methods.common import SymmetricViews, paired_views
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.nets.queue import Queue
from eyespot.nets.teacher import Teacher
from eyespot.process import gather_blocks


@dataclass(frozen=True)
class MoCoV2Config(SymmetricViews):
    temperature: float = 0.2
    """T, divides the cosines."""
    queue: int = 4096
    """Number K of older keys held as negatives (65536 on ImageNet)."""
    momentum: float = 0.99
    """Share of the key encoder that a step keeps (0.999 on ImageNet)."""
    hidden: int = 512
    """Width of the projector's hidden layer (2048 in the paper)."""
    out: int = 128
    """Width of queries and keys."""


class MoCoV2(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key", give "extra_negatives"
    [rows of query, S, out] of unit length, and say which "new_keys" are pushed into the queue in place of all of "key".
    """

    needs = "image"
    Config = MoCoV2Config
    accepts = ("views", "view_pair", "positives", "negatives", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10)

    def __init__(self, backbone: Backbone, config: MoCoV2Config = MoCoV2Config(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, temperature=POSITIVE, queue=WIDTH, momentum=SHARE, hidden=WIDTH, out=WIDTH)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.out, norm=None)
        self.teacher = Teacher(self._student())
        self.queue = Queue(config.out, config.queue)
        self._new_keys: list[Tensor] = []

    def _student(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.projector)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return paired_views(self, batch, draws)

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Queries "query" [B, out] of view 1, not normalised; keys "key" [B, out] of view 2, of unit length."""
        query = self.projector(self.backbone(views["view1"]))
        return {"query": query, "key": F.normalize(self.teacher(views["view2"]), dim=1)}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        query, key = encoded["query"], encoded["key"]
        if self.training and torch.is_grad_enabled():
            # pushed after the step: no query sees keys of its own step, however many parts the batch has
            new = encoded.get("new_keys", key).detach()
            self._new_keys.append(gather_blocks(new, len(new) if draws is None else len(draws)))
        extra = encoded.get("extra_negatives")
        return {"info_nce": moco(query, key, self.queue.columns, self.config.temperature, extra)}

    def after_step(self) -> None:
        for keys in self._new_keys:
            self.queue.push(keys)
        self._new_keys.clear()
        self.teacher.update(self._student(), self.config.momentum)

    def plateau(self, batch: int) -> dict[str, float]:
        return {"info_nce": math.log(1 + self.config.queue)}
