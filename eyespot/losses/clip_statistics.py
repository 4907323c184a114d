"""Motion and appearance statistics of a clip: 27 small integers that a network is asked to tell from the clip alone.

Wang et al., CVPR 2019 (arXiv 1904.03597, section 3) and T-PAMI 2021 (arXiv 2008.13426). "Where" is one of the blocks of
three fixed partitions of the frame:

    pattern 1    a grid of 4 x 4 blocks, row by row
    pattern 2    the square in the middle and three rings around it, from the inside
    pattern 3    every quadrant cut by a diagonal: top left lower, upper; top right upper, lower; bottom left upper,
                 lower; bottom right lower, upper. Pixels on a diagonal belong to both triangles

Labels count from 1, and of equals the first wins. Pure functions of tensors; nothing here has a gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eyespot.errors import UserError

BINS, LEVELS = 8, 256
MOTION, APPEARANCE = 14, 13
"""Number of labels of each kind."""
OCTANTS = (5, 7, 6, 8, 1, 3, 2, 4)
"""Colour 1..8 by 4 [blue >= 128] + 2 [green >= 128] + [red >= 128]: 1 blue, 2 green and blue, 3 red and blue, 4 white,
5 black, 6 green, 7 red, 8 red and green."""
MOTION_NAMES = tuple(f"{p} {flow} {what}" for p in (1, 2, 3) for flow in "uv" for what in ("block", "angle"))
MOTION_NAMES = (*MOTION_NAMES, "u frame", "v frame")
APPEARANCE_NAMES = tuple(
    f"{p} {kind} {what}" for p in (1, 2, 3) for kind in ("most", "least") for what in ("block", "colour")
)
APPEARANCE_NAMES = (*APPEARANCE_NAMES, "colour")
MOTION_MOST = (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8)
"""The largest value of each motion label but the last two, which are frames."""
APPEARANCE_MOST = (16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 8)
Colour = Literal["vote", "exact"]


# --- partitions -------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def partitions(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks of the three patterns as masks: bool [16, S, S], [4, S, S], [8, S, S].

    Raises:
        UserError: the side is no multiple of 8.
    """
    if size < 8 or size % 8:
        raise UserError(f"A frame of {size} pixels has no such blocks; its side must be a multiple of 8.")
    at = torch.arange(size)
    cell = at // (size // 4)
    grid = (cell[:, None] * 4 + cell)[None] == torch.arange(16)[:, None, None]
    # 0 in the middle two eighths of each side, 3 at its edge
    depth = torch.where(at < size // 2, size // 2 - 1 - at, at - size // 2) // (size // 8)
    rings = torch.maximum(depth[:, None], depth)[None] == torch.arange(4)[:, None, None]
    return grid, rings, _triangles(size)


def _triangles(size: int) -> Tensor:
    half = size // 2
    row, column = torch.arange(half)[:, None], torch.arange(half)
    lower, upper = row >= column, row <= column
    above, below = row + column < half, row + column >= half - 1
    quadrants = (
        (0, 0, (lower, upper)),
        (0, half, (above, below)),
        (half, 0, (above, below)),
        (half, half, (lower, upper)),
    )
    masks = torch.zeros(8, size, size, dtype=torch.bool)
    for k, (top, left, parts) in enumerate(quadrants):
        for j, part in enumerate(parts):
            masks[2 * k + j, top : top + half, left : left + half] = part
    return masks


# --- motion -----------------------------------------------------------------------------------------------------------
class Boundary(NamedTuple):
    """Motion boundaries of a clip, summed over its flow maps; first u, then v."""

    derivative: Tensor
    """[B, 2, 2, S, S]: of u and of v, along x and along y."""
    magnitude: Tensor
    """[B, 2, S, S]."""
    angle: Tensor
    """[B, 2, S, S] degrees in [0, 360)."""
    energy: Tensor
    """[B, 2, N]: of each map the sum of the magnitude of its own derivative."""


def prewitt(maps: Tensor) -> Tensor:
    """Derivatives [..., 2, H, W] along x and y of maps [..., H, W] by Prewitt's kernel: a true convolution, so the left
    column minus the right one and the upper row minus the lower one; the border is repeated."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    padded = F.pad(flat, (1, 1, 1, 1), mode="replicate")
    down = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    across = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    dx, dy = down[..., :-2] - down[..., 2:], across[:, :, :-2] - across[:, :, 2:]
    return torch.cat([dx, dy], 1).view(*maps.shape[:-2], 2, *maps.shape[-2:])


@torch.no_grad()
def motion_boundaries(flow: Tensor) -> Boundary:
    """Of flow [B, N, 2, S, S], (u, v) in pixels."""
    each = prewitt(flow.transpose(1, 2))  # [B, 2, N, 2, S, S]
    energy = torch.hypot(each[..., 0, :, :], each[..., 1, :, :]).sum((-2, -1))
    summed = each.sum(2)
    dx, dy = summed.unbind(2)
    angle = torch.rad2deg(torch.atan2(dy, dx)) % 360
    return Boundary(summed, torch.hypot(dx, dy), angle, energy)


def block_scores(values: Tensor, blocks: Tensor, mean: bool = False) -> Tensor:
    """Sum or mean of values [..., S, S] over each block [K, S, S]: [..., K]."""
    weight = blocks.to(values).flatten(1)
    sums = values.flatten(-2) @ weight.T
    return sums / weight.sum(1) if mean else sums


def orientation_histogram(magnitude: Tensor, angle: Tensor) -> Tensor:
    """Magnitudes [..., L] shared between the two of eight directions that are nearest to their angles (degrees):
    [..., 8], the first for 0 degrees, the others every 45."""
    place = angle / (360 / BINS)
    low = place.floor()
    part = place - low
    first = low.long() % BINS
    out = magnitude.new_zeros(*magnitude.shape[:-1], BINS)
    out.scatter_add_(-1, first, magnitude * (1 - part))
    return out.scatter_add_(-1, (first + 1) % BINS, magnitude * part)


@torch.no_grad()
def motion_statistics(flow: Tensor, maps: int | None = None) -> Tensor:
    """The 14 motion labels of clips: where motion boundaries are strongest, and where to they point.

    For each pattern and each of u and v: the block with the largest score (the sum of the magnitude, for rings the
    mean) and the largest of eight directions in it; then the frame in which u, and the one in which v, moves most. A
    clip without any motion has block and direction 0 in pattern 1.

    Args:
        flow: [B, N, 2, S, S], (u, v) in pixels; S is a multiple of 8.
        maps: the frame of most motion is looked for in the first `maps` of the N; None takes all.

    Returns:
        int64 [B, 14], in the order of `MOTION_NAMES`.
    """
    found = motion_boundaries(flow)
    labels = []
    for pattern, blocks in enumerate(partitions(flow.shape[-1])):
        blocks = blocks.to(flow.device)
        best = block_scores(found.magnitude, blocks, mean=pattern == 1).argmax(-1)  # [B, 2]
        inside = (found.magnitude * blocks[best]).flatten(-2)
        angle = orientation_histogram(inside, found.angle.flatten(-2)).argmax(-1)
        pair = torch.stack([best, angle], -1) + 1
        if pattern == 0:
            pair = pair * (found.magnitude.flatten(-2).amax(-1) > 0)[..., None]
        labels.append(pair.flatten(1))
    frame = found.energy[..., :maps].argmax(-1) + 1
    return torch.cat([*labels, frame], 1)


# --- appearance -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def block_histograms(clip: Tensor, blocks: Tensor) -> Tensor:
    """Histograms of the 256 levels of each frame, channel and block: int64 [T, C, K, 256] of a clip uint8 [T, C, S, S]
    and blocks bool [K, S, S]."""
    time, channels = clip.shape[:2]
    block, place = blocks.flatten(1).nonzero(as_tuple=True)
    values = clip.flatten(2)[..., place].long()  # [T, C, L]
    row = torch.arange(time * channels, device=clip.device).view(time, channels, 1) * len(blocks)
    index = (row + block) * LEVELS + values
    counts = torch.bincount(index.flatten(), minlength=time * channels * len(blocks) * LEVELS)
    return counts.view(time, channels, len(blocks), LEVELS)


@torch.no_grad()
def colour_iou(clip: Tensor, blocks: Tensor) -> Tensor:
    """How alike the colours of each block are over time: sum of the least over the sum of the largest count of every
    level, the mean over channels. Float64 [K] in [0, 1], of uint8 [T, C, S, S]; 1 where nothing changes."""
    counts = block_histograms(clip, blocks)
    least, most = counts.amin(0).sum(-1), counts.amax(0).sum(-1)
    return (least.double() / most).mean(0)


def octants(pixels: Tensor) -> Tensor:
    """Colour 1..8 of each pixel, int64 [...], of red, green and blue uint8 [..., 3]; see `OCTANTS`."""
    bright = (pixels >= 128).long() * pixels.new_tensor([1, 2, 4], dtype=torch.long)
    return torch.tensor(OCTANTS, device=pixels.device)[bright.sum(-1)]


@torch.no_grad()
def dominant_colour(pixels: Tensor, how: Colour = "vote") -> int:
    """The colour 1..8 of pixels uint8 [L, 3] (red, green, blue).

    Args:
        how: "vote", the octant that most pixels lie in; "exact", the octant of the commonest exact colour.
    """
    if how == "vote":
        return int(torch.bincount(octants(pixels), minlength=9).argmax())
    codes = (pixels.long() * pixels.new_tensor([1, 256, 65536], dtype=torch.long)).sum(-1)
    values, counts = codes.unique(return_counts=True)
    code = int(values[counts.argmax()])
    return int(octants(torch.tensor([code & 255, code >> 8 & 255, code >> 16], dtype=torch.uint8)))


@torch.no_grad()
def appearance_statistics(clips: Tensor, colour: Colour = "vote") -> Tensor:
    """The 13 appearance labels of clips: for each pattern the block whose colours change most over time, its colour,
    the block whose colours change least, its colour; then the colour of the whole clip.

    Args:
        clips: uint8 [B, T, 3, S, S], red, green and blue; S is a multiple of 8.
        colour: see `dominant_colour`.

    Returns:
        int64 [B, 13], in the order of `APPEARANCE_NAMES`.
    """
    return torch.stack([_appearance(clip, colour) for clip in clips])


def _appearance(clip: Tensor, colour: Colour) -> Tensor:
    pixels = clip.permute(2, 3, 0, 1)  # [S, S, T, 3]
    labels = []
    for blocks in partitions(clip.shape[-1]):
        blocks = blocks.to(clip.device)
        alike = colour_iou(clip, blocks)
        for block in (int(alike.argmin()), int(alike.argmax())):
            labels += [block + 1, dominant_colour(pixels[blocks[block]].reshape(-1, 3), colour)]
    labels.append(dominant_colour(pixels.reshape(-1, 3), colour))
    return torch.tensor(labels, device=clip.device)
