"""Depth maps of point clouds, and maps of a picture carried back to the points (I2P-MAE; arXiv 2212.06785).

A cloud is seen along its three axes. Each point covers a square of pixels, and a pixel holds the sigmoid of the sum of
the depths that fall on it; what nothing falls on is 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

AXES = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
"""Of each view: the coordinate of the rows, of the columns, and the depth."""
REACH = 2
"""Pixels that a point reaches to each side."""


def pixels_of(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where points [B, N, 3] are in a picture of `size` pixels seen along the third coordinate.

    The larger extent of the first two coordinates is size - 3 pixels wide, and the object lies in the middle.

    Returns:
        index: int64 [B, N, 2], row and column from 0 to size - 1; grid: [B], the width of a pixel in the units of the
        points; offset: [B, 2], by how many pixels the object was moved to the middle.
    """
    plane = points[..., :2]
    low, high = plane.amin(1), plane.amax(1)
    grid = (high - low).amax(1).clamp_min(torch.finfo(points.dtype).tiny) / (size - 3)
    index = ((plane - low[:, None]) / grid[:, None, None]).floor() + 1
    middle = ((index.amax(1) + index.amin(1)) / 2).floor()
    offset = size // 2 - middle - 1
    return (index + offset[:, None]).long().clamp(0, size - 1), grid, offset


def depth_map(points: Tensor, size: int = 224) -> tuple[Tensor, Tensor]:
    """The depth map of points [B, N, 3] along the third coordinate.

    Returns:
        [B, 1, size, size] in (0, 1), and the index of `pixels_of`.
    """
    index, _, _offset = pixels_of(points, size)
    step = torch.arange(-REACH, REACH + 1, device=points.device)
    square = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).view(-1, 2)
    spread = (index[:, :, None] + square).flatten(1, 2).clamp(0, size - 1)
    depth = points[..., 2:3].expand(-1, -1, len(square)).flatten(1)
    flat = points.new_zeros(len(points), size * size)
    flat = flat.scatter_add(1, spread[..., 0] * size + spread[..., 1], depth)
    return flat.sigmoid().view(-1, 1, size, size), index


def three_views(points: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """`depth_map` along each axis: three pairs of a picture [B, 1, size, size] and an index [B, N, 2]."""
    return [depth_map(points[..., list(axes)], size) for axes in AXES]


def carried_back(feature_map: Tensor, index: Tensor, size: int) -> Tensor:
    """A map [B, C, h, w] at the pixels `index` [B, N, 2] of a picture of `size`: [B, N, C].

    The same as a lookup in the map enlarged to the picture by bicubic interpolation (which can overshoot), without
    enlarging it: that is linear, and few pixels are asked for.
    """
    rows, columns = (_bicubic(n, size, feature_map) for n in feature_map.shape[-2:])
    weight = rows[index[..., 0]].unsqueeze(-1) * columns[index[..., 1]].unsqueeze(-2)
    return weight.flatten(-2) @ feature_map.flatten(2).transpose(1, 2)


def _bicubic(count: int, size: int, like: Tensor) -> Tensor:
    """[size, count]: what each of `count` cells adds to each of `size` pixels."""
    unit = torch.eye(count, dtype=like.dtype, device=like.device).view(1, count, count, 1)
    return F.interpolate(unit, (size, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T


def drawn(points: Tensor, size: int = 96, colour: Tensor | None = None) -> Tensor:
    """Clouds [B, N, 3] as pictures [B, 3, size, size] in [0, 1] for people: seen from above and aside, near points over
    far ones on white, lighter with distance.

    Args:
        colour: [B, N, 3] in [0, 1]; None: grey.
    """
    turn = points.new_tensor([[0.87, -0.29, 0.41], [0.5, 0.5, -0.71], [0.0, 0.82, 0.58]])
    seen = points[..., :3].float() @ turn.float()
    at = ((seen[..., :2] * 0.45 + 0.5) * size).long()
    at[..., 1] = size - 1 - at[..., 1]
    near = ((seen[..., 2] + 1) / 2).clamp(0, 1)
    shade = near.new_full((*near.shape, 3), 0.15) if colour is None else colour.float()
    shade = 1 - (1 - shade) * (0.35 + 0.65 * near[..., None])
    picture = shade.new_ones(len(points), size * size, 3)
    order = near.argsort(1)  # far ones first: the last one stays
    at, shade = at.gather(1, order[..., None].expand_as(at)), shade.gather(1, order[..., None].expand_as(shade))
    for b in range(len(points)):
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            place = (at[b] + at.new_tensor([dx, dy])).clamp(0, size - 1)
            picture[b, place[:, 1] * size + place[:, 0]] = shade[b]
    return picture.view(len(points), size, size, 3).permute(0, 3, 1, 2).cpu()
