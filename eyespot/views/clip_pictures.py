"""Clips and their statistics to look at: the blocks that the labels name, painted on frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eyespot.losses.clip_statistics import BINS, partitions

MOVES, CHANGES, STAYS = (1.0, 0.25, 0.1), (1.0, 0.8, 0.1), (0.1, 0.6, 1.0)
"""Colours of the block with most motion, most change of colours, and least."""
COVER = 0.45
"""How much a block's colour covers the frame."""


def first_and_last(clips: Tensor, name: str) -> dict[str, Tensor]:
    """The first and the last frame of clips [B, T, C, H, W], two columns."""
    return {f"{name} first": clips[:, 0], f"{name} last": clips[:, -1]}


@torch.no_grad()
def statistics_columns(clips: Tensor, motion: Tensor | None, appearance: Tensor | None) -> dict[str, Tensor]:
    """Columns of pictures [B, 3, S, S]: the last frame of each clip with the blocks of its labels, pattern by pattern.

    Args:
        clips: [B, T, 3, S, S] in [0, 1].
        motion: [B, 14], see `eyespot.losses.clip_statistics.motion_statistics`; the block of u, with a line in its
            direction.
        appearance: [B, 13]; the blocks whose colours change most and least.
    """
    columns = {}
    last = clips[:, -1] if clips.shape[2] == 3 else clips[:, -1].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for pattern in range(3):
        if motion is not None:
            block, angle = motion[:, 4 * pattern], motion[:, 4 * pattern + 1]
            columns[f"motion {pattern + 1}"] = with_line(painted(last, block, pattern, MOVES), block, angle, pattern)
        if appearance is not None:
            most, least = appearance[:, 4 * pattern], appearance[:, 4 * pattern + 2]
            columns[f"colour {pattern + 1}"] = painted(painted(last, least, pattern, STAYS), most, pattern, CHANGES)
    return columns


def painted(frames: Tensor, block: Tensor, pattern: int, colour: tuple[float, float, float]) -> Tensor:
    """Frames [B, 3, S, S] with one block each in a colour; block [B] counts from 1, 0 is none; pattern is 0, 1 or 2."""
    masks = partitions(frames.shape[-1])[pattern].to(frames.device)
    inside = masks[(block.long() - 1).clamp_min(0)] & (block > 0)[:, None, None]
    cover = COVER * inside[:, None].to(frames.dtype)
    return frames * (1 - cover) + frames.new_tensor(colour)[:, None, None] * cover


def with_line(frames: Tensor, block: Tensor, angle: Tensor, pattern: int) -> Tensor:
    """Frames with a white line from the middle of the block to where its motion boundary grows; angle [B] in 1..8."""
    size = frames.shape[-1]
    masks = partitions(size)[pattern].to(frames.dtype).to(frames.device)
    at = torch.arange(size, dtype=frames.dtype, device=frames.device)
    count = masks.sum((1, 2))
    middle = torch.stack([(masks.sum(1) * at).sum(1), (masks.sum(2) * at).sum(1)], 1) / count[:, None]  # x, y
    out = frames.clone()
    for i, (b, a) in enumerate(zip(block.long().tolist(), angle.long().tolist(), strict=True)):
        if b < 1:
            continue
        # derivatives are left minus right and upper minus lower: they point away from what grows
        turn = 2 * math.pi * (a - 1) / BINS + math.pi
        for step in range(size // 4):
            x, y = (
                round(float(m) + step * d) for m, d in zip(middle[b - 1], (math.cos(turn), math.sin(turn)), strict=True)
            )
            if 0 <= x < size and 0 <= y < size:
                out[i, :, y, x] = 1.0
    return out
