"""Modalities: what the samples of a method are, how they are read, and what a frozen network sees of them.

One modality is one module with the functions of `Modality`. A method says by `needs` which fields it reads, and that
names the modality of its data; a backbone says by its `modality` which inputs it takes. The two differ where a method
has several towers: CLIP learns from "pairs", and its main tower takes an "image".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.errors import UserError

Inputs = Tensor | Mapping[str, Tensor]
"""What a frozen network takes: one tensor [B, ...], or several by name."""

FIELDS: Mapping[str, frozenset[str]] = {
    "image": frozenset({"image"}),
    "video": frozenset({"video"}),
    "audio": frozenset({"audio"}),
    "pairs": frozenset({"image", "text"}),
    "points": frozenset({"points"}),
    "posed": frozenset({"image_pair", "pose"}),
}
"""The sample fields of each modality; labels and sample numbers come with all of them."""
COMMON = frozenset({"label", "index"})


@dataclass(frozen=True)
class Reading:
    """How data is read: what the options of every command say about it."""

    split: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    channels: int | None = None
    workers: int | None = None
    max_bad: float = 0.05
    cache_bytes: int | None = None

    @staticmethod
    def of(options: Any, **changed: Any) -> Reading:
        """What a command's options say, with some of it changed."""
        names = ("split", "image_column", "text_column", "label_column", "channels", "workers", "max_bad")
        return Reading(**({name: getattr(options, name) for name in names} | changed))


class Modality(Protocol):
    """The functions of a modality's module."""

    UNIT: str
    """What several samples are called: pictures, clips."""
    TOWER: str
    """The modality of the main tower of its methods."""

    def open_data(self, value: Any, reading: Reading) -> BatchData:
        """Batches of what a path or an object holds."""
        ...

    def clean(self, batch: Mapping[str, Any], size: int, device: torch.device | None = None) -> Inputs:
        """What a frozen network sees of a batch, the same every time; of `size` pixels, points or samples."""
        ...

    def usual_size(self, data: BatchData) -> int:
        """The size the samples have by themselves: the median short side of pictures in pixels."""
        ...


def get(name: str) -> Modality:
    """The module of a modality."""
    return cast(Modality, importlib.import_module(f"eyespot.modality.{name}"))


def of_needs(needs: str | tuple[str, ...], method: str) -> Modality:
    """The modality of the data of a method.

    Args:
        needs: the sample fields it reads.
        method: its name, for the message.
    """
    fields = frozenset((needs,) if isinstance(needs, str) else needs) - COMMON
    for name, own in FIELDS.items():
        if fields == own:
            return get(name)
    known = "; ".join(", ".join(sorted(own)) for own in FIELDS.values())
    raise UserError(
        f"{method} needs the fields {', '.join(sorted(fields))}, which no kind of data has; known: {known}."
    )


def of_backbone(net: Any) -> Modality:
    """The modality of what a network takes; pictures where it does not say."""
    return get(getattr(net, "modality", "image"))


# --- inputs ---------------------------------------------------------------------------------------------------
def count(inputs: Inputs) -> int:
    """B."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Rows start..stop."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    return {name: value[start:stop] for name, value in inputs.items()}


def moved(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """On the device, floating numbers as `dtype`."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, dtype if inputs.is_floating_point() else inputs.dtype)
    return {name: cast(Tensor, moved(value, device, dtype)) for name, value in inputs.items()}
