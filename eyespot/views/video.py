"""Views of clips: one crop, mirror, colour, blur and solarisation for all frames of a clip.

Drawing them anew for every frame would let a network read the drawing instead of the motion, and costs CVRL about ten
points; `consistent=False` does so, as a control.

    >>> clips = torch.randint(0, 256, (4, 8, 3, 64, 86), dtype=torch.uint8)   # or a list of [T, C, H, W] of any sizes
    >>> clip_view(clips, draws.scope("view1"), ViewSpec(size=56)).pixels.shape
    torch.Size([4, 8, 3, 56, 56])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.views.image import View, ViewSpec, clean, view

Clips = Tensor | Sequence[Tensor]
FRAME = 1_000_003
"""Frame t of sample i draws as sample FRAME i + t + 1 where frames draw for themselves."""


def clip_view(clips: Clips, draws: Draws, spec: ViewSpec, *, consistent: bool = True) -> View:
    """One view of every clip.

    Args:
        clips: uint8 [B, T, C, H, W] or floating in [0, 1], or a list of B clips [T, C, H, W] of one length.
        draws: B draws.
        spec: how the view is drawn; every frame of a clip is drawn alike.
        consistent: whether frames share their draw.

    Returns:
        Pixels [B, T, C, S, S] in [0, 1]; the geometry is that of the first frames, [B, ...].

    Raises:
        UserError: clips of different lengths, or another number of draws.
    """
    frames, length = flat(clips)
    if len(clips) != len(draws):
        raise UserError(f"{len(clips)} clips came with draws for {len(draws)}; give draws one index a clip.")
    index = np.repeat(draws.index, length)
    if not consistent:
        index = index * FRAME + np.tile(np.arange(1, length + 1), len(clips))
    each = Draws(draws.seed, draws.epoch, draws.step, index, draws.device, draws.prefix)
    seen = view(frames, each, spec)
    first = {name: getattr(seen, name)[::length] for name in vars(seen) if name != "pixels"}
    return replace(seen, pixels=seen.pixels.unflatten(0, (-1, length)), **first)


def flat(clips: Clips) -> tuple[Tensor | list[Tensor], int]:
    """All frames one after the other, and the number of frames of a clip."""
    if not len(clips):
        raise UserError("There are no clips in the batch; give at least one.")
    wrong = next((c for c in clips if c.dim() != 4), None)
    if wrong is not None:
        raise UserError(f"A clip must be [T, C, H, W]; got a tensor of shape {list(wrong.shape)}.")
    lengths = {len(c) for c in clips}
    if len(lengths) > 1:
        raise UserError(f"Clips of {sorted(lengths)} frames are in one batch; read windows of one length.")
    frames = clips.flatten(0, 1) if isinstance(clips, Tensor) else [frame for clip in clips for frame in clip]
    return frames, lengths.pop()


def windows(video: Clips, count: int) -> list[Clips]:
    """The windows of a batch that was read with `count` of them: each [B, T, C, H, W], or a list of B clips.

    Args:
        video: [B, count, T, C, H, W], or a list of B tensors [count, T, C, H, W]. Clips with one window, [B, T, C, H,
            W] or a list of [T, C, H, W], stand for all of them.
    """
    if all(clip.dim() == 4 for clip in video):
        return [video] * count
    wrong = next((c for c in video if c.dim() != 5 or len(c) != count), None)
    if wrong is not None:
        raise UserError(f"Clips of {count} windows must be [{count}, T, C, H, W]; got {list(wrong.shape)}.")
    if isinstance(video, Tensor):
        return [video[:, k] for k in range(count)]
    return [[clip[k] for clip in video] for k in range(count)]


def clean_clips(clips: Clips, size: int, device: torch.device | str | None = None) -> Tensor:
    """The evaluation view: every frame resized and cut in the middle as pictures are, [B, T, C, size, size]."""
    frames, length = flat(clips)
    return clean(frames, size, device=device).unflatten(0, (-1, length))
