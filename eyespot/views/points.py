"""Views of point clouds [B, N, 3 or more]: only the places move, features stay. Every choice is drawn by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eyespot.draws import Draws


def places(points: Tensor, moved: Tensor) -> Tensor:
    """The cloud with other places."""
    return moved if points.shape[-1] == 3 else torch.cat([moved, points[..., 3:]], -1)


def turned(points: Tensor, draws: Draws, share: float = 1.0) -> Tensor:
    """Turned about z, the upright axis, by up to `share` of half a turn to each side."""
    angle = math.pi * share * (2 * draws.uniform("turn") - 1).to(points)
    c, s, o, i = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([c, -s, o, s, c, o, o, o, i], 1).view(-1, 3, 3)
    return places(points, points[..., :3] @ turn.transpose(1, 2))


def stretched(points: Tensor, draws: Draws, low: float = 2 / 3, high: float = 3 / 2, shift: float = 0.2) -> Tensor:
    """Each axis scaled by low..high and moved by up to `shift`, as Point-MAE and its followers do."""
    scale = draws.uniform("scale", 3, low, high).to(points)
    move = draws.uniform("shift", 3, -shift, shift).to(points)
    return places(points, points[..., :3] * scale[:, None] + move[:, None])


def jittered(points: Tensor, draws: Draws, deviation: float = 0.01, most: float = 0.05) -> Tensor:
    """Each point moved by normal noise, cut at `most`."""
    noise = draws.noise("jitter", points.shape[1], 3, normal=True).to(points)
    return places(points, points[..., :3] + (deviation * noise).clamp(-most, most))


def first_points(points: Tensor, count: int) -> Tensor:
    """The first `count` points of clouds whose order says nothing; with fewer, some stand twice."""
    index = torch.arange(count, device=points.device) % points.shape[1]
    return points[:, index]
