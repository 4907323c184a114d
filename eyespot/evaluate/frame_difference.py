"""The trivial control of every number on clips: how much neighbouring frames differ, without any network.

On clips of fights it tells the classes better than many a network, so a linear probe that does not beat it has learned
nothing about motion that a subtraction does not know.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eyespot.data.batches import BatchData
from eyespot.errors import UserError
from eyespot.evaluate import linear
from eyespot.evaluate.features import extract_many

NAME = "frame_difference"


def frame_difference(clips: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames: [B, 1] of clips [B, T, C, H, W]; 0 for a single frame."""
    if clips.shape[1] < 2:
        return clips.new_zeros(len(clips), 1)
    return (clips[:, 1:] - clips[:, :-1]).abs().mean((1, 2, 3, 4))[:, None]


class FrameDifference(nn.Module):
    """A network of one feature, for whatever evaluates networks of clips."""

    modality: ClassVar[str] = "video"

    def __init__(self, image_size: int = 56):
        super().__init__()
        self.image_size = image_size

    def forward(self, clips: Tensor) -> Tensor:
        return frame_difference(clips)


def baseline(train: BatchData, test: BatchData, classes: int, *, image_size: int = 56, seed: int = 0) -> dict[str, Any]:
    """The linear probe's accuracies of this one feature, in percent, under the names of the linear protocol.

    Args:
        train, test: labelled clips whose classes have the same numbers.
        classes: their number.

    Raises:
        UserError: there are no labels.
    """
    if train.labels is None or test.labels is None:
        raise UserError("The frame difference is compared by classes, and the clips have none; use class folders.")
    net = FrameDifference(image_size)
    sides = [extract_many([net], data, image_size=image_size, batch_size=64) for data in (train, test)]
    (x, y), (a, b) = ((side.vectors[0], torch.from_numpy(side.labels)) for side in sides)
    return linear.run(x, y, a, b, classes, seed=seed)[0]
