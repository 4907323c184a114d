"""SlotCon: visual representation learning with semantic grouping (Wen et al.; NeurIPS 2022; arXiv 2205.15288).

K prototypes, shared by the whole data set, divide the feature map of a picture into groups. Student and teacher (its
moving average) must assign the same piece of the picture to the same prototypes in two crops; the features pooled by
an assignment, the slots, are contrasted with the slots of all other pictures. Group loss, slot loss (eq. 2, 4, 6):

    L = w [Lg(1, 2) + Lg(2, 1)] + (1 - w) [Ls(1, 2) + Ls(2, 1)]

with 1, 2 the views, the student's first.

Paper and code: as in the authors' code the slot loss carries twice its temperature (the text has plain InfoNCE), the
teacher's temperature pools the slots of both sides (the student's own stands in the group loss only), and 1e-6 is added
to the pooling weights. Slots are pooled from features that are not normalised, and count as present by the maps before
they are aligned. The second crop is drawn again until it overlaps the first. A batch without a shared slot adds a loss
of 0 (not a number in the released code). The paper trains by LARS at 1.0 x batch / 256, decay 1e-5, batch 512, 800
epochs on COCO; the recipe here is for small nets.

    >>> method = SlotCon(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'group': tensor(...), 'slot': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.grouping import group_loss, pool_slots, present_slots, score_map, slot_loss, undo_view
from eyespot.methods.common import AsymmetricViews
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import conv_mlp, mlp
from eyespot.nets.teacher import Teacher, cosine_momentum
from eyespot.process import all_mean, all_sum, gather, global_mean, rank
from eyespot.views.image import overlap_boxes, view


@dataclass(frozen=True)
class SlotConConfig(AsymmetricViews):
    prototypes: int = 256
    """Number K of prototypes (256 on COCO, 2048 on ImageNet)."""
    hidden: int = 0
    """Width of the hidden layers of projector and predictor; 0 takes twice the backbone's (4096 for ResNet-50)."""
    out: int = 256
    """Width D of pixels, prototypes and slots."""
    group_weight: float = 0.5
    """Share w of the group loss; 1 leaves the slot loss out."""
    student_temperature: float = 0.1
    """Temperature of the student's assignment in the group loss."""
    teacher_temperature: float = 0.07
    """Temperature of the teacher's assignment, and of both when slots are pooled."""
    slot_temperature: float = 0.2
    """Temperature of the contrast between slots."""
    centre_momentum: float = 0.9
    """Share of the old centre that stays when the teacher's mean score is added."""
    momentum: float = 0.99
    """The teacher's momentum at the start; it grows to 1 by a half cosine."""
    crop_min: float = 0.08
    """Least share of the picture's area that a crop keeps."""


class SlotCon(Method):
    needs = "image"
    Config = SlotConConfig
    centre: Tensor
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=5.0,
        expected="COCO, 800 epochs, ResNet-50, the paper's recipe: Mask R-CNN FPN 1x 41.0 APb, 37.0 APm (the code)",
    )

    def __init__(self, backbone: Backbone, config: SlotConConfig = SlotConConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, prototypes=(2, None), hidden=(0, None), out=WIDTH, group_weight=SHARE, momentum=SHARE)
        check_ranges(c, student_temperature=POSITIVE, teacher_temperature=POSITIVE, slot_temperature=POSITIVE)
        check_ranges(c, centre_momentum=SHARE)
        if backbone.stride < 1:
            raise UserError(f"slotcon needs a feature map and {backbone.name} has none; use another backbone.")
        hidden = c.hidden or 2 * backbone.embed_dim
        self.projector = conv_mlp(backbone.embed_dim, hidden, hidden, c.out, act="gelu")
        self.predictor = mlp(c.out, hidden, hidden, c.out, act="gelu")
        for module in (*self.projector.modules(), *self.predictor.modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.prototypes = nn.Embedding(c.prototypes, c.out)
        self.teacher = Teacher(self.student())
        self.register_buffer("centre", torch.zeros(1, c.prototypes))
        self.seen: list[Tensor] = []  # mean teacher scores [K] since the last step

    def student(self) -> nn.ModuleDict:
        """What the teacher averages."""
        return nn.ModuleDict({"backbone": self.backbone, "projector": self.projector, "prototypes": self.prototypes})

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        pair = c.view_pair()
        specs = [replace(spec, interpolation="bicubic") for spec in pair]
        first = view(batch["image"], draws.scope("view1"), specs[0])
        second = view(batch["image"], draws.scope("view2"), specs[1], overlap_with=first)
        box1, box2 = overlap_boxes(first, second)
        return {
            "view1": first.pixels,
            "view2": second.pixels,
            "box1": box1,
            "box2": box2,
            "flip1": first.flip,
            "flip2": second.flip,
        }

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        student = self.student()
        s1, slots1 = self._grouped(student, views["view1"])
        s2, slots2 = self._grouped(student, views["view2"])
        with torch.no_grad():
            t1, keys1 = self._grouped(self.teacher.module, views["view1"])
            t2, keys2 = self._grouped(self.teacher.module, views["view2"])
        a1, a2, b1, b2 = (
            undo_view(scores, views[f"box{i}"], views[f"flip{i}"]) if f"box{i}" in views else scores
            for scores, i in ((s1, 1), (s2, 2), (t1, 1), (t2, 2))
        )
        temperatures = (c.student_temperature, c.teacher_temperature)
        group = group_loss(a1, b2, self.centre, *temperatures) + group_loss(a2, b1, self.centre, *temperatures)
        slot = self._contrast(slots1, s1, keys2, t2) + self._contrast(slots2, s2, keys1, t1)
        if self.training:
            self.seen += [t1.mean((0, 2, 3)), t2.mean((0, 2, 3))]
        self.watch = {"slots_per_image": present_slots(t1).sum(1, dtype=t1.dtype).mean()}
        return {"group": c.group_weight * group, "slot": (1 - c.group_weight) * slot}

    def _grouped(self, net: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Score map [B, K, h, w] and slots [B, K, D] of one view, by student or teacher."""
        raw = net["backbone"].features(pixels)
        cells = net["backbone"].feature_map(raw, tuple(pixels.shape[2:]))
        # layers that only the pooled features use must have a gradient too, of zero: a distributed run waits for it
        cells = cells + 0.0 * net["backbone"].pool(raw).mean()
        features = net["projector"](cells)
        scores = score_map(features, net["prototypes"].weight)
        return scores, pool_slots(features, scores, self.config.teacher_temperature)

    def _contrast(self, slots: Tensor, scores: Tensor, keys: Tensor, key_scores: Tensor) -> Tensor:
        """Slot loss of student slots against the teacher's of the other view, over the global batch."""
        held = present_slots(key_scores)
        rows = (present_slots(scores) & held).flatten().nonzero()[:, 0]
        if all_sum(torch.tensor(float(len(rows)), device=rows.device)) < 2:
            # no batch statistics of one row; all processes agree, and the predictor still gets a gradient of zero
            return 0.0 * torch.stack([p.sum() for p in self.predictor.parameters()]).sum()
        predicted = self.predictor(slots.flatten(0, 1)[rows])
        present = gather(held.to(torch.uint8)).flatten().bool()
        positives = rows + rank() * held.numel()
        all_keys = gather(keys).flatten(0, 1)
        return global_mean(slot_loss(predicted, positives, all_keys, present, self.config.slot_temperature))

    @torch.no_grad()
    def after_step(self) -> None:
        self.teacher.update(self.student(), cosine_momentum(self.config.momentum, 1.0, self.progress))
        if self.seen:
            mean = all_mean(torch.stack(self.seen).mean(0))
            self.centre.lerp_(mean[None].to(self.centre.dtype), 1 - self.config.centre_momentum)
            self.seen = []

    def plateau(self, batch: int) -> dict[str, float]:
        """Of the group loss alone: beside the slot loss, which falls first, it may rest near log K for long."""
        if self.config.group_weight < 1:
            return {}
        return {"group": 2 * self.config.group_weight * math.log(self.config.prototypes)}

    @property
    def groups(self) -> int:
        """How many numbers `segments` may give."""
        return self.config.prototypes

    @torch.no_grad()
    def segments(self, inputs: Tensor) -> Tensor:
        """The prototype that wins each place of clean pictures [B, C, H, W], by the teacher: int64 [B, h, w]."""
        return self._grouped(self.teacher.module, inputs)[0].argmax(1)
