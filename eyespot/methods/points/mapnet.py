"""MapNet: geometry-aware learning of maps for camera localization (Brahmbhatt, Gu, Kim, Hays, Kautz; CVPR 2018;
arXiv 1712.03342).

A network tells from one picture where the camera was. It learns from tuples of frames: their poses must be right, and
so must the differences between them; frames whose pose is not known still teach it, because what it says about
consecutive frames must agree with the odometry that was measured between them (MapNet++, the self-supervised part).

    L = sum_i h(p_i, p*_i) + sum_i h(v_i, v*_i)      h = e^-beta |t - t*|_1 + beta + e^-gamma |w - w*|_1 + gamma  (2-4)

with p a translation t and the logarithm w of the rotation's quaternion, v the relative poses of consecutive frames, and
beta, gamma learned for both.

Paper and code: the L1 norms are means over all entries, as in the authors' code. `relative="difference"` compares plain
differences of poses for known frames, as released; "frame" the pose in the frame of the camera before, as the paper
writes. The odometry of unknown frames is always the latter. The released dropout never acted in the PyTorch of its
time, so `dropout` is 0. Quaternions have w >= 0 before the logarithm, and its gradient is finite at no rotation, where
the released code zeroes what is no number. Translations are standardised by the known frames. `relative="none"` is
PoseNet with logarithms.

    >>> method = MapNet(backbone("resnet8", image_size=48))
    >>> method({"frames": torch.rand(2, 3, 3, 48, 64), "target": torch.randn(2, 3, 6), "known": torch.ones(2) > 0})
    {'absolute': tensor(...), 'relative': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.poses import as_logarithms, as_quaternions, differences, odometry, weighed
from eyespot.methods.method import Info, Method, MethodConfig, Recipe, Tools
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.process import global_mean


@dataclass(frozen=True)
class MapNetConfig(MethodConfig):
    frames: int = 3
    """Frames of a tuple."""
    spacing: int = 5
    """Frames between two of a tuple (10 in the paper)."""
    relative: Literal["difference", "frame", "none"] = "difference"
    """How relative poses of known frames are compared: plain differences, in the frame of the camera before, or not."""
    labelled: float = 1.0
    """Share of every sequence, from its start, whose poses are known; of the rest only the odometry is (MapNet++)."""
    odometry_noise: float = 0.0
    """Noise of the odometry, as a share of each step."""
    odometry_weight: float = 1.0
    """Weight of the odometry of unknown frames."""
    beta: float = 0.0
    """Where the weight of translations begins, both absolute and relative."""
    gamma: float = -3.0
    """Where the weight of rotations begins, both absolute and relative."""
    hidden: int = 256
    """Width of the layer before the pose (2048 in the paper)."""
    dropout: float = 0.0
    """Share of that layer that is dropped."""


class MapNet(Method):
    needs = ("image_pair", "pose")
    Config = MapNetConfig
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=5e-4,
        batch_size=20,
        epochs=300,
        warmup_epochs=1.0,
        backbone="resnet8",
        image_size=48,
        expected="7-Scenes, ResNet-34 from ImageNet, mean of the medians: 0.21 m and 7.77 degrees, with PGO 0.18 m and "
        "6.6 degrees; PoseNet 0.23 m and 8.1 degrees (paper, table 1).",
    )

    def __init__(self, backbone: Backbone, config: MapNetConfig = MapNetConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, frames=WIDTH, spacing=WIDTH, labelled=SHARE, dropout=SHARE, hidden=WIDTH)
        check_ranges(config, odometry_noise=(0.0, None), odometry_weight=(0.0, None))
        if config.frames < 2 and (config.relative != "none" or config.labelled < 1):
            raise UserError("frames=1 has nothing relative to compare; set relative=none and labelled=1, or frames=2.")
        first = nn.Linear(backbone.embed_dim, config.hidden)
        self.trunk = nn.Sequential(first, nn.ReLU(), nn.Dropout(config.dropout))
        self.translation, self.rotation = nn.Linear(config.hidden, 3), nn.Linear(config.hidden, 3)
        for layer in (first, self.translation, self.rotation):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        # [2], beta and gamma: with a dimension, which sharding needs
        self.absolute = nn.Parameter(torch.tensor([config.beta, config.gamma]))
        self.between = nn.Parameter(torch.tensor([config.beta, config.gamma])) if self.compares else None

    @property
    def compares(self) -> bool:
        """Whether relative poses are compared at all."""
        return self.config.relative != "none" or self.config.labelled < 1

    # --- before training: where the known frames are ------------------------------------------------------------
    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        """Mean and deviation of the translations of known frames."""
        from eyespot.data.decode import BadFile

        source, known = data.source, []
        for i in range(len(source)):
            if (i - source.starts[i]) / max(1, source.ends[i] - source.starts[i]) < self.config.labelled:
                try:
                    known.append(torch.from_numpy(source.pose(i)[:3]))
                except BadFile:
                    continue  # counted when it is read
        if not known:
            raise UserError(f"No frame of {source.name} has a known pose; raise labelled, or mend the poses.")
        table = torch.stack(known).float()
        return {"mean": table.mean(0), "deviation": table.std(0, unbiased=False).clamp_min(1e-3)}

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of translations, [3] each."""
        mean, deviation = self.prepared.get("mean"), self.prepared.get("deviation")
        return (
            like.new_zeros(3) if mean is None else mean.to(like),
            like.new_ones(3) if deviation is None else deviation.to(like),
        )

    # --- training -----------------------------------------------------------------------------------------------
    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        return {"frames": c.frames, "spacing": c.spacing, "short_side": c.image_size}

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """The "frames" [B, T, C, h, w] in [0, 1], their shorter side as the config says; their poses "target"
        [B, T, 6]; whether a tuple's poses are "known", bool [B]; the measured "odometry" [B, T - 1, 6]."""
        c = self.config
        target = as_logarithms(batch["pose"].to(draws.device))
        known = (
            batch["place"].to(draws.device).amax(1) < c.labelled
            if c.labelled < 1
            else target[:, 0, 0] == target[:, 0, 0]
        )
        views = {
            "frames": resized(batch["image_pair"].to(draws.device), c.image_size),
            "target": target,
            "known": known,
        }
        if c.frames > 1:
            views["odometry"] = self._measured(target, draws)
        return views

    def _measured(self, target: Tensor, draws: Draws) -> Tensor:
        """The odometry of tuples [B, T, 6] with noise that belongs to the sample: it is the same in every epoch."""
        true = odometry(target)
        if not self.config.odometry_noise:
            return true
        fixed = Draws(draws.seed, 0, 0, draws.index, draws.device, draws.prefix)
        noise = fixed.noise("odometry", *true.shape[1:], normal=True).to(true)
        size = torch.cat(
            [part.norm(dim=-1, keepdim=True).expand_as(part) for part in (true[..., :3], true[..., 3:])], -1
        )
        return true + self.config.odometry_noise * size * noise

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        c, target, known = self.config, views["target"], views["known"]
        predicted = self._poses(views["frames"])
        mean, deviation = self._scale(predicted)
        wanted = torch.cat([(target[..., :3] - mean) / deviation, target[..., 3:]], -1).to(predicted)
        terms = {"absolute": self._compared(predicted, wanted, known, self.absolute)}
        if c.relative == "difference":
            found = (differences(predicted), differences(wanted))
            terms["relative"] = self._compared(*found, known, self.between)
        elif c.relative == "frame":
            terms["relative"] = self._compared(
                self._odometry(predicted), self._scaled(odometry(target)).to(predicted), known, self.between
            )
        if c.labelled < 1:
            measured = self._scaled(views["odometry"]).to(predicted)
            unknown = self._compared(self._odometry(predicted), measured, ~known, self.between)
            terms["odometry"] = c.odometry_weight * unknown
        error = (predicted - wanted).detach().abs()
        self.watch = {"translation_m": (error[..., :3] * deviation).mean(), "rotation_log": error[..., 3:].mean()}
        return terms

    def _poses(self, frames: Tensor) -> Tensor:
        """Poses [B, T, 6] of frames [B, T, C, h, w], translations standardised."""
        h = self.trunk(self.backbone(frames.flatten(0, 1)))
        return torch.cat([self.translation(h), self.rotation(h)], -1).unflatten(0, frames.shape[:2])

    def _odometry(self, poses: Tensor) -> Tensor:
        """What standardised poses say about odometry, translations in mean deviations."""
        mean, deviation = self._scale(poses)
        return self._scaled(odometry(torch.cat([poses[..., :3] * deviation + mean, poses[..., 3:]], -1)))

    def _scaled(self, steps: Tensor) -> Tensor:
        size = self._scale(steps)[1].mean()
        return torch.cat([steps[..., :3] / size, steps[..., 3:]], -1)

    @staticmethod
    def _compared(predicted: Tensor, target: Tensor, used: Tensor, weights: Any) -> Tensor:
        """The weighed errors of the tuples that are `used`, over all processes; without any, beta + gamma."""
        error = (predicted - target).abs()
        t, w = (global_mean(part.mean((-2, -1)), used) for part in (error[..., :3], error[..., 3:]))
        return weighed(t, w, weights[0], weights[1])

    # --- using it -----------------------------------------------------------------------------------------------
    def predict_poses(self, frames: Tensor) -> Tensor:
        """Poses [B, 7] in metres, camera to world, of frames [B, C, h, w] in [0, 1]."""
        poses = self._poses(resized(frames, self.config.image_size).unsqueeze(1))[:, 0]
        mean, deviation = self._scale(poses)
        return as_quaternions(torch.cat([poses[..., :3] * deviation + mean, poses[..., 3:]], -1))

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """Frames of tuples, and the way of the camera from above: where it was (blue) and what is said (red)."""
        frames = resized(batch["image_pair"], self.config.image_size)
        said = self.predict_poses(frames.flatten(0, 1))[:, :3].unflatten(0, frames.shape[:2])
        columns = {f"frame {k + 1}": frames[:, k] for k in range(frames.shape[1])}
        return {"poses": {**columns, "from above": _maps(batch["pose"][..., :3], said)}}


def resized(frames: Tensor, short: int) -> Tensor:
    """Frames [..., C, H, W], uint8 or in [0, 1], in [0, 1] with the shorter side `short`."""
    pixels = frames.flatten(0, -4).float() / 255 if frames.dtype == torch.uint8 else frames.flatten(0, -4)
    h, w = pixels.shape[-2:]
    if min(h, w) != short:
        size = [max(1, round(side * short / min(h, w))) for side in (h, w)]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return pixels.unflatten(0, frames.shape[:-3])


def _maps(true: Tensor, said: Tensor, size: int = 64) -> Tensor:
    """Two sets of places [B, T, 3] on the two axes along which the camera moves most: pictures [B, 3, size, size]."""
    everything = true.flatten(0, 1)
    axes = everything.var(0).topk(2).indices
    low, high = everything[:, axes].amin(0), everything[:, axes].amax(0)
    picture = true.new_ones(len(true), 3, size, size)
    for colour, places in ((true.new_tensor([0.1, 0.25, 0.8]), true), (true.new_tensor([0.85, 0.2, 0.1]), said)):
        at = ((places[..., axes] - low) / (high - low).clamp_min(1e-6) * 0.8 + 0.1).clamp(0.02, 0.96) * size
        for b in range(len(true)):
            for x, y in at[b].long().tolist():
                picture[b, :, y : y + 2, x : x + 2] = colour[:, None, None]
    return picture
