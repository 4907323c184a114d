"""Hydra: rethinking positive pairs in contrastive learning (Wu, Mo, Feng, Atito, Kittler, Awais; 2024;
arXiv 2410.18200, named SimLAP from its second version on).

Labels are used: this is no method without supervision. A positive pair is not two pictures of one class but of any two
classes y1, y2. A gate that depends on the two classes chooses the dimensions in which they should agree; samples of all
other classes are the negatives. Without the gate such pairs make all features alike.

    g(y1, y2) = sigmoid( MLP( (E[y1] + E[y2]) / 2 ) ),   s_ij = sum_d g_id^2 z_id z_jd / T,   z of unit length
    L = mean over the pairs (i, j) with y1_j = y2_i of   log( e^s_ij + sum_{n: y1_n not y1_i, not y2_i} e^s_in ) - s_ij

y2 is a permutation of the labels of the global batch (`pairs`: "identical" y2 = y1, "distinct" another class drawn
evenly). With `gate=False, pairs="identical", average="rows"` the loss is SupCon's up to the denominators, which hold
other classes only and one positive; `gate=False` alone is the collapse that the paper shows.

Paper and code: no code comes with the paper; what is here follows the two public programs of its first author. They
gate in two ways: the later one as above, the earlier one brings gated vectors to unit length again (`renormalise`, here
without the N x N x D tensor). A sample whose own class is the target is a positive of itself there and here. One
program takes `repeats` views of a picture as samples of their own, which the other calls two views; the other's
learnable temperature is `learn_temperature`. Its subtraction of ungated similarities and the penalty on gates of later
versions, both off or of unknown weight, are left out.

    >>> method = Hydra(backbone("resnet18", image_size=32), info=Info(classes=10))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "label": torch.randint(10, (8,))})
    {'class_pairs': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.class_pairs import class_pair_contrast, gated_logits
from eyespot.methods.common import SymmetricViews
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather, rank
from eyespot.views.image import view


class PairGate(nn.Module):
    """How open each of D dimensions is to a pair of classes: int64 [N], [N] -> (0, 1) [N, D], symmetric.

    Args:
        classes: number of classes.
        dim: D.
        width: of the embeddings of classes.
        hidden: of the MLP.
        fuse: whether the MLP sees the mean of the two classes' embeddings; else each alone, and gates are multiplied.
    """

    def __init__(self, classes: int, dim: int, width: int, hidden: int, fuse: bool = True):
        super().__init__()
        self.fuse = fuse
        self.embedding = nn.Embedding(classes, width)
        self.mlp = nn.Sequential(
            nn.ReLU(),
            nn.BatchNorm1d(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, dim),
            nn.Sigmoid(),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, two = self.embedding(first), self.embedding(second)
        if self.fuse:
            return self.mlp((one + two) / 2)
        return self.mlp(one) * self.mlp(two)


@dataclass(frozen=True)
class HydraConfig(SymmetricViews):
    gate: bool = True
    """Whether a gate selects dimensions for each pair of classes; without, all are open."""
    pairs: Literal["arbitrary", "identical", "distinct"] = "arbitrary"
    """The class that a sample is paired with: any (labels of the batch permuted), its own, or any but its own."""
    average: Literal["pairs", "rows"] = "pairs"
    """Mean over all positive pairs, or over those of a sample first, as SupCon has it."""
    renormalise: bool = False
    """Whether gated vectors are brought to unit length again."""
    fuse: bool = True
    """Whether the gate sees the mean of both classes; else the gates of the two are multiplied."""
    temperature: float = 0.1
    """T, divides the similarities."""
    learn_temperature: bool = False
    """Whether T is learned, from the value given."""
    repeats: int = 1
    """Views of each picture in a batch, every one a sample of its own (3 in the authors' CIFAR-10 run)."""
    hidden: int = 512
    """Width of the projector's hidden layer (2048 in the paper)."""
    out: int = 128
    """Width D of the embedding (256 in the paper)."""
    gate_width: int = 128
    """Width of the embeddings of classes (512 in the paper)."""
    gate_hidden: int = 256
    """Width of the gate's hidden layer (1024 in the paper)."""
    crop_min: float = 0.7
    """Least share of the picture's area that a crop keeps."""


class Hydra(Method):
    needs = ("image", "label")
    Config = HydraConfig
    accepts = ("views", "terms")
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        weight_decay=5e-4,
        batch_size=256,
        epochs=50,
        warmup_epochs=2,
        expected="CIFAR-10, ResNet-18, 50 epochs, repeats=3, linear: 90.9; gate=False 25.3; SupCon 89.9 (the authors' "
        "documentation)",
    )

    def __init__(self, backbone: Backbone, config: HydraConfig = HydraConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, temperature=POSITIVE, repeats=WIDTH, hidden=WIDTH, out=WIDTH)
        check_ranges(c, gate_width=WIDTH, gate_hidden=WIDTH)
        if self.info.classes < 2:
            raise UserError("hydra needs labels of two classes or more; put the pictures into one folder a class.")
        last = nn.LayerNorm(c.out)
        self.projector = nn.Sequential(*mlp(backbone.embed_dim, c.hidden, c.out, norm="batch", last_bias=False), last)
        self.gate = PairGate(self.info.classes, c.out, c.gate_width, c.gate_hidden, c.fuse) if c.gate else None
        # one number, but with a dimension, which sharding needs
        scale = torch.full((1,), -math.log(c.temperature))
        self.log_scale = nn.Parameter(scale) if c.learn_temperature else None

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        label = batch["label"]
        if int(label.min()) < 0:
            raise UserError("Some pictures have no label; hydra needs one for each, so leave the others out.")
        spec = self.config.view_spec()
        names = [f"view{i + 1}" for i in range(self.config.repeats)]
        made = {name: view(batch["image"], draws.scope(name), spec).pixels for name in names}
        return {**made, "label": label.to(draws.device)}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Of the R = B * repeats samples here, the views of a picture side by side: "embedding" [R, out], "label" [R],
        and "gate" [R, out] where there is one. Of all processes: "classes" and "targets" [global R].
        """
        pixels = [views[name] for name in views if name.startswith("view")]
        z = self.projector(self.backbone(torch.cat(pixels))).unflatten(0, (len(pixels), -1)).transpose(0, 1)
        # picture by picture: the order of the global batch does not depend on the number of processes
        label = views["label"].to(z.device).repeat_interleave(len(pixels))
        draws = ensure(draws, len(views["label"]), z.device)
        classes = gather(label)
        targets = self._targets(classes, label, draws, len(pixels))
        encoded = {"embedding": z.flatten(0, 1), "classes": classes, "targets": targets}
        if self.gate is not None:
            mine = slice(rank() * len(label), (rank() + 1) * len(label))
            encoded["gate"] = self.gate(label, targets[mine])
        return encoded

    def _targets(self, classes: Tensor, label: Tensor, draws: Draws, repeats: int) -> Tensor:
        """The class that each sample of the global batch is paired with: int64 [global R]."""
        if self.config.pairs == "identical":
            return classes
        if self.config.pairs == "arbitrary":
            return classes[draws.permutation("pairs", len(classes))]
        step = 1 + draws.integers("pairs", self.info.classes - 1, repeats).flatten()
        return gather((label + step) % self.info.classes)

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c, classes = self.config, encoded["classes"]
        z = F.normalize(gather(encoded["embedding"]), dim=1)
        gate = gather(encoded["gate"]) if "gate" in encoded else None
        temperature = c.temperature if self.log_scale is None else (-self.log_scale).exp()
        logits = gated_logits(z, z, gate, temperature, c.renormalise)
        if gate is not None:
            g = gate.detach()
            entropy = -(torch.xlogy(g, g) + torch.xlogy(1 - g, 1 - g))
            self.watch = {"gate_open": g.mean(), "gate_entropy": entropy.mean()}
        return {"class_pairs": class_pair_contrast(logits, classes, encoded["targets"], classes, c.average)}

    def plateau(self, batch: int) -> dict[str, float]:
        """All similarities equal, and classes of one size: log(1 + negatives)."""
        n, classes = batch * self.config.repeats, self.info.classes
        own, other = (math.log1p(n * (classes - k) / classes) for k in (1, 2))
        equal = {"arbitrary": 1 / classes, "identical": 1.0, "distinct": 0.0}[self.config.pairs]
        return {"class_pairs": equal * own + (1 - equal) * other}
