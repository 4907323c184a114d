"""Unsupervised segmentation by a method's own maps (prototypes, slots, words), version 1.

A method that divides pictures into groups itself has `segments(pixels [B, C, S, S]) -> int64 [B, h, w]`, the number
of the group that wins each cell, and `groups`, how many there are; the maps are brought to the size of the picture
bilinearly. The floor is the same method with random weights. The groups get names in two ways:

    mIoU, accuracy    one group for each class, by the one assignment for the whole test set that has the most pixels
                      right (Hungarian algorithm); groups that are left over count as wrong. Made for as many groups as
                      classes; with more groups it cannot be good.
    majority_...      each group has the class that most of its pixels in TRAINING pictures have. For more groups than
                      classes (over-clustering); it grows with their number, so compare equal numbers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.errors import UserError
from eyespot.evaluate.dense import PIXELS, Drawn, Fitted
from eyespot.metrics.segmentation import matched, renamed

NAME = "slots"
VERSION = 1
MAPS = "slots"
SETTINGS = ("image_size",)


def fit(drawn: Drawn, *, seed: int = 0, device: torch.device | str = "cpu") -> Fitted:
    """What the groups of one method are called; `drawn` holds maps of memberships in the groups.

    Args:
        seed, device: not used.
    """
    names = majority(drawn.pixels, drawn.labels, drawn.classes)
    config: dict[str, Any] = {"groups": drawn.pixels.shape[1], "classes": drawn.classes}
    config |= {"pixels": len(drawn.pixels), "drawn": PIXELS}
    by_majority = {"majority_": lambda counts: renamed(counts, torch.where(names < 0, len(counts), names))}
    return Fitted(
        lambda found: found, drawn.pixels.shape[1], lambda counts: matched(counts)[0], by_majority, config=config
    )


def majority(memberships: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class int64 [K] of most of each group's pixels, -1 for a group without any; memberships [P, K]."""
    held = memberships.T @ F.one_hot(labels, classes).to(memberships)
    return torch.where(held.sum(1) > 0, held.argmax(1), -1)


def memberships(method: nn.Module, pixels: Tensor) -> Tensor:
    """1 for the group that wins each cell, else 0: [B, K, h, w]."""
    host: Any = getattr(method, "host", method)
    return F.one_hot(host.segments(pixels), groups(host)).permute(0, 3, 1, 2).to(pixels.dtype)


def groups(method: Any) -> int:
    """How many groups the method has.

    Raises:
        UserError: it has no maps of its own.
    """
    if not callable(getattr(method, "segments", None)):
        raise UserError(
            f"{type(method).__name__} has no maps of its own to score; use --protocol segmentation, which clusters its "
            "features."
        )
    return int(method.groups)
