"""Objects: scenes of several flat shapes in front of a background, with the mask of each; the built-in data
`objects:train`, `objects:test` and `objects:general`.

A test of methods that take pictures apart. Discs, squares and triangles of three sizes, turned and placed at random,
lie over each other, at least a quarter of each to be seen. Colour alone does not say what belongs together: there are
six, so objects share them, surfaces are striped, shaded or plain, and the dark background fades. Scenes of `train` and
`test` have 2 or 3 objects, those of `general` 4 or 5: more than a method has met.

The mask of a scene numbers its objects from the front, 1, 2, ..., and is 0 where the background is seen. `layers` are
the complete shapes, also where others hide them. Everything is a pure function of (seed, split, scene).

Source: the sets of Yuan et al., "Compositional scene representation learning via reconstruction: a survey" (TPAMI
2023; arXiv 2202.07135), in kind: few objects that hide each other, and a split with more of them.

    >>> scenes = open_source("objects:train")
    >>> scenes.load(0).shape, scenes.mask(0).shape, scenes.layers(0).shape    # [3, 48, 48], [48, 48], [K, 48, 48]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eyespot.data.made import Drawn
from eyespot.draws import Draws
from eyespot.errors import UserError, nearest

NAME = "objects"
SIDE, FINE = 48, 3
"""Pixels: side of a scene; samples along a pixel's side."""
SPLITS = {"train": (4000, 2, 3), "test": (400, 2, 3), "general": (400, 4, 5)}
"""Scenes, fewest and most objects of a split."""
SHAPES = ("disc", "square", "triangle")
SURFACES = ("plain", "striped", "shaded")
RADII = (0.15, 0.19, 0.23)
"""Of the circle around a shape, as a share of the side."""
VISIBLE = 0.25
"""Least share of an object that is seen."""
COLOURS = np.array([[1, 0.1, 0.1], [0.1, 1, 0.1], [0.15, 0.25, 1], [1, 1, 0.1], [0.1, 1, 1], [1, 0.1, 1]])
"""RGB of the objects, each far from every background (square distance above 0.25)."""
GROUND = (0.05, 0.25)
"""Grey of a background's middle."""
TRIES = 100


@dataclass(frozen=True)
class Scene:
    """One scene: pixels uint8 [3, S, S], and the complete shapes bool [K, S, S] from the front."""

    pixels: np.ndarray
    layers: np.ndarray


class ObjectSource(Drawn):
    """Scenes of one split.

    Args:
        split: train, test or general.
        seed: of the scenes.
        count: how many; None takes the split's.

    Raises:
        UserError: there is no such split.
    """

    side = SIDE

    def __init__(self, split: str = "train", seed: int = 0, count: int | None = None):
        if split not in SPLITS:
            raise UserError(f"The scenes of objects have no split '{split}'; {nearest(split, SPLITS)}")
        self.split, self.seed, self.name = split, seed, f"{NAME}:{split}"
        self.count = SPLITS[split][0] if count is None else count

    def __len__(self) -> int:
        return self.count

    def draw(self, i: int) -> Tensor:
        return torch.from_numpy(self.scene(i).pixels)

    def mask(self, i: int) -> Tensor:
        """The number of the object that is seen, from the front and from 1; 0 is the background: int64 [S, S]."""
        return torch.from_numpy(seen(self.scene(i).layers))

    def layers(self, i: int) -> Tensor:
        """The complete shapes from the front, bool [K, S, S]."""
        return torch.from_numpy(self.scene(i).layers)

    def scene(self, i: int) -> Scene:
        """Scene i, drawn anew."""
        draws = Draws(self.seed, index=[i], prefix=f"{NAME}/{self.split}/")
        shapes = self._layout(draws)
        coverage = pooled(shapes)
        return Scene(_painted(coverage, draws), coverage >= 0.5)

    def _layout(self, draws: Draws) -> np.ndarray:
        """Shapes that are all visible, bool [K, S * FINE, S * FINE] from the front."""
        _, low, high = SPLITS[self.split]
        count = low + int(draws.uniform64("count")[0] * (high - low + 1))
        for attempt in range(TRIES):
            shapes = np.stack([_shape(draws.scope(f"{attempt}/{k}")) for k in range(count)])
            shown = visible(shapes) >= VISIBLE
            if shown.all():
                break
        return shapes[shown]  # objects that stay hidden are left out


def open_objects(split: str) -> ObjectSource:
    """The scenes of `objects:SPLIT`."""
    return ObjectSource(split)


def seen(layers: np.ndarray) -> np.ndarray:
    """Which of the layers bool [K, H, W] is seen, from 1, and 0 where none is: int64 [H, W]."""
    return np.where(layers.any(0), layers.argmax(0) + 1, 0).astype(np.int64)


def visible(layers: np.ndarray) -> np.ndarray:
    """The share of each complete shape [K, H, W], from the front, that no other hides: float64 [K]."""
    winners = seen(layers)
    shown = np.array([(winners == k + 1).sum() for k in range(len(layers))], np.float64)
    return shown / layers.sum((1, 2)).clip(1)


def pooled(shapes: np.ndarray) -> np.ndarray:
    """Shares of pixels that fine shapes [K, S * FINE, S * FINE] cover, float32 [K, S, S]."""
    return shapes.reshape(len(shapes), SIDE, FINE, SIDE, FINE).mean((2, 4), dtype=np.float32)


# --- one object -----------------------------------------------------------------------------------------------
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [side, 1] and columns [1, side] of the middles of pixels, the picture's edges at 0 and 1."""
    middle = (np.arange(side) + 0.5) / side
    return middle[:, None], middle[None]


def _shape(draws: Draws) -> np.ndarray:
    """A shape somewhere in the scene, bool [S * FINE, S * FINE]."""
    kind, size, turn, row, column = draws.uniform64("shape", 5)[0]
    radius = RADII[int(size * len(RADII))]
    rows, columns = _grid(SIDE * FINE)
    y = rows - (radius + row * (1 - 2 * radius))
    x = columns - (radius + column * (1 - 2 * radius))
    angle = 2 * np.pi * turn
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / radius, (y * np.cos(angle) - x * np.sin(angle)) / radius
    name = SHAPES[int(kind * len(SHAPES))]
    if name == "disc":
        return u * u + v * v < 0.85**2
    if name == "square":
        return np.maximum(abs(u), abs(v)) < np.sqrt(0.5)
    sides = [u * np.cos(a) + v * np.sin(a) for a in np.pi * np.array([0, 2, 4]) / 3]
    return np.maximum.reduce(sides) < 0.5


# --- colours --------------------------------------------------------------------------------------------------
def _painted(coverage: np.ndarray, draws: Draws) -> np.ndarray:
    """The scene uint8 [3, S, S] of shapes that cover [K, S, S] of the pixels, from the front."""
    low, high = GROUND
    rows, columns = _grid(SIDE)
    grey, angle, change = draws.uniform64("ground", 3)[0]
    along = (columns - 0.5) * np.cos(2 * np.pi * angle) + (rows - 0.5) * np.sin(2 * np.pi * angle)
    picture = np.repeat((low + (high - low) * grey + 0.2 * change * along)[None], 3, 0)
    chosen = np.floor(draws.uniform64("colour", len(coverage))[0] * len(COLOURS)).astype(int)
    for k in reversed(range(len(coverage))):
        surface = COLOURS[chosen[k]][:, None, None] * _surface(draws.scope(f"surface/{k}"))
        picture = picture + coverage[k] * (surface - picture)
    noise = draws.noise("noise", 3, SIDE, SIDE)[0].numpy() - 0.5
    return np.rint((picture + 0.04 * noise).clip(0, 1) * 255).astype(np.uint8)


def _surface(draws: Draws) -> np.ndarray:
    """Brightness of a surface over the scene, [S, S] of 1 or a little less."""
    kind, angle, phase = draws.uniform64("look", 3)[0]
    rows, columns = _grid(SIDE)
    along = columns * np.cos(2 * np.pi * angle) + rows * np.sin(2 * np.pi * angle)
    name = SURFACES[int(kind * len(SURFACES))]
    if name == "striped":
        return np.where(np.sin(2 * np.pi * (along * SIDE / 6 + phase)) > 0, 1.0, 0.7)
    if name == "shaded":
        return 0.85 + 0.15 * np.sin(2 * np.pi * (along * 1.5 + phase))
    return np.ones((SIDE, SIDE))
