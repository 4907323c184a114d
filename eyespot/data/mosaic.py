"""Mosaics: small scenes of four labelled pictures each, with the class of every pixel; the built-in data `mosaic:PATH`.

A scene of several objects without a scene data set: four different pictures, drawn without replacement, lie in a 2 x 2
grid of 64 x 64 pixels. Each is brought to 40 px, lies up to 4 px beside the middle of its cell, and the four are laid
in an order of their own, so that the borders move and some objects are partly hidden, and no pixel stays empty. The
mask holds the class of the picture that is seen; the scene as a whole has no label.

Every picture is used once, so n pictures give n // 4 scenes. All draws are pure functions of (seed, scene).

    >>> scenes = open_source("mosaic:cifar10/train.parquet")
    >>> scenes.load(0).shape, scenes.mask(0).shape        # [3, 64, 64] uint8, [64, 64] int64
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eyespot.data.made import CHANNELS, MadeSource, resized
from eyespot.data.sources import Source
from eyespot.draws import Draws, epoch_permutation
from eyespot.errors import UserError

NAME = "mosaic"
CELL, TILE, SHIFT = 32, 40, 4
"""Pixels: side of a cell, of a picture in it, and the most that a picture lies beside its middle."""
SIDE = 2 * CELL


class MosaicSource(MadeSource):
    """Scenes of four pictures.

    Args:
        source: labelled pictures; those without a label are left out.
        seed: of the scenes.

    Attributes:
        rows: int64 [n, 4], the pictures of each scene: upper left, upper right, lower left, lower right.
        mask_names: the classes that the mask numbers.

    Raises:
        UserError: there are no labels, or fewer than four pictures.
    """

    side = SIDE

    def __init__(self, source: Source, seed: int = 0):
        known = np.flatnonzero(source.labels >= 0) if source.labels is not None else np.zeros(0, np.int64)
        if len(known) < 4:
            raise UserError(
                f"Mosaics are made of four labelled pictures each and '{source.name}' has {len(known)}; give labelled "
                "pictures after 'mosaic:'."
            )
        super().__init__(NAME, source)
        self.seed = seed
        order = known[epoch_permutation(seed, 0, len(known), NAME)]
        self.rows = order[: len(order) // 4 * 4].reshape(-1, 4)
        self.mask_names = source.class_names

    def __len__(self) -> int:
        return len(self.rows)

    def places(self, i: int) -> list[tuple[int, int, int]]:
        """(tile, top, left) of the four pictures, in the order in which they are laid; may begin outside."""
        draws = Draws(self.seed, index=[i], prefix=f"{NAME}/")
        shifts = draws.uniform64("shift", 8)[0].reshape(4, 2)
        moved = np.floor(shifts * (2 * SHIFT + 1)).astype(int) - SHIFT
        order = np.argsort(draws.uniform64("order", 4)[0])
        first = (CELL - TILE) // 2
        return [
            (int(k), int(k) // 2 * CELL + first + int(moved[k, 0]), int(k) % 2 * CELL + first + int(moved[k, 1]))
            for k in order
        ]

    def draw(self, i: int) -> Tensor:
        scene = torch.zeros(CHANNELS, SIDE, SIDE, dtype=torch.uint8)
        for tile, top, left in self.places(i):
            y, x, inside = _window(top, left)
            scene[:, y, x] = _tile(self.source.load(int(self.rows[i, tile]), channels=CHANNELS))[inside]
        return scene

    def mask(self, i: int) -> Tensor:
        """The class of every pixel, int64 [64, 64]."""
        assert self.source.labels is not None
        mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        for tile, top, left in self.places(i):
            y, x, _ = _window(top, left)
            mask[y, x] = int(self.source.labels[self.rows[i, tile]])
        return mask


def _window(top: int, left: int) -> tuple[slice, slice, tuple[slice, slice, slice]]:
    """Where a tile lies in the scene, and which part of it is seen."""
    y, x = (slice(max(0, a), min(SIDE, a + TILE)) for a in (top, left))
    return y, x, (slice(None), slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left))


def _tile(picture: Tensor) -> Tensor:
    """The middle of a picture [3, H, W] as uint8 [3, TILE, TILE]."""
    side = min(picture.shape[-2:])
    top, left = ((n - side) // 2 for n in picture.shape[-2:])
    return resized(picture[:, top : top + side, left : left + side], TILE)


def open_mosaic(
    path: str, split: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> MosaicSource:
    """The scenes of `mosaic:PATH`."""
    from eyespot.data.sources import open_source

    return MosaicSource(open_source(path, split=split, image_column=image_column, label_column=label_column))
