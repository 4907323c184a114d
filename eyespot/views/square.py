"""The view of methods that pair pictures with words: a square of the picture, nothing recoloured, since captions speak
of colours and places."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.views.resample import Images, resized_crops, to_unit


def square_boxes(draws: Draws, source: np.ndarray, smallest: float) -> np.ndarray:
    """Squares (top, left, height, width) int64 [B, 4] at a random place of pictures of `source` [B, 2] (height, width).

    Their area is a share in [smallest, 1] of the largest square's; with 1 they differ in their place alone, as CLIP's
    (Radford et al. 2021, section 2.4).
    """
    u = draws.uniform64("crop", 3)
    short = source.min(1)
    side = np.maximum(1, np.rint(short * np.sqrt(smallest + (1 - smallest) * u[:, 0]))).astype(np.int64)
    corner = np.floor(u[:, 1:] * (source - side[:, None] + 1)).astype(np.int64)
    return np.concatenate([corner, side[:, None], side[:, None]], 1)


@torch.no_grad()
def square_view(images: Images, draws: Draws, size: int, smallest: float = 1.0, flip: float = 0.0) -> Tensor:
    """Random squares [B, C, size, size] in [0, 1] of pictures.

    Args:
        images: uint8 [B, C, H, W] or floating in [0, 1], or a list of B pictures [C, H, W] of any sizes.
        smallest: see `square_boxes`.
        flip: probability of a left-right mirror.
    """
    source = np.array([image.shape[-2:] for image in images])
    mirrored = draws.uniform64("flip") < flip
    with torch.autocast(draws.device.type, enabled=False):
        boxes = square_boxes(draws, source, smallest)
        pixels = resized_crops(images, boxes, mirrored, np.zeros_like(mirrored), size, "bilinear", draws.device)
        return to_unit(pixels).clamp_(0, 1)
