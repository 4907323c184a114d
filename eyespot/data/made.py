"""RGB pictures of one size that are made when they are read, by themselves or of the pictures of another source."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from eyespot.data.decode import BadFile, apply_plan
from eyespot.data.sources import Shape, Source

CHANNELS = 3


class Drawn(Source):
    """Pictures uint8 [3, side, side] that `draw` makes."""

    side: ClassVar[int]

    @abstractmethod
    def draw(self, i: int) -> Tensor:
        """Picture i, uint8 [3, side, side]."""

    def path(self, i: int) -> str:
        return f"{self.name}#{i}"

    def shape(self, i: int) -> Shape:
        return CHANNELS, self.side, self.side, False

    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        if channels not in (None, CHANNELS):
            raise BadFile(self.path(i), f"has {CHANNELS} channels where {channels} are asked for")
        return apply_plan(self.draw(i), plan)


class MadeSource(Drawn):
    """Pictures made of those of `source`.

    Args:
        kind: the name of this built-in data.
        source: what they are made of.
    """

    def __init__(self, kind: str, source: Source):
        self.source, self.name, self.threads = source, f"{kind}:{source.name}", source.threads

    def prepare(self) -> None:
        self.source.prepare()


def resized(picture: Tensor, side: int) -> Tensor:
    """A picture [3, H, W], uint8 or in [0, 1], as uint8 [3, side, side], a copy."""
    pixels = picture.float() * (1 if picture.dtype == torch.uint8 else 255)
    sized = functional.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True, align_corners=False)
    return sized[0].round().clamp(0, 255).to(torch.uint8)
