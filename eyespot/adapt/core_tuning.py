"""Core-tuning: contrast-regularised fine-tuning of contrastive models (Zhang et al.; NeurIPS 2021; arXiv 2102.06605).

Cross entropy alone leaves the classes of a contrastively pre-trained network scattered. Core-tuning mixes features
into hard positives (the least similar sample of the class with the most similar one of another class) and semi-hard
negatives (a sample with a random one), then trains a classifier and a supervised contrast with focal weights on all:

    L = L_ce + eta L_con,    l_i = -1/|P(i)| sum_{j in P(i)} (1 - p_ij) log p_ij                          (eq. 5, 6)

with p_ij the softmax of z_i z_j / T over all other rows and P(i) the rows with the same (soft) label.

Paper and code: the defaults follow the paper where the released code is wrong. Its mask mostly makes a sample its own
hard positive (`mining="code"`), it divides by the number of rows in place of |P| (`normalisation="code"`), and the
unmixed rows give the backbone no gradient (`detach=true`). It finds equal soft labels by powers of ten, which overflow
beyond 18 classes; here labels are compared. As in the code, the partner of a semi-hard negative is drawn at
random (the text says hard), the focal weight has a gradient, and rows without a positive are left out. Its default of
eta is 10 while its CIFAR-10 command has 0.1, the default here.

    >>> method = CoreTuning(backbone("resnet18", image_size=32), info=Info(classes=10))
    >>> method({"view": torch.rand(8, 3, 32, 32), "label": torch.randint(10, (8,))})
    {'cross_entropy': tensor(...), 'contrast': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.supervised_contrastive import (
    core_mixtures,
    focal_supervised_contrast,
    label_groups,
    soft_cross_entropy,
)
from eyespot.methods.method import Adapter, Info, MethodConfig, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import ViewSpec, clean, view


@dataclass(frozen=True)
class CoreTuningConfig(MethodConfig):
    eta: float = 0.1
    """Weight of the contrastive term (the paper searches 0.1, 1 and 10 for each data set)."""
    temperature: float = 0.07
    """T, divides the cosines of the contrastive term."""
    alpha: float = 1.0
    """Both parameters of the Beta distribution of the shares in a mixture."""
    floor: float = 0.8
    """Smallest share of the random partner in a semi-hard negative."""
    out: int = 256
    """Width of the embedding that is contrasted; the hidden layer is as wide as the features."""
    mix: bool = True
    """Whether mixtures are added; without them, and with eta=0, it is plain fine-tuning by cross entropy."""
    mining: Literal["paper", "code"] = "paper"
    """Hard positives by the paper, or as the released code finds them."""
    normalisation: Literal["paper", "code"] = "paper"
    """Divide a row's contrast by its number of positives, or as the released code by the number of rows."""
    detach: bool = False
    """Whether the unmixed rows give the backbone no gradient, as in the released code."""
    resize: float = 1.0625
    """Side of the picture before a crop of the image size is cut from it, as a multiple of that (272 / 256)."""
    rotation: float = 15.0
    """Largest rotation in degrees, to both sides."""
    flip: float = 0.5
    """Probability that the view is mirrored left to right."""


class CoreTuning(Adapter):
    needs = ("image", "label")
    Config = CoreTuningConfig
    recipe = Recipe(
        optimizer="sgd",
        lr=0.01,
        lr_rule="none",
        nesterov=True,
        weight_decay=1e-4,
        batch_size=256,
        epochs=100,
        warmup_epochs=0.0,
        backbone="resnet50",
        expected="CIFAR-10 from MoCo v2 weights: 97.3 against 94.7 of cross entropy alone (the authors' code)",
    )

    def __init__(self, backbone: Backbone, config: CoreTuningConfig = CoreTuningConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, eta=(0.0, None), temperature=POSITIVE, alpha=POSITIVE, floor=SHARE, out=WIDTH)
        check_ranges(config, resize=(1.0, None), rotation=(0.0, 180.0), flip=SHARE)
        if self.info.classes < 1:
            raise UserError("core_tuning needs labels and the data has none; put the pictures into one folder a class.")
        width = backbone.embed_dim
        self.classifier = nn.Linear(width, self.info.classes, bias=False)
        self.contrastor = mlp(width, width, config.out, norm=None)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c, label = self.config, batch["label"]
        if int(label.min()) < 0:
            raise UserError("Some pictures have no label; core_tuning needs one for each, so leave the others out.")
        large = round(c.image_size * c.resize)
        square = clean(batch["image"], large, crop_ratio=1.0, device=draws.device)
        spec = ViewSpec(
            size=c.image_size,
            scale=((c.image_size / large) ** 2,) * 2,
            ratio=(1.0, 1.0),
            rotation=c.rotation,
            flip=c.flip,
            jitter=None,
            grey_p=0.0,
        )
        return {"view": view(square, draws.scope("view1"), spec).pixels, "label": label.to(draws.device)}

    def forward(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        draws = ensure(draws, len(views["view"]), views["view"].device)
        # pairs are mined and mixed in the global batch, the same on every process
        features, labels = gather(self.backbone(views["view"])), gather(views["label"])
        mixed, soft = self._mixed(features, labels, draws)
        logits = self.classifier(mixed)
        z = normalize(self.contrastor(mixed), dim=1)
        contrast = focal_supervised_contrast(z, label_groups(soft), c.temperature, c.normalisation)
        right = logits[: len(features)].argmax(1) == labels
        self.watch = {"train_top1": 100 * right.float().mean()}
        return {"cross_entropy": soft_cross_entropy(logits, soft), "contrast": c.eta * contrast}

    def _mixed(self, features: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Rows [R, D] that the losses see and their soft labels [R, classes]; the first B rows are the features."""
        c = self.config
        if not c.mix:
            return features, one_hot(labels, self.info.classes).to(features.dtype)
        negative, positive = (gather(draws.beta(name, c.alpha, c.alpha)) for name in ("negative", "positive"))
        order = draws.permutation("partner", len(features))
        mixed, soft = core_mixtures(features, labels, self.info.classes, order, negative, positive, c.floor, c.mining)
        if c.detach:
            mixed = torch.cat([mixed[: len(features)].detach(), mixed[len(features) :]])
        return mixed, soft

    def predict(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.backbone(inputs))
        return out

    def plateau(self, batch: int) -> dict[str, float]:
        return {"cross_entropy": math.log(self.info.classes)}
