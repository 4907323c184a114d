"""Supervised: cross entropy with labels, the reference that methods without labels are compared with (no paper).

L = mean of -log softmax(W h + b)_label

>>> method = Supervised(backbone("resnet18", image_size=32), info=Info(classes=10))
>>> method({"view": torch.rand(8, 3, 32, 32), "label": torch.randint(10, (8,))})
{'cross_entropy': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.common import ColorConfig
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import CROP, JITTER, SHARE, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.views.image import view
from eyespot.views.recipes import symmetric


@dataclass(frozen=True)
class SupervisedConfig(ColorConfig):
    smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    crop_min: float = 0.4
    """Least share of the picture's area that a crop keeps (0.08 on ImageNet)."""
    jitter: float = 0.0
    """Strength of the colour jitter."""
    flip: float = 0.5
    """Probability that the view is mirrored left to right."""


class Supervised(Method):
    needs = ("image", "label")
    Config = SupervisedConfig
    accepts = ("views", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=0.05, batch_size=256, warmup_epochs=5)

    def __init__(self, backbone: Backbone, config: SupervisedConfig = SupervisedConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, smoothing=SHARE, crop_min=CROP, jitter=JITTER, flip=SHARE)
        if self.info.classes < 1:
            raise UserError("supervised needs labels and the data has none; put the pictures into one folder a class.")
        self.classifier = nn.Linear(backbone.embed_dim, self.info.classes)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        spec = symmetric(c.image_size, c.crop_min, c.jitter, grey=0.0, blur=0.0, flip=c.flip, color=c.color)
        return {"view": view(batch["image"], draws.scope("view1"), spec).pixels, "label": batch["label"]}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Class scores "logits" [B, classes] and "label" [B]."""
        return {"logits": self.predict(views["view"]), "label": views["label"]}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        label = encoded["label"].to(encoded["logits"].device)
        loss = F.cross_entropy(encoded["logits"], label, label_smoothing=self.config.smoothing)
        return {"cross_entropy": loss}

    def predict(self, inputs: Tensor) -> Tensor:
        """Class scores [B, classes] of pictures [B, C, H, W] in [0, 1]."""
        out: Tensor = self.classifier(self.backbone(inputs))
        return out

    def plateau(self, batch: int) -> dict[str, float]:
        return {"cross_entropy": math.log(self.info.classes)}
