"""CVRL: spatiotemporal contrastive video representation learning (Qian, Meng, Gong, Yang, Wang, Belongie, Cui; CVPR
2021; arXiv 2008.03800).

Two clips of one video are positives, the clips of all other videos of the batch negatives. What it adds to SimCLR:
crop, mirror, colours and blur are drawn once a clip and are the same in all its frames, so that motion is not drowned,
and the time between the two clips is drawn so that distant clips are seldom forced to agree.

    L = mean_i -log( exp(a_i b_i / T) / (sum_j exp(a_i b_j / T) + sum_{j != i} exp(a_i a_j / T)) )
        + the same with a and b exchanged                                                                       (eq. 1)
    P(distance) ~ 1 - distance / m,  m the largest distance of two starts                               (section 3.3)

Paper and code: the paper states the mean over both clips of a video; the authors' code adds the two directions, so that
its loss is twice as large, and their rates belong to it: `reduction=mean` is the paper's. Blur in all first and a tenth
of the second clips, and solarisation in a fifth of the second, are only in the code; up to 64 px there is no blur
unless asked for. Its blur puts zeros around a frame, this one mirrors it. Defaults are for small nets: 8 frames of 16,
AdamW in place of SGD at 0.32, an embedding of 64 numbers behind two hidden layers of 128 in place of three of 2048.

    >>> method = CVRL(video_backbone("r3d_10", image_size=56), CVRLConfig(image_size=56))
    >>> method({"view1": torch.rand(4, 8, 3, 56, 56), "view2": torch.rand(4, 8, 3, 56, 56)})
    {'contrast': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import unknown
from eyespot.losses.clips import INTERVALS, clip_contrast, interval
from eyespot.losses.contrastive import cosines
from eyespot.methods.clips import short_side
from eyespot.methods.common import AsymmetricViews
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.heads import mlp
from eyespot.nets.video import VideoBackbone
from eyespot.process import gather
from eyespot.views.clip_pictures import first_and_last
from eyespot.views.image import ViewSpec
from eyespot.views.video import clip_view, windows


@dataclass(frozen=True)
class CVRLConfig(AsymmetricViews):
    frames: int = 8
    """Frames of a clip (16 in the paper)."""
    stride: int = 2
    """Frames of the video from one frame of a clip to the next."""
    interval: Literal["decreasing", "uniform", "increasing"] = "decreasing"
    """How probable a distance between the two clips is, the farther they are apart."""
    consistent: bool = True
    """Whether all frames of a clip are cropped, mirrored and coloured alike; false is the paper's control."""
    crop_min: float = 0.3
    """Least share of a frame's area that a crop keeps."""
    crop_ratio: float = 2.0
    """Largest width over height of a crop, and one over the smallest."""
    jitter: float = 1.0
    """Strength of the colour jitter."""
    temperature: float = 0.1
    """T, divides the cosines."""
    hidden: int = 128
    """Width of the projector's hidden layers (2048 in the paper)."""
    layers: int = 2
    """Hidden layers of the projector (3 in the paper)."""
    out: int = 64
    """Width of the embedding that is compared (128 in the paper)."""
    reduction: Literal["sum", "mean"] = "sum"
    """Whether the two directions are added, as in the authors' code, or averaged, as in the paper."""

    def view_pair(self) -> tuple[ViewSpec, ViewSpec]:
        """View 1 and view 2; saturation changes as much as brightness and contrast."""
        pair = super().view_pair()
        strong = (0.8 * self.jitter, 0.8 * self.jitter, 0.8 * self.jitter, 0.2 * self.jitter) if self.jitter else None
        first, second = (replace(s, jitter=strong, ratio=(1 / self.crop_ratio, self.crop_ratio)) for s in pair)
        return first, second


class CVRL(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key"."""

    needs = ("video",)
    Config = CVRLConfig
    extras = ("video",)
    accepts = ("positives", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        lr_batch=32,
        weight_decay=1e-4,
        batch_size=32,
        epochs=60,
        warmup_epochs=5,
        backbone="r3d_10",
        image_size=56,
    )

    def __init__(self, backbone: VideoBackbone, config: CVRLConfig = CVRLConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, temperature=POSITIVE, hidden=WIDTH, out=WIDTH, layers=(0, None), frames=WIDTH, stride=WIDTH)
        check_ranges(c, crop_ratio=(1.0, None), flip=SHARE)
        if c.interval not in INTERVALS:
            raise unknown("law of the interval", c.interval, INTERVALS)
        widths = [backbone.embed_dim, *[c.hidden] * c.layers, c.out]
        self.projector = mlp(*widths, norm="batch")

    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """Two windows, in random order; of a video that is shorter than a clip they begin anywhere."""
        c, length = self.config, meta["source"].length(meta["index"])
        most = length - (c.frames - 1) * c.stride
        u, place, first, order = draws.uniform64("interval", 4)[0].tolist()
        if most <= 0:
            starts = [int(u * length), int(place * length)]
        else:
            apart = int(interval(u, most, c.interval))
            start = int(first * (most - apart))
            starts = [start, start + apart] if order < 0.5 else [start + apart, start]
        return {"windows": [(s, c.frames, c.stride) for s in starts], "short_side": short_side(c.image_size)}

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Both clips, [B, T, C, S, S] each, of "video" [B, 2, T, C, H, W] or a list of [2, T, C, H, W]."""
        made = zip(("view1", "view2"), windows(batch["video"], 2), self.config.view_pair(), strict=True)
        same = self.config.consistent
        return {name: clip_view(clips, draws.scope(name), spec, consistent=same).pixels for name, clips, spec in made}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Embeddings "query" of the first clips and "key" of the second, [B, out] each, not normalised."""
        z = self.projector(self.backbone(torch.cat([views["view1"], views["view2"]])))
        query, key = z.chunk(2)
        return {"query": query, "key": key}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        a, b = gather(encoded["query"]), gather(encoded["key"])
        forth, back = clip_contrast(a, b, c.temperature)
        own = torch.arange(len(a), device=a.device)
        self.watch = {"found": (cosines(a, b).argmax(1) == own).float().mean().detach()}
        return {"contrast": (forth + back) if c.reduction == "sum" else (forth + back) / 2}

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        views = self.views(batch, draws)
        return {"views": first_and_last(views["view1"], "clip 1") | first_and_last(views["view2"], "clip 2")}

    def plateau(self, batch: int) -> dict[str, float]:
        return {"contrast": (2 if self.config.reduction == "sum" else 1) * math.log(2 * batch - 1)}
