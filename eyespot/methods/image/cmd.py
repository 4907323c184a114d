"""CMD: cross-level multi-instance distillation for self-supervised fine-grained visual categorization (Bi, Ji, Yi,
Zhan, Xia; TIP 2025; arXiv 2401.08860).

What tells flowers or birds apart lies in a few places, but distillation compares whole pictures. Here a picture is a
bag and its regions, the places of the feature map, are the instances. A student distils from its slowly moving copy at
two levels, as EsViT does: whole crops (DINO), and each place with the copy's most similar one in another crop. The
student's own two levels are made to agree: what it says of a crop is drawn to the bag of what it says of its places.

    L = mean over pairs (large crop a of the copy, other crop v) of  CE(p_a, q_v) / 2 + mean_t CE(p_a,s(t), q_vt) / 2
        + lambda mean over crops of KL( sg(b_v) || q_v ),      b_v = sum_t w_vt softmax(r_vt / T)

with q and p the student's and the copy's distributions of a crop or a place, s(t) the place of highest cosine of
backbone features, r the logits of places, sg no gradient, and w_vt >= 0 weights with sum 1: equal ones, gated
attention, or equal ones for the surest places.

Paper and code: the released code cannot run, so only the well-posed form is here. It gives its KL divergence
probabilities, or logits, where logarithms are expected; sums over places, which are no distributions and grow with the
crop, as targets; and, in the student, targets that may be negative (not a number in today's torch) and carry gradient.
Its term inside the copy is a constant without gradient; here it is watched, as `teacher_agreement`. Its mean over all
prototypes makes the term tiny. One released command (Cars) turns the regions off and trains plain DINO. The bag, the
direction, the stop-gradient and lambda are therefore choices of this library: equal weights and lambda 0.1 are its
"CMD", all else are options. The feature of a crop is the mean of its tokens, as in the released code, wherever the
backbone pools so. Recipe, temperature, momentum, widths and crops are those of `dino` here, for small nets and short
runs; the paper trains Swin-T, from EsViT's ImageNet weights in the fine-grained runs, with 8 small crops, 65536
prototypes, AdamW at 5e-4 x batch / 256, decay 0.04 to 0.4, 300 epochs. The released sampler does not shuffle; this
library always does.

    >>> method = CMD(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'views': tensor(...), 'regions': tensor(...), 'inter': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.bags import divergence, entropy, equal_weights, log_bag, log_distribution, top_weights
from eyespot.losses.distillation import across_views, moved_centre
from eyespot.losses.regions import regions_across_views
from eyespot.methods.image.dino import DINO, DINOConfig
from eyespot.methods.method import Info, Recipe
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets.attention import GatedAttention
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import DinoHead
from eyespot.nets.norms import has_batch_norm
from eyespot.nets.teacher import Teacher
from eyespot.process import all_mean


@dataclass(frozen=True)
class CMDConfig(DINOConfig):
    regions: bool = True
    """Whether places are distilled too; without them this is DINO, and none of the arguments below acts."""
    inter_weight: float = 0.1
    """Weight lambda of the agreement between a crop and the bag of its places; with 0 this is EsViT."""
    aggregator: Literal["mean", "attention", "max"] = "mean"
    """Weights of the places in a bag: equal, learned by gated attention, or equal for the surest `top` of them."""
    top: float = 0.1
    """Share of the places that "max" keeps, at least one."""
    attention: int = 128
    """Width of the gated attention."""
    direction: Literal["bag_to_view", "view_to_bag", "both"] | None = None
    """Which of bag and crop is the target of the other, without gradient; "both" is the mean of the two, and none is
    "both" with attention, which else learns nothing, and "bag_to_view" without."""
    intra_weight: float = 0.0
    """Weight of a cross entropy between the bags of copy and student, over the pairs of crops."""
    teacher_bag_target: bool = False
    """Whether the target of a crop is the mean of the copy's distribution and its bag."""


class CMD(DINO):
    needs = "image"
    Config = CMDConfig
    accepts = ("views", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        clip=3.0,
        expected="CUB-200-2011, Cars, Aircraft, Swin-T: up to 10.14 points above the method before it and up to 19.78 "
        "above other self-supervised ones, top-1 and Rank-1 (the abstract; not one figure is known)",
    )

    region_centre: Tensor

    def __init__(self, backbone: Backbone, config: CMDConfig = CMDConfig(), info: Info | None = None):
        c = config
        check_ranges(c, inter_weight=(0.0, None), intra_weight=(0.0, None), attention=WIDTH, top=SHARE)
        super().__init__(backbone, config, info)
        if not c.regions:
            return
        if backbone.stride < 1:
            raise UserError(f"cmd needs a feature map and {backbone.name} has none; use another backbone.")
        self.direction = c.direction or ("both" if c.aggregator == "attention" else "bag_to_view")
        norm = "batch" if has_batch_norm(self.head) else None
        self.region_head = DinoHead(backbone.embed_dim, c.prototypes, c.hidden, c.bottleneck, norm=norm)
        if c.aggregator == "attention":
            if self.direction == "bag_to_view" and not c.intra_weight:
                raise UserError('direction="bag_to_view" teaches the attention nothing; set "both", or intra_weight.')
            self.gate = GatedAttention(backbone.embed_dim, c.attention)
        self.teacher = Teacher(self._student())
        self.register_buffer("region_centre", torch.zeros(c.prototypes))
        self._region_means: list[Tensor] = []

    def heads(self) -> list[DinoHead]:
        """The head of crops, and that of places where there is one."""
        own: Any = self._modules.get("region_head")
        return [self.head] if own is None else [self.head, own]

    def _student(self) -> nn.Module:
        """Backbone, heads and, last, the attention where there is one."""
        gate = self._modules.get("gate")
        return nn.Sequential(self.backbone, *self.heads(), *([] if gate is None else [gate]))

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Logits "student" [V, B, P] of all crops, the large ones first, and "teacher" [2, B, P]. Of T places, logits
        "regions" [2, B, T, P] and features "tokens" [2, B, T, D] of the large crops, the same as "local_regions" and
        "local_tokens" of the small ones, where there are any, and "teacher_regions", "teacher_tokens".
        """
        if not self.config.regions:
            return super().encode(views, draws)
        large = [views["view1"], views["view2"]]
        small = [views[name] for name in views if name.startswith("local")]
        student, regions, tokens = _levels(self._student(), large)
        encoded = {"student": student, "regions": regions, "tokens": tokens}
        if small:
            local, encoded["local_regions"], encoded["local_tokens"] = _levels(self._student(), small)
            encoded["student"] = torch.cat([student, local])
        with torch.no_grad():
            teacher, regions, tokens = _levels(self.teacher.module, large)
        return encoded | {"teacher": teacher, "teacher_regions": regions, "teacher_tokens": tokens}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c, warm = self.config, self.teacher_temperature()
        teacher = encoded["teacher"].detach()
        if self.training and torch.is_grad_enabled():
            self._means.append(teacher.mean((0, 1)))
            if c.regions:
                self._region_means.append(encoded["teacher_regions"].detach().mean((0, 1, 2)))
        log_p = log_distribution(teacher, warm, self.centre)
        if not c.regions:
            return {"views": across_views(encoded["student"], log_p.exp(), c.temperature)}
        log_regions = log_distribution(encoded["teacher_regions"].detach(), warm, self.region_centre)
        with torch.no_grad():
            teacher_bag = self._bag(log_regions, encoded["teacher_tokens"], list(self.teacher.module)[-1])
        target = (log_p.exp() + teacher_bag.exp()) / 2 if c.teacher_bag_target else log_p.exp()
        sizes = [k for k in ("", "local_") if f"{k}regions" in encoded]
        regions, tokens = ([encoded[size + what] for size in sizes] for what in ("regions", "tokens"))
        bags = [
            self._bag(log_distribution(r, c.temperature), t, self._modules.get("gate"))
            for r, t in zip(regions, tokens, strict=True)
        ]
        bag, log_q = torch.cat(bags), log_distribution(encoded["student"], c.temperature)
        cost = regions_across_views(regions, tokens, log_regions.exp(), encoded["teacher_tokens"], c.temperature)
        terms = {
            "views": across_views(encoded["student"], target, c.temperature) / 2,
            "regions": cost / 2,
            "inter": c.inter_weight * self._agreement(bag, log_q),
        }
        if c.intra_weight:
            terms["intra"] = c.intra_weight * across_views(bag, teacher_bag.exp(), 1.0)
        self.watch = {
            "bag_entropy": entropy(bag.detach()).mean(),
            "teacher_agreement": divergence(teacher_bag, log_p),
        }
        return terms

    def _bag(self, log_p: Tensor, tokens: Tensor, gate: Any) -> Tensor:
        """log bags [V, B, P] of places with log probabilities [V, B, T, P] and features [V, B, T, D]."""
        return log_bag(log_p, self._log_weights(log_p, tokens, gate))

    def _log_weights(self, log_p: Tensor, tokens: Tensor, gate: Any) -> Tensor:
        """What each place counts in its bag, as logarithms: [V, B, T]."""
        how = self.config.aggregator
        if how == "attention":
            return gate(tokens)
        return top_weights(log_p, self.config.top) if how == "max" else equal_weights(log_p)

    def _agreement(self, bag: Tensor, log_q: Tensor) -> Tensor:
        """How far the crops [V, B, P] are from their bags, both as log probabilities; each target has no gradient."""
        drawn = {"bag_to_view": (bag, log_q), "view_to_bag": (log_q, bag)}
        ways = list(drawn) if self.direction == "both" else [self.direction]
        return torch.stack([divergence(*drawn[way]) for way in ways]).mean()

    @torch.no_grad()
    def importance(self, inputs: Tensor) -> Tensor:
        """What each place of clean pictures [B, C, H, W] counts in their bags: [B, h, w], sum 1 a picture."""
        if not self.config.regions:
            raise UserError("regions=False weighs no places; train with regions.")
        _, regions, tokens = _levels(self._student(), [inputs])
        log_p = log_distribution(regions, self.config.temperature)
        weights = self._log_weights(log_p, tokens, self._modules.get("gate")).exp()[0]
        return weights.unflatten(1, (math.ceil(inputs.shape[2] / self.backbone.stride), -1))

    def after_step(self) -> None:
        if self.config.regions and self._region_means:
            mean = all_mean(torch.stack(self._region_means).mean(0)).to(self.region_centre.dtype)
            self.region_centre = moved_centre(self.region_centre, mean, self.config.centre_momentum)
            self._region_means.clear()
        super().after_step()

    def plateau(self, batch: int) -> dict[str, float]:
        top = math.log(self.config.prototypes)
        return {"views": top / 2, "regions": top / 2} if self.config.regions else {"views": top}


def _levels(net: Any, views: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [V, B, P] of V crops of one size, logits [V, B, T, P] of their places and features [V, B, T, D] of these,
    by the student or its copy, in one pass."""
    backbone, head, region_head = list(net)[:3]
    x, shape = torch.cat(views), (len(views), -1)
    raw = backbone.features(x)
    tokens = backbone.feature_map(raw, (x.shape[2], x.shape[3])).flatten(2).transpose(1, 2)
    regions = region_head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    return head(backbone.pool(raw)).unflatten(0, shape), regions.unflatten(0, shape), tokens.unflatten(0, shape)
