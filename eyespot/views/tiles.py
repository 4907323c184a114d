"""Small pictures that show what is no picture: a text, a row of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 96
OWN, OTHER = (0.85, 0.35, 0.1), (0.35, 0.45, 0.6)


def text_tiles(texts: Sequence[str], side: int = TILE) -> Tensor:
    """Texts on white, cut where they are too long: [B, 3, side, side] in [0, 1]. Signs that pillow's own font lacks are
    shown as boxes."""
    font, tiles = ImageFont.load_default(10), []
    for text in texts:
        tile = Image.new("RGB", (side, side), (255, 255, 255))
        lines = textwrap.wrap(text, side // 5)[: side // 12]
        ImageDraw.Draw(tile).multiline_text((2, 2), "\n".join(lines), (30, 30, 30), font=font, spacing=1)
        tiles.append(torch.from_numpy(np.array(tile)).permute(2, 0, 1))
    return torch.stack(tiles).float() / 255


def bar_tiles(values: Tensor, own: Tensor, side: int = TILE) -> Tensor:
    """Rows of numbers as bars from the lowest to the highest of all: [B, 3, side, side] in [0, 1].

    Args:
        values: [B, n].
        own: int64 [B], the bar that is marked.
    """
    low, high = values.min(), values.max()
    height = ((values - low) / (high - low).clamp_min(1e-12)).cpu()
    column = (torch.arange(side) * values.shape[1]) // side
    level = 1 - (torch.arange(side).float() + 0.5) / side
    filled = height[:, column][:, None, :] > level[None, :, None]
    marked = column[None, None, :] == own.cpu()[:, None, None]
    colour = torch.where(marked[:, None], torch.tensor(OWN).view(1, 3, 1, 1), torch.tensor(OTHER).view(1, 3, 1, 1))
    return torch.where(filled[:, None], colour, torch.ones(1, 3, 1, 1))
