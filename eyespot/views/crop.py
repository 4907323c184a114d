"""Where a view looks: random boxes, pairs of boxes forced to overlap, and the geometry between views.

A box is (top, left, height, width) in pixels of the source picture. Boxes are drawn on the host from columns of
uniform numbers, so that the box of a sample depends on its own draws only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eyespot.draws import Draws

TRIES = 10
"""How often torchvision's rule tries an area and a ratio before it falls back to the central crop."""


def _candidates(
    u: np.ndarray, source: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [B, T, 4] for uniform numbers [B, T, 4] (area, ratio, top, left), and which fit the picture [B, T]."""
    height, width = source[:, :1].astype(np.float64), source[:, 1:].astype(np.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * u[..., 1])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top = np.floor(u[..., 2] * (height - h + 1))
    left = np.floor(u[..., 3] * (width - w + 1))
    return np.stack([top, left, h, w], axis=-1), fits


def central_boxes(source: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest central box [B, 4] of each picture [B, 2] (height, width) whose ratio is in range."""
    height, width = source[:, 0].astype(np.float64), source[:, 1].astype(np.float64)
    w = np.minimum(width, np.rint(height * max(ratio)))
    h = np.minimum(height, np.rint(width / min(ratio)))
    w, h = np.maximum(w, 1), np.maximum(h, 1)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=-1).astype(np.int64)


def random_boxes(
    draws: Draws,
    source: np.ndarray,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    name: str = "crop",
) -> np.ndarray:
    """Boxes of a random resized crop by torchvision's rule: ten tries of area and ratio, then the central crop.

    Args:
        draws: draws of the batch.
        source: [B, 2] height and width of the pictures.
        scale: share of the picture's area, uniform.
        ratio: width over height, log-uniform.
        name: name of the draw.

    Returns:
        int64 [B, 4], (top, left, height, width).
    """
    u = draws.uniform64(name, 4 * TRIES).reshape(-1, TRIES, 4)
    boxes, fits = _candidates(u, source, scale, ratio)
    return _first(boxes, fits, central_boxes(source, ratio))


def centred_boxes(
    draws: Draws,
    source: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    side: float,
    beta: float,
) -> np.ndarray:
    """Boxes of the size that `random_boxes` draws, whose centres lie in a box in the middle of the picture
    (ContrastiveCrop, Peng et al., CVPR 2022, with a fixed box as in Wu et al., ICCV 2023).

    Args:
        draws, source, scale, ratio: as for `random_boxes`.
        side: of the box, as a share of the picture's; with 0 every crop is central.
        beta: a of Beta(a, a), by which the centre is drawn along each side; below 1 it keeps to the box's edges.

    Returns:
        int64 [B, 4], (top, left, height, width), moved into the picture where they would stick out.
    """
    from scipy.special import betaincinv

    size = random_boxes(draws, source, scale, ratio)[:, 2:]
    place = 0.5 + side * (betaincinv(beta, beta, draws.uniform64("centre", 2)) - 0.5)
    corner = np.rint(place * source - size / 2).astype(np.int64)
    return np.concatenate([np.clip(corner, 0, source - size), size], axis=1)


def _first(boxes: np.ndarray, good: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """The first good try of each row, else the fallback."""
    chosen = boxes[np.arange(len(boxes)), good.argmax(1)]
    return np.where(good.any(1, keepdims=True), chosen, fallback).astype(np.int64)


def overlapping_boxes(
    draws: Draws,
    source: np.ndarray,
    other: np.ndarray,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    min_overlap: float = 0.01,
    tries: int = 10,
) -> np.ndarray:
    """Boxes that share at least `min_overlap` of their own area with `other` [B, 4] (SlotCon, arXiv 2205.15288).

    Each of up to `tries` draws is one area, ratio and place; when none overlaps enough, an unconstrained draw.
    """
    u = draws.uniform64("overlap", 4 * tries).reshape(-1, tries, 4)
    boxes, fits = _candidates(u, source, scale, ratio)
    shared = _shared_area(boxes, np.asarray(other, dtype=np.float64)[:, None])
    good = fits & (shared >= min_overlap * boxes[..., 2] * boxes[..., 3])
    return _first(boxes, good, random_boxes(draws, source, scale, ratio))


def _shared_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    top_left = np.maximum(a[..., :2], b[..., :2])
    bottom_right = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    side = np.maximum(bottom_right - top_left, 0)
    return side[..., 0] * side[..., 1]


def overlap_box(box: Tensor, other: Tensor, flip: Tensor, vflip: Tensor) -> Tensor:
    """What `box` shares with `other` in the box's own [0, 1] coordinates.

    Args:
        box: [B, 4] (top, left, height, width) in source pixels.
        other: [B, 4] the same for the other view.
        flip, vflip: bool [B], whether the view of `box` was mirrored; then its coordinates are.

    Returns:
        [B, 4] (x1, y1, x2, y2); a box of no area when the two share nothing.
    """
    size = box[:, 2:]
    low = ((torch.maximum(box[:, :2], other[:, :2]) - box[:, :2]) / size).clamp(0, 1)
    high = (torch.minimum(box[:, :2] + size, other[:, :2] + other[:, 2:]) - box[:, :2]) / size
    high = torch.maximum(high, low).clamp(0, 1)
    mirrored = torch.stack([vflip, flip], dim=1)
    low, high = torch.where(mirrored, 1 - high, low), torch.where(mirrored, 1 - low, high)
    return torch.stack([low[:, 1], low[:, 0], high[:, 1], high[:, 0]], dim=1)


def to_source(points: Tensor, box: Tensor, flip: Tensor, vflip: Tensor, angle: Tensor) -> Tensor:
    """Where points of a view lie in the source picture.

    Args:
        points: [B, N, 2] (x, y) in the view's [0, 1] coordinates; a pixel's centre is at (i + 0.5) / size.
        box, flip, vflip, angle: geometry of the view, [B, 4], bool [B], bool [B], degrees [B].

    Returns:
        [B, N, 2] (x, y) in source pixels, where pixel i spans i to i + 1.
    """
    x, y = (points - 0.5).unbind(-1)
    radians = torch.deg2rad(angle)[:, None]
    cos, sin = torch.cos(radians), torch.sin(radians)
    x, y = cos * x - sin * y, sin * x + cos * y
    x, y = torch.where(flip[:, None], -x, x) + 0.5, torch.where(vflip[:, None], -y, y) + 0.5
    top, left, height, width = (side[:, None] for side in box.unbind(1))
    return torch.stack([left + x * width, top + y * height], dim=-1)
