"""I2P-MAE: learning 3D representations from 2D pre-trained models via image-to-point masked autoencoders (Zhang, Wang,
Qiao, Gao, Li; CVPR 2023; arXiv 2212.06785).

Most tokens of a cloud are hidden; a hierarchy of transformers encodes the few that are left and a decoder puts back the
points of the others. A frozen network of pictures looks at three depth maps of the cloud and helps twice: tokens where
it sees much are more likely to stay, and the visible tokens must tell its features at their points.

    L = mean_masked CD2(p, p*) + w mean_visible mean (f - [F1; F2; F3])^2        (section 3.3)

with p the k points of a token's group less its centre, CD2 the Chamfer distance, and F the three feature maps carried
back to the points. The tokens that stay on the coarsest level are drawn without replacement with probabilities
softmax(s / T) of the salience s; a finer token is visible when a visible group has it.

Paper and code: the teacher is CLIP's ViT-B/16 in the paper. Here it is any network of pictures: a run, a folder of
saved weights or a name with published ones; "depth", the default, is a small network that learns before the training
and without labels to tell the depth maps of the data apart, and "random" the same one untrained, as a control. Salience
is what the class token attends to, or the norm of the features where there is none. The authors' features are raw
numbers of CLIP's size; `standardise` brings those of other teachers to that of the batch. The released code always
shows token 0 of sample 0, turns clouds and then trains on those that are not turned (`turn` is 0, as it works there),
and embeds hidden groups before it drops them, so that they are in the statistics of the batch norms; here they are not.
`mask="random"` and `weight_2d=0` make it a plain Point-M2AE.

    >>> method = I2PMAE(backbone("points_micro", image_size=256))
    >>> method({"points": torch.randn(8, 256, 3)})
    {'chamfer': tensor(...), 'features': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.contrastive import nt_xent
from eyespot.losses.points import chamfer_l2
from eyespot.methods.method import Info, Method, MethodConfig, Recipe, Tools
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.depth_teacher import OWN, DepthTeacher, depth_teacher
from eyespot.nets.heads import mlp
from eyespot.nets.point_ops import Level, gathered, pass_down
from eyespot.nets.points import PointBackbone, PointDecoder
from eyespot.process import all_mean, gather, global_mean
from eyespot.views.points import first_points, stretched, turned
from eyespot.views.projection import AXES, depth_map, drawn

HIGHEST_SEED = 1 << 31


def drawn_by(meta: dict[str, Any], draws: Draws, count: int) -> dict[str, Any]:
    """The plan of a sample: so many points, others in every epoch."""
    return {"points": count, "seed": int(draws.integers("points", HIGHEST_SEED)[0])}


class DepthContrast(Method):
    """Learns the small teacher: two depth maps of one cloud, turned and stretched, agree more than those of others."""

    recipe = Recipe(optimizer="adamw", lr=2e-3, lr_rule="none", batch_size=64, epochs=10, warmup_epochs=0.5)

    def __init__(self, teacher: DepthTeacher, config: MethodConfig, info: Info | None = None):
        super().__init__(teacher.net, config, info)
        self.size = teacher.size
        self.projector = mlp(teacher.net.embed_dim, 128, 64, norm="batch")

    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return drawn_by(meta, draws, self.config.image_size)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        points = batch["points"].to(draws.device)
        return {name: self._view(points, draws.scope(name)) for name in ("view1", "view2")}

    def _view(self, points: Tensor, draws: Draws) -> Tensor:
        moved = stretched(turned(points, draws), draws)[..., :3]
        axes = torch.tensor(AXES, device=points.device)[draws.integers("axis", len(AXES)).to(points.device)]
        return depth_map(moved.gather(2, axes[:, None].expand_as(moved)), self.size)[0]

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        both = torch.cat([views["view1"], views["view2"]]).expand(-1, self.backbone.channels, -1, -1)
        query, key = self.projector(self.backbone(both)).chunk(2)
        return {"nt_xent": nt_xent(gather(query), gather(key), 0.1)}


@dataclass(frozen=True)
class I2PMAEConfig(MethodConfig):
    mask_ratio: float = 0.8
    """Share of the coarsest tokens that is hidden."""
    mask: Literal["guided", "random"] = "guided"
    """Whether tokens that the teacher finds salient are more likely to stay, or all are alike."""
    mask_temperature: float = 1.0
    """T, divides the salience: below 1 salient tokens stay more surely."""
    weight_2d: float = 1.0
    """Weight w of the teacher's features; 0 leaves them out."""
    standardise: bool = True
    """Whether the teacher's features are brought to mean 0 and variance 1 over the batch (the paper: raw)."""
    teacher: str = "depth"
    """The network of pictures: depth, random, a run or folder of saved weights, or a name with published weights."""
    teacher_epochs: float = 5.0
    """Epochs in which the teacher "depth" learns."""
    depth_size: int = 64
    """Side of the depth maps in pixels, even (224 in the paper)."""
    decoder_depth: int = 1
    """Blocks a level of the decoder."""
    scale: float = 1.5
    """Each axis is scaled by 1 / scale to scale."""
    shift: float = 0.2
    """Largest move along each axis, in units of the cloud's radius."""
    turn: float = 0.0
    """Share of half a turn by which clouds are turned about the upright axis, to each side."""


class I2PMAE(Method):
    needs = "points"
    Config = I2PMAEConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        lr_rule="sqrt",
        lr_batch=64,
        weight_decay=0.05,
        batch_size=64,
        epochs=300,
        warmup_epochs=10.0,
        backbone="points_micro",
        image_size=256,
        expected="ShapeNet-55, point_m2ae, 2,048 points, CLIP: ModelNet40 SVM 93.35, fine-tuned 93.67; without 2D: "
        "92.87 (paper, tables 1 and 3).",
    )

    def __init__(self, backbone: Backbone, config: I2PMAEConfig = I2PMAEConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        if not isinstance(backbone, PointBackbone):
            name = getattr(backbone, "name", type(backbone).__name__)
            raise UserError(f"I2P-MAE encodes clouds, so it needs points_micro or point_m2ae, not '{name}'.")
        check_ranges(
            config, weight_2d=(0, None), teacher_epochs=POSITIVE, decoder_depth=WIDTH, mask_temperature=POSITIVE
        )
        check_ranges(config, scale=(1.0, None), shift=(0, None), turn=SHARE)
        net = backbone.net
        self.tokens = net.groups[-1]
        self.hidden = int(config.mask_ratio * self.tokens)
        if not 0 < self.hidden < self.tokens:
            raise UserError(
                f"mask_ratio={config.mask_ratio} hides none or all of {self.tokens} tokens; choose a ratio between."
            )
        self.level = max(0, len(net.groups) - 2)
        """What is predicted: the tokens of the level below the coarsest."""
        self.decoder = PointDecoder(net, stop=self.level, depth=config.decoder_depth)
        width, self.members = net.widths[self.level], net.neighbours[self.level]
        self.points_head = nn.Linear(width, 3 * self.members)
        self._fresh = True
        if self.guided:
            teacher = depth_teacher(config.teacher, config.depth_size)
            self.guides = {"teacher": teacher}
            if config.weight_2d > 0:
                self.features_head = nn.Linear(width, teacher.width * self.members)

    @property
    def guided(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.config.mask == "guided" or self.config.weight_2d > 0

    # --- before training: the teacher ---------------------------------------------------------------------------
    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        if not self.guided or self.config.teacher != OWN:
            return {}
        teacher = depth_teacher(OWN, self.config.depth_size)
        own = MethodConfig(image_size=self.config.image_size)
        tools.fit(DepthContrast(teacher, own, self.info), self.config.teacher_epochs, "teacher")
        return {f"teacher.{k}": v.detach().cpu() for k, v in teacher.net.state_dict().items()}

    def teacher(self) -> DepthTeacher:
        """The teacher with what it learned in `prepare`, in evaluation mode."""
        teacher: Any = self.guides["teacher"]
        if self._fresh:
            learned = {k.removeprefix("teacher."): v for k, v in self.prepared.items()}
            if learned:
                teacher.net.load_state_dict(learned)
            teacher.eval().requires_grad_(False)
            self._fresh = False
        return teacher

    # --- training -----------------------------------------------------------------------------------------------
    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return drawn_by(meta, draws, self.config.image_size)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        points = first_points(batch["points"].to(draws.device), c.image_size)
        points = turned(points, draws, c.turn) if c.turn else points
        return {"points": stretched(points, draws, 1 / c.scale, c.scale, c.shift)}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        points, c = views["points"], self.config
        found = self._decoded(points, ensure(draws, len(points), points.device))
        terms = {"chamfer": global_mean(chamfer_l2(found["predicted"], found["target"]), ~found["visible"])}
        if c.weight_2d > 0:
            predicted = self.features_head(found["decoded"]).unflatten(-1, (self.members, -1))
            error = (predicted - found["features"]).square().mean((-2, -1))
            terms["features"] = c.weight_2d * global_mean(error, found["visible"])
        with torch.no_grad():
            self.watch = {"visible": found["visible"].float().mean(), "chamfer_x1000": 1000 * terms["chamfer"].detach()}
        return terms

    def _decoded(self, points: Tensor, draws: Draws) -> dict[str, Tensor]:
        """What a cloud [B, N, C] becomes: the tokens "decoded" [B, G, D] of a level, the points "predicted" and their
        "target" [B, G, k, 3] less the centres, "features" [B, G, k, 3 F] of the teacher, and "visible" bool [B, G]."""
        net = self.backbone.net
        x = self.backbone.normalize(points)
        levels = net.levels(x)
        features, salience = self.teacher()(points) if self.guided else (None, points.new_zeros(points.shape[:2]))
        visible = pass_down(self._stays(salience, levels, draws), levels)
        decoded = self.decoder(net.run(x, levels, visible), levels, visible)
        level = levels[self.level]
        members = self._below(x[..., :3], levels)
        target = gathered(members, level.index) - level.centres.unsqueeze(2)
        predicted = self.points_head(decoded).unflatten(-1, (self.members, 3))
        out = {"decoded": decoded, "predicted": predicted, "target": target, "visible": visible[self.level]}
        out["centres"] = level.centres
        if features is not None and self.config.weight_2d > 0:
            told = self._standardised(features) if self.config.standardise else features
            out["features"] = gathered(self._below(told, levels), level.index)
        return out

    def _below(self, values: Tensor, levels: list[Level]) -> Tensor:
        """Values [B, N, D] of the points at the members of the predicted groups: the centres of the level below."""
        return values if self.level == 0 else gathered(values, levels[self.level - 1].chosen)

    def _stays(self, salience: Tensor, levels: list[Level], draws: Draws) -> Tensor:
        """The coarsest tokens that stay, bool [B, G]: drawn one after the other with probabilities softmax(s / T)."""
        logits = salience.gather(1, levels[-1].chosen) / self.config.mask_temperature
        if self.config.mask == "random":
            logits = torch.zeros_like(logits)
        noise = draws.noise("mask", self.tokens).to(logits).clamp(1e-6, 1 - 1e-6)
        # the largest of logits with Gumbel noise are such a draw (Efraimidis and Spirakis 2006)
        order = (logits - (-noise.log()).log()).topk(self.tokens - self.hidden, dim=1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, True)

    @staticmethod
    def _standardised(features: Tensor) -> Tensor:
        mean = all_mean(features.mean((0, 1)))
        variance = all_mean((features - mean).square().mean((0, 1)))
        return (features - mean) / (variance + 1e-6).sqrt()

    def plateau(self, batch: int) -> dict[str, float]:
        """Standardised features have variance 1 over the points."""
        c = self.config
        return {"features": c.weight_2d} if c.standardise and c.weight_2d > 0 else {}

    # --- to look at ---------------------------------------------------------------------------------------------
    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """The cloud, the tokens that stay, what is put back, and the depth maps that the teacher sees."""
        points = first_points(batch["points"], self.config.image_size)
        found = self._decoded(points, draws)
        centre, seen = found["centres"].unsqueeze(2), found["visible"]
        made = (found["predicted"] + centre).flatten(1, 2)
        real = (found["target"] + centre).flatten(1, 2)
        stays = seen.repeat_interleave(self.members, 1).unsqueeze(-1)
        blue, red = made.new_tensor([0.1, 0.25, 0.6]), made.new_tensor([0.8, 0.2, 0.1])
        shown = torch.where(stays, real, real.new_full((), math.nan))
        visible = torch.where(stays, real, _first_seen(shown))
        rebuilt = torch.where(stays, real, made)
        columns = {
            "cloud": drawn(points[..., :3]),
            "visible": drawn(visible, colour=blue.expand_as(visible)),
            "put back": drawn(rebuilt, colour=torch.where(stays, blue, red)),
        }
        out = {"reconstruction": columns}
        if self.guided:
            maps = [depth_map(points[..., list(axes)], self.config.depth_size)[0] for axes in AXES]
            out["depth"] = {f"along {'xyz'[axes[2]]}": m for axes, m in zip(AXES, maps, strict=True)}
        return out


def _first_seen(points: Tensor) -> Tensor:
    """Of each cloud [B, N, 3] with NaN in places, the first point that is there: [B, 1, 3]."""
    first = points.isfinite().all(-1).to(torch.uint8).argmax(1)
    return points.gather(1, first[:, None, None].expand(-1, 1, 3))
