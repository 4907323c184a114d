"""iBOT: image BERT pre-training with online tokenizer (Zhou, Wei, Wang, Shen, Xie, Yuille, Kong; ICLR 2022;
arXiv 2111.07832).

DINO, and the same at the level of patches: of half the large views blocks of patches are hidden from the student, which
is drawn at each of them to the distribution that its slowly moving copy, which sees the whole view, gives to that
patch. One head serves the class token and the patches.

    L_cls = mean over pairs (large view g, other view v) of H( P_copy(class of g), P_student(class of v) )     (eq. 1)
    L_mim = mean over large views and pictures of the mean over hidden patches i of
            H( P_copy(patch i), P_student(patch i) )                                                            (eq. 2)

The copy's logits are centred, by one centre for class tokens and one for
patches (the mean over all patches, hidden or not), and sharpened. Features are the class token, as in the paper's
probes; `pooling="avg"` gives the mean of the patch tokens.

Paper and code: a view with nothing hidden adds 0 to L_mim. The warm-up of the copy's temperature is a share of the run,
so that short runs have one too, and with it the copy's patches stay sharp (0.04; the paper ends at 0.07).

    >>> method = IBOT(backbone("vit_micro", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'class': tensor(...), 'patches': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.distillation import across_views, hidden_tokens, moved_centre, teacher_probability, token_weights
from eyespot.methods.image.dino import DINO, DINOConfig
from eyespot.methods.method import Info, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, check_pair, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import DinoHead
from eyespot.nets.teacher import Teacher
from eyespot.nets.vit import ViTBackbone
from eyespot.process import all_mean
from eyespot.views.masks import block_mask


@dataclass(frozen=True)
class IBOTConfig(DINOConfig):
    mask_probability: float = 0.5
    """Probability that patches of a large view are hidden."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Least and largest share of the patches that is hidden then."""
    shared_head: bool = True
    """Whether class token and patches have one head."""
    patch_weight: float = 1.0
    """Weight of L_mim."""
    teacher_patch_temperature: float = 0.04
    """T_t for patches, after the same warm-up from the same start (0.07 in long runs)."""
    pooling: Literal["native", "avg"] = "native"
    """Features of the trained backbone: "native", mostly the class token; "avg", mean of the patch tokens."""


class IBOT(DINO):
    needs = "image"
    Config = IBOTConfig
    accepts = ("terms",)
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.04,
        weight_decay_end=0.4,
        batch_size=256,
        epochs=100,
        warmup_epochs=10.0,
        min_lr=0.002,
        clip=3.0,
        backbone="vit_small",
        image_size=224,
        expected="ImageNet-1k, ViT-S, 800 epochs: k-NN 75.2, linear 77.9, fine-tuned 82.3 (paper).",
    )

    patch_centre: Tensor

    def __init__(self, backbone: Backbone, config: IBOTConfig = IBOTConfig(), info: Info | None = None):
        check_ranges(config, mask_probability=SHARE, patch_weight=(0.0, None), teacher_patch_temperature=POSITIVE)
        check_pair(config, "mask_ratio")
        transformer_with_class_token(backbone, type(self).__name__).set_pooling(config.pooling)
        super().__init__(backbone, config, info)
        if not config.shared_head:
            self.patch_head = DinoHead(backbone.embed_dim, config.prototypes, config.hidden, config.bottleneck)
            self.teacher = Teacher(self._student())
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        self.register_buffer("patch_centre", torch.zeros(config.prototypes))
        self._patch_means: list[Tensor] = []

    def heads(self) -> list[DinoHead]:
        """The head of the class token first, that of patches last: one and the same, or two."""
        own: Any = self._modules.get("patch_head")
        return [self.head] if own is None else [self.head, own]

    def _student(self) -> nn.Module:
        return nn.Sequential(self.backbone, *self.heads())

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Logits of class tokens, "student" [V, B, P] with the large views first and "teacher" [2, B, P]; of the M
        hidden patches, "student_patches" and "teacher_patches" [M, P], with their "weight" [M]; "patch_mean" [P]; and
        the student's class tokens themselves, "classes" [2, B, D]."""
        x = torch.cat([views["view1"], views["view2"]])
        net = self.backbone
        grid = (x.shape[2] // net.patch, x.shape[3] // net.patch)
        mask = self.masks(ensure(draws, len(x) // 2, x.device), grid).flatten(1)
        classes, patches = _tokens(net, x, (mask, self.mask_token))
        heads, small = self.heads(), [views[name] for name in views if name.startswith("local")]
        student = heads[0](classes).unflatten(0, (2, -1))
        if small:
            local = heads[0](_tokens(net, torch.cat(small))[0]).unflatten(0, (len(small), -1))
            student = torch.cat([student, local])
        encoded = {
            "student": student,
            "student_patches": heads[-1](patches[mask]),
            "classes": classes.unflatten(0, (2, -1)),
        }
        return encoded | self._teach(x, mask) | {"weight": token_weights(mask, x.dtype)}

    @torch.no_grad()
    def _teach(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the copy says of large views [2B, C, S, S]. Prototypes are linear: the mean of the logits over all
        patches is that of their mean embedding, so logits are made of the hidden ones only."""
        net, heads = self.teacher.module[0], list(self.teacher.module)[1:]
        classes, patches = _tokens(net, x)
        embedded = heads[-1].embed(patches)
        return {
            "teacher": heads[0](classes).unflatten(0, (2, -1)),
            "teacher_patches": heads[-1].last(embedded[mask]),
            "patch_mean": heads[-1].last(embedded.mean((0, 1))),
        }

    def masks(self, draws: Draws, grid: tuple[int, int]) -> Tensor:
        """Hidden patches of both large views: bool [2B, rows, columns]."""
        parts = []
        for name, ratio in zip(("view1", "view2"), self.ratios(draws), strict=True):
            hidden = np.ceil(ratio * grid[0] * grid[1])
            parts.append(block_mask(draws.scope(name), grid, hidden, min_area=(min(grid) // 3) ** 2))
        return torch.cat(parts)

    def ratios(self, draws: Draws) -> np.ndarray:
        """Share of patches to hide in every large view: float64 [2, B], 0 where none are."""
        low, high = self.config.mask_ratio
        u = np.stack([draws.scope(name).uniform64("mask", 2) for name in ("view1", "view2")])
        return np.where(u[..., 0] < self.config.mask_probability, low + (high - low) * u[..., 1], 0.0)

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        if self.training and torch.is_grad_enabled():
            self._means.append(encoded["teacher"].mean((0, 1)))
            self._patch_means.append(encoded["patch_mean"])
        c, (classes, patches) = self.config, self.targets(encoded)
        mim = hidden_tokens(encoded["student_patches"], patches, encoded["weight"], c.temperature)
        return {"class": across_views(encoded["student"], classes, c.temperature), "patches": c.patch_weight * mim}

    def targets(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The copy's distributions: of class tokens [2, B, P] and of hidden patches [M, P]."""
        temperature = self.teacher_temperature(self.config.teacher_patch_temperature)
        return (
            teacher_probability(encoded["teacher"], self.centre, self.teacher_temperature()),
            teacher_probability(encoded["teacher_patches"], self.patch_centre, temperature),
        )

    def after_step(self) -> None:
        if self._patch_means:
            mean = all_mean(torch.stack(self._patch_means).mean(0)).to(self.patch_centre.dtype)
            self.patch_centre = moved_centre(self.patch_centre, mean, self.config.centre_momentum)
            self._patch_means.clear()
        super().after_step()

    def plateau(self, batch: int) -> dict[str, float]:
        return {"class": math.log(self.config.prototypes)}


def _tokens(net: ViTBackbone, x: Tensor, replace: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Class tokens [B, D] and patch tokens [B, L, D]; nets that norm after pooling norm here each token."""
    tokens = net.net.fc_norm(net.tokens(x, replace=replace))
    return tokens[:, 0], tokens[:, net.prefix :]


def transformer_with_class_token(backbone: Any, method: str) -> ViTBackbone:
    """The backbone, if it is one; else the sentence that says so."""
    if not isinstance(backbone, ViTBackbone):
        raise UserError(
            f"{method} hides tokens, so it needs a vision transformer such as vit_micro or vit_small, not "
            f"'{getattr(backbone, 'name', type(backbone).__name__)}'; for other backbones take dino."
        )
    if backbone.net.cls_token is None:
        raise UserError(f"{method} needs a class token, which this '{backbone.name}' is built without; keep it.")
    return backbone
