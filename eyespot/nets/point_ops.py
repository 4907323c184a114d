"""What networks of point clouds are made of: farthest points, nearest neighbours, groups, interpolation.

Clouds are [B, N, 3]. Everything is exact and the same on every run: no approximate search, no random start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eyespot.errors import UserError


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2: [..., n, m] of [..., n, D] and [..., m, D], by differences: a point is at 0 from itself."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


@torch.no_grad()
def farthest_points(points: Tensor, count: int) -> Tensor:
    """Farthest point sampling: int64 [B, count], each point the one farthest from those before it, the first point 0.

    Args:
        points: [B, N, 3]; with count > N, or equal points, some are taken again.
    """
    chosen = torch.zeros(len(points), count, dtype=torch.int64, device=points.device)
    rows = torch.arange(len(points), device=points.device)
    far = points.new_full(points.shape[:2], torch.inf)
    for k in range(1, count):
        last = points[rows, chosen[:, k - 1]]
        far = torch.minimum(far, (points - last[:, None]).square().sum(-1))
        chosen[:, k] = far.argmax(1)
    return chosen


@torch.no_grad()
def nearest_points(centres: Tensor, points: Tensor, count: int) -> Tensor:
    """The `count` points nearest to each centre, nearest first: int64 [B, G, count].

    Raises:
        UserError: there are fewer points.
    """
    if count > points.shape[1]:
        raise UserError(f"A group of {count} points cannot be made of {points.shape[1]}; give larger clouds.")
    return squared_distances(centres, points).topk(count, dim=-1, largest=False).indices


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, D] at index int64 [B, ...]: [B, ..., D]."""
    flat = index.flatten(1)
    picked = values.gather(1, flat[..., None].expand(-1, -1, values.shape[-1]))
    return picked.view(*index.shape, values.shape[-1])


@dataclass
class Level:
    """One level of a hierarchy of groups: each level is grouped on the centres of the level below.

    Attributes:
        centres: [B, G, 3].
        index: int64 [B, G, k], the members of each group in the level below, nearest first.
        chosen: int64 [B, G], what the centres are in the cloud itself.
    """

    centres: Tensor
    index: Tensor
    chosen: Tensor


def hierarchy(points: Tensor, groups: tuple[int, ...], neighbours: tuple[int, ...]) -> list[Level]:
    """Levels from fine to coarse of clouds [B, N, 3].

    Args:
        groups: number of centres a level.
        neighbours: members of a group, a level.
    """
    levels: list[Level] = []
    below, chosen = points, None
    for count, k in zip(groups, neighbours, strict=True):
        picked = farthest_points(below, count)
        centres = gathered(below, picked)
        chosen = picked if chosen is None else chosen.gather(1, picked)
        levels.append(Level(centres, nearest_points(centres, below, k), chosen))
        below = centres
    return levels


def pass_down(visible: Tensor, levels: list[Level]) -> list[Tensor]:
    """What is visible on every level, fine to coarse, when `visible` bool [B, G] is on the coarsest: a token is visible
    when a visible group of the level above has it."""
    out = [visible]
    for upper, lower in zip(levels[:0:-1], levels[-2::-1], strict=True):
        seen = out[0].unsqueeze(-1).expand_as(upper.index).flatten(1).to(torch.uint8)
        blank = seen.new_zeros(len(seen), lower.centres.shape[1])
        out.insert(0, blank.scatter_reduce(1, upper.index.flatten(1), seen, "amax").bool())
    return out


def interpolated(points: Tensor, centres: Tensor, features: Tensor, eps: float = 1e-8) -> Tensor:
    """Features [B, G, D] of centres [B, G, 3] at the points [B, N, 3]: [B, N, D], the mean of the three nearest centres
    weighted by 1 / (squared distance + eps) (Qi et al., PointNet++, NeurIPS 2017)."""
    count = min(3, centres.shape[1])
    distance, index = squared_distances(points, centres).topk(count, dim=-1, largest=False)
    weight = 1 / (distance + eps)
    weight = weight / weight.sum(-1, keepdim=True)
    return (gathered(features, index) * weight.unsqueeze(-1)).sum(2)
