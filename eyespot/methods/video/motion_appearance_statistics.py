"""Motion and appearance statistics: self-supervised spatio-temporal representation learning for videos by predicting
motion and appearance statistics (Wang, Jiao, Bao, He, Liu, Liu; CVPR 2019; arXiv 1904.03597).

A clip is summarised by 27 small integers that can be computed without labels, and a network regresses them from the
clip alone. Motion: in which block of three partitions of the frame the boundaries of the optical flow are strongest and
which of 8 directions they point to, for both components of the flow, and in which frame each moves most (14 numbers).
Appearance: which block changes its colours most and which least, which of 8 colours dominates them, and which the whole
clip (13). "Where" is a block, never a coordinate.

    L = w_m mean (y_m - y_m*)^2 + w_a mean (y_a - y_a*)^2                                                  (section 3.4)

Paper and code: the authors' code of this paper has the motion half alone, with the mean of the squares over batch and
labels; the weights 1 and 0.1 are those of their code of the journal version, which has both halves. The labels are
whole numbers and are regressed as such. The dominant colour is the octant most pixels lie in, as the paper says;
`colour=exact` takes the octant of the commonest exact colour, as the code does. Flow is found here and now, on
the frames that were read, by Lucas and Kanade's method in place of TV-L1 (`flow=dis` or `farneback` by OpenCV); so a
mirrored clip (`flip`, none in the code) has its own labels. Where nothing moves, the labels of pattern 1 are 0, as in
the later code; the first one fails. Defaults are for small nets: 16 frames of 56 px in place of 112, AdamW in place of
SGD, and the 4 x 4 places of the last map, which tell where, go through two layers of 256 in place of 2048. The heads
begin at the middle of the range of each label.

    >>> method = MotionAppearanceStatistics(video_backbone("c3d_light", image_size=32, frames=16))
    >>> clips = torch.randint(0, 256, (2, 16, 3, 64, 86), dtype=torch.uint8)
    >>> method(method.views({"video": clips}, Draws(index=[0, 1])))
    {'motion': tensor(...), 'appearance': tensor(...)}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.clip_statistics import (
    APPEARANCE_MOST,
    MOTION_MOST,
    appearance_statistics,
    motion_statistics,
    partitions,
)
from eyespot.methods.clips import random_window, short_side
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets.heads import mlp
from eyespot.nets.video import VideoBackbone
from eyespot.views.clip_pictures import statistics_columns
from eyespot.views.flow import clip_flow
from eyespot.views.video import windows

PLACES = 4
"""Side of the map that the head reads."""


@dataclass(frozen=True)
class MotionAppearanceStatisticsConfig(MethodConfig):
    frames: int = 16
    """Frames of a clip, one after the other."""
    motion: float = 1.0
    """w_m, weight of the 14 motion labels; with 0 no flow is computed."""
    appearance: float = 0.1
    """w_a, weight of the 13 appearance labels; with 0 they are not computed."""
    colour: Literal["vote", "exact"] = "vote"
    """The dominant colour: by a vote of all pixels, or the commonest exact one."""
    flow: Literal["lk", "dis", "farneback"] = "lk"
    """How flow is found: lk needs nothing more, dis and farneback are OpenCV's (extra `flow`)."""
    flow_scale: int = 2
    """Frames are this many times smaller when lk looks for flow; 1 is finer and four times slower."""
    flip: float = 0.0
    """Probability that a clip is mirrored left to right, its flow with it (0.5 in the journal version)."""
    hidden: int = 256
    """Width of the two hidden layers of the head (2048 in the paper)."""


class MotionAppearanceStatistics(Method):
    needs = ("video",)
    Config = MotionAppearanceStatisticsConfig
    extras = ("video",)
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        lr_batch=16,
        weight_decay=0.005,
        batch_size=16,
        epochs=60,
        warmup_epochs=2,
        clip=5.0,
        backbone="c3d_light",
        image_size=56,
    )

    def __init__(
        self,
        backbone: VideoBackbone,
        config: MotionAppearanceStatisticsConfig = MotionAppearanceStatisticsConfig(),
        info: Info | None = None,
    ):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, frames=(2, None), motion=(0.0, None), appearance=(0.0, None), flip=SHARE)
        check_ranges(c, hidden=WIDTH, flow_scale=WIDTH)
        partitions(c.image_size)  # a side that has no such blocks ends here
        if c.motion == c.appearance == 0:
            raise UserError("motion=0 and appearance=0 leave nothing to learn; give one of them a weight.")
        if c.appearance and self.info.channels != 3:
            raise UserError("The colours of a clip need 3 channels; set appearance=0 for grey ones.")
        widths = [PLACES**2 * backbone.embed_dim, c.hidden, c.hidden]
        frames = c.frames - 1
        self.motion = _head(widths, (*MOTION_MOST, frames, frames)) if c.motion else None
        self.appearance = _head(widths, APPEARANCE_MOST) if c.appearance else None

    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        c = self.config
        return {"windows": [random_window(meta, draws, c.frames, 1)], "short_side": short_side(c.image_size)}

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """ "clip" [B, T, C, S, S] in [0, 1], and its labels "motion" [B, 14] and "appearance" [B, 13].

        Flow is found on whole frames and cut with them, so that what enters the crop is no false boundary.
        """
        c = self.config
        (clips,) = windows(batch["video"], 1)
        places, mirrored = draws.uniform64("crop", 2), draws.uniform64("flip") < c.flip
        cut, flows = [], []
        for clip, place, mirror in zip(clips, places, mirrored, strict=True):
            clip = _at_least(_bytes(clip.to(draws.device)), c.image_size)
            top, left = (int(u * (n - c.image_size + 1)) for u, n in zip(place, clip.shape[-2:], strict=True))
            box = (..., slice(top, top + c.image_size), slice(left, left + c.image_size))
            cut.append(clip[box].flip(-1) if mirror else clip[box])
            if c.motion:
                flow = still_is_zero(clip_flow(clip[None], c.flow, finest=c.flow_scale)[0][box])
                flows.append(flow.flip(-1) * flow.new_tensor([-1, 1])[:, None, None] if mirror else flow)
        video = torch.stack(cut)
        made = {"clip": video.float() / 255}
        if c.motion:
            made["motion"] = motion_statistics(torch.stack(flows)).float()
        if c.appearance:
            made["appearance"] = appearance_statistics(video, c.colour).float()
        return made

    def forward(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        volume = self.backbone.forward_volume(views["clip"])
        places = F.adaptive_avg_pool3d(volume, (1, PLACES, PLACES)).flatten(1)
        terms = {}
        for name, head, weight in self._parts():
            error = (head(places) - views[name]).square().mean(0)
            self._note(name, error.detach(), views[name])
            terms[name] = weight * error.mean()
        return terms

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        views = self.views(batch, draws)
        marked = statistics_columns(views["clip"], views.get("motion"), views.get("appearance"))
        return {"statistics": {"first": views["clip"][:, 0], **marked}}

    def _parts(self) -> list[tuple[str, Any, float]]:
        c = self.config
        parts = [("motion", self.motion, c.motion), ("appearance", self.appearance, c.appearance)]
        return [part for part in parts if part[1] is not None]

    def _note(self, name: str, error: Tensor, labels: Tensor) -> None:
        """Share of the variance of the labels, within the batch, that is explained; 0 when nothing is learned."""
        spread = labels.var(0, correction=0)
        self.watch = self.watch | {f"explained_{name}": 1 - error.mean() / spread.mean().clamp_min(1e-6)}


def _head(widths: list[int], most: Sequence[int]) -> nn.Sequential:
    """Regresses labels of 1..most each, and begins at their middle."""
    head = mlp(*widths, len(most), norm=None)
    with torch.no_grad():
        head[-1].bias.copy_((torch.tensor(most) + 1) / 2)  # type: ignore[union-attr,operator]
    return head


def still_is_zero(flow: Tensor) -> Tensor:
    """Flow in steps of 1/64 px (the paper's 8-bit maps have 1/6): what stands still but for rounding does not move."""
    return (flow * 64).round() / 64


def _bytes(clip: Tensor) -> Tensor:
    return clip if clip.dtype == torch.uint8 else (clip * 255).round().clamp(0, 255).byte()


def _at_least(clip: Tensor, size: int) -> Tensor:
    """A clip uint8 [T, C, H, W] whose shorter side is less than `size`, enlarged to it."""
    height, width = clip.shape[-2:]
    short = min(height, width)
    if short >= size:
        return clip
    sides: Sequence[int] = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    return F.interpolate(clip, list(sides), mode="bilinear", antialias=True)
