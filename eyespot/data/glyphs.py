"""Glyphs: pictures whose class is a small mark at a random place, on backgrounds that say nothing about it; the
built-in data `glyphs:PATH`.

Few places of the picture hold all that tells the classes apart: a test of methods that weigh regions. Every picture of
PATH is the background of one sample, brought to 32 px. One of 20 marks of 8 x 8 pixels, black and white, alike when
mirrored, lies on it. Mark and place are pure functions of (seed, number of samples, sample), so that two sets do not
share them unless they are of one size.

    >>> pictures = open_source("glyphs:cifar10/train.parquet")
    >>> pictures.load(0).shape, pictures.labels[0], pictures.box(0)      # [3, 32, 32] uint8, class, (top, left, size)
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from eyespot.data.made import MadeSource, resized
from eyespot.data.sources import Source
from eyespot.draws import Draws

NAME = "glyphs"
CLASSES, GLYPH, SIDE = 20, 8, 32
"""Number of marks; pixels: side of a mark and of a picture."""


@cache
def glyphs() -> Tensor:
    """The marks, uint8 [CLASSES, GLYPH, GLYPH] of 0 and 255, half of each white; any two differ in at least 24 pixels.

    The left half is a grid of 4 x 4 cells, each one pixel wide and two high; the right half mirrors it.
    """
    chosen: list[int] = []
    for code in range(1 << 16):
        if code.bit_count() == 8 and all((code ^ other).bit_count() >= 6 for other in chosen):
            chosen.append(code)
        if len(chosen) == CLASSES:
            break
    bits = torch.tensor([[code >> k & 1 for k in range(16)] for code in chosen], dtype=torch.uint8)
    left = bits.view(CLASSES, 4, 4).repeat_interleave(2, 1)
    return 255 * torch.cat([left, left.flip(-1)], -1)


class GlyphSource(MadeSource):
    """Pictures of `source` with a mark each.

    Args:
        source: the backgrounds; their labels are not used.
        seed: of marks and places.
    """

    side = SIDE
    labels: np.ndarray
    class_names = tuple(f"glyph{k:02d}" for k in range(CLASSES))

    def __init__(self, source: Source, seed: int = 0):
        super().__init__(NAME, source)
        draws = Draws(seed, index=np.arange(len(source)), prefix=f"{NAME}{len(source)}/")
        self.labels = np.floor(draws.uniform64("class", 1)[:, 0] * CLASSES).astype(np.int64)
        self.places = np.floor(draws.uniform64("place", 2) * (SIDE - GLYPH + 1)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def box(self, i: int) -> tuple[int, int, int]:
        """(top, left, side) of the mark in pixels."""
        return int(self.places[i, 0]), int(self.places[i, 1]), GLYPH

    def draw(self, i: int) -> Tensor:
        picture = resized(self.source.load(i, channels=3), SIDE)
        top, left, side = self.box(i)
        picture[:, top : top + side, left : left + side] = glyphs()[self.labels[i]]
        return picture


def open_glyphs(
    path: str, split: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> GlyphSource:
    """The pictures of `glyphs:PATH`."""
    from eyespot.data.sources import open_source

    return GlyphSource(open_source(path, split=split, image_column=image_column, label_column=label_column))
