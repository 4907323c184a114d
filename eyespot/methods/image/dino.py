"""DINO: self-distillation with no labels (Caron, Touvron, Misra, Jegou et al.; ICCV 2021; arXiv 2104.14294).

A student distributes each view over P prototypes and is drawn to the distribution that its slowly moving copy gives
to another view of the picture. The copy sees the two large views only, the student small ones too; centring the
copy's logits keeps one prototype from taking everything, sharpening them keeps the uniform solution away.

    L = mean over pairs (large view g, other view v) of H( softmax((t_g - c) / T_t), softmax(s_v / T) )     (eq. 3)
    c <- m c + (1 - m) mean(t)                                                                            (eq. 4)

Paper and code: the prototypes have unit length by weight norm, without a gain; they rest for one epoch, here at most a
tenth of a short training. The centre moves after the loss has used it. For small nets and short runs some defaults
differ: T_t stays at 0.04 (the paper warms it up to 0.07), the head has batch norm where the backbone has (the paper's
has none), 4 small views in place of 8, 1024 prototypes in place of 65536, momentum 0.99 in place of 0.996.

    >>> method = DINO(backbone("vit_micro", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'distillation': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.losses.distillation import dino, moved_centre
from eyespot.methods.common import AsymmetricViews, prototypes_rest, small_view_size
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import DinoHead
from eyespot.nets.norms import has_batch_norm
from eyespot.nets.teacher import Teacher, cosine_momentum
from eyespot.process import all_mean
from eyespot.views.image import ViewSpec, multi_crop


@dataclass(frozen=True)
class DINOConfig(AsymmetricViews):
    prototypes: int = 1024
    """Number P of prototypes (4096 on CIFAR, 65536 on ImageNet)."""
    temperature: float = 0.1
    """T, of the student's softmax."""
    teacher_temperature: float = 0.04
    """T_t, of the copy's softmax, after its warm-up (0.07 in long runs; in short ones it ends at the plateau)."""
    teacher_temperature_start: float = 0.04
    """T_t at the start."""
    teacher_warmup: float = 0.3
    """Share of the training in which T_t rises linearly."""
    momentum: float = 0.99
    """Share of the copy that a step keeps at the start (0.996 on ImageNet)."""
    momentum_end: float = 1.0
    """The same at the end of training; a half cosine leads there."""
    centre_momentum: float = 0.9
    """Share m of the centre that a step keeps."""
    freeze_epochs: float = 1.0
    """Epochs in which the prototypes stay as they are; never more than a tenth of the training."""
    hidden: int = 512
    """Width of the hidden layers of the head (2048 in the paper)."""
    bottleneck: int = 128
    """Width of the embedding that the prototypes see (256 in the paper)."""
    batch_norm: bool | None = None
    """Whether the hidden layers of the head carry batch norm; none is yes for backbones with batch norm."""
    crop_min: float = 0.25
    """Least share of the picture's area that a large view keeps."""
    local_crops: int = 4
    """Number of small views that only the student sees (8 in the paper)."""
    local_size: int | None = None
    """Side of a small view in pixels; none is 3/7 of the large one, rounded up to whole patches (96 for 224)."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Least and largest share of the area that a small view keeps."""
    blur: float | None = None
    """Probability that view 1 is blurred (view 2: a tenth, small ones: half); none is 1 above 64 px, else 0."""


class DINO(Method):
    needs = "image"
    Config = DINOConfig
    accepts = ("views", "terms")
    recipe = Recipe(optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch_size=256, warmup_epochs=10, clip=3.0)

    centre: Tensor

    def __init__(self, backbone: Backbone, config: DINOConfig = DINOConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        _check(config)
        # without it the features of a small convolutional net are too alike for the teacher to tell views apart
        norms = has_batch_norm(backbone) if config.batch_norm is None else config.batch_norm
        norm = "batch" if norms else None
        self.head = DinoHead(backbone.embed_dim, config.prototypes, config.hidden, config.bottleneck, norm=norm)
        self.teacher = Teacher(self._student())
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.local_size = small_view_size(backbone, config, config.local_crops)
        self._means: list[Tensor] = []

    def _student(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.head)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        large = list(c.view_pair())
        small = ViewSpec(
            size=self.local_size,
            scale=c.local_scale,
            flip=c.flip,
            jitter=large[0].jitter,
            grey_p=c.grey,
            blur_p=large[0].blur_p / 2,
            color=c.color,
        )
        made = multi_crop(batch["image"], draws, large, small, c.local_crops)
        names = ["view1", "view2", *(f"local{i + 1}" for i in range(c.local_crops))]
        return {name: view.pixels for name, view in zip(names, made, strict=True)}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Logits "student" [V, B, P] of all views, the large ones first; "teacher" [2, B, P], without gradient."""
        large = [views["view1"], views["view2"]]
        small = [views[name] for name in views if name.startswith("local")]
        student = _logits(self._student(), large)
        if small:
            student = torch.cat([student, _logits(self._student(), small)])
        return {"student": student, "teacher": _logits(self.teacher, large)}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        student, teacher = encoded["student"], encoded["teacher"]
        if self.training and torch.is_grad_enabled():
            self._means.append(teacher.detach().mean((0, 1)))
        loss = dino(student, teacher, self.centre, self.config.temperature, self.teacher_temperature())
        return {"distillation": loss}

    def teacher_temperature(self, end: float | None = None) -> float:
        """T_t now, on its way from the start to `end` (None: the configured one)."""
        c = self.config
        end = c.teacher_temperature if end is None else end
        done = min(1.0, self.progress / c.teacher_warmup) if c.teacher_warmup > 0 else 1.0
        return c.teacher_temperature_start + done * (end - c.teacher_temperature_start)

    def before_step(self) -> None:
        if prototypes_rest(self, self.config.freeze_epochs):
            for head in self.heads():
                for parameter in head.last.parameters():
                    parameter.grad = None

    def heads(self) -> list[DinoHead]:
        """The heads, whose prototypes wait for the first epoch."""
        return [self.head]

    def after_step(self) -> None:
        c = self.config
        if self._means:
            mean = all_mean(torch.stack(self._means).mean(0)).to(self.centre.dtype)
            self.centre = moved_centre(self.centre, mean, c.centre_momentum)
            self._means.clear()
        self.teacher.update(self._student(), cosine_momentum(c.momentum, c.momentum_end, self.progress))

    def plateau(self, batch: int) -> dict[str, float]:
        return {"distillation": math.log(self.config.prototypes)}


def _logits(net: nn.Module, views: list[Tensor]) -> Tensor:
    """Logits [V, B, P] of V views of one size, in one pass."""
    return net(torch.cat(views)).unflatten(0, (len(views), -1))


def _check(config: DINOConfig) -> None:
    check_ranges(config, temperature=POSITIVE, teacher_temperature=POSITIVE, teacher_temperature_start=POSITIVE)
    check_ranges(config, prototypes=WIDTH, hidden=WIDTH, bottleneck=WIDTH)
    check_ranges(config, momentum=SHARE, momentum_end=SHARE, centre_momentum=SHARE, teacher_warmup=SHARE)
