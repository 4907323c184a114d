"""Overlapping patches of a grid over a picture, each moved a little (OBoW's small views)."""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import UserError

GRID = 3
"""Patches a side."""


def grid_starts(draws: Draws, size: int, patch: int, jitter: int, count: int) -> Tensor:
    """Where `count` of the 9 patches of each picture begin, without repetition: int64 [B, count, 2] (top, left).

    Patches lie size - patch - jitter over 2 apart and are moved by 0 to `jitter` pixels down and right.

    Raises:
        UserError: the patches do not fit, or there are not so many.
    """
    if count > GRID**2 or patch + jitter > size or jitter < 0:
        raise UserError(
            f"{count} patches of {patch} pixels, moved by up to {jitter}, do not fit into a grid of {GRID} x {GRID} "
            f"over {size} pixels; ask for fewer or smaller ones."
        )
    step = (size - patch - jitter) // (GRID - 1)
    cells = draws.uniform("cells", GRID**2).argsort(1)[:, :count]
    corners = torch.stack([cells // GRID, cells % GRID], -1) * step
    return corners + draws.integers("moved", jitter + 1, 2 * count).view(-1, count, 2)


def cut(pixels: Tensor, starts: Tensor, patch: int) -> Tensor:
    """The patches [count, B, C, patch, patch] of pictures [B, C, H, W] at `starts` [B, count, 2] (top, left)."""
    along = torch.arange(patch, device=pixels.device)
    rows, columns = (starts[..., i, None].to(pixels.device) + along for i in (0, 1))
    picture = torch.arange(len(pixels), device=pixels.device)[:, None, None, None]
    # an index before and after a slice puts the channels last
    return pixels[picture, :, rows[..., :, None], columns[..., None, :]].permute(1, 0, 4, 2, 3)
