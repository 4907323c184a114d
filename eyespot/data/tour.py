"""A made room with a camera that goes round in it: `tour:train` and `tour:test`, so that tests and a demo need no
files.

The walls, the floor and the ceiling carry patterns of their own, so that every place looks different; the two tours are
two closed curves through the same room. Frames are rendered by intersecting the rays of the pixels with the six planes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

SIZES: Mapping[str, int] = {"train": 400, "test": 120}
HEIGHT, WIDTH = 48, 64
ROOM = np.array([4.0, 3.0, 1.5])
"""Half lengths in metres."""
FOCAL = 45.0
"""Pixels."""


def pose_of(split: str, i: int) -> np.ndarray:
    """Camera to world, float64 [4, 4]; the camera looks along its z, x is right and y is down."""
    phase = 2 * math.pi * i / SIZES[split]
    if split == "train":
        at = np.array([2.2 * math.cos(phase), 1.5 * math.sin(phase), 0.2 * math.sin(3 * phase)])
        heading = phase + math.pi / 2 + 0.6 * math.sin(2 * phase)
    else:
        at = np.array([1.9 * math.cos(phase + 0.4), 1.3 * math.sin(phase + 0.4), 0.15 * math.cos(2 * phase)])
        heading = phase + 0.4 + math.pi / 2 + 0.5 * math.sin(2 * phase + 1)
    forward = np.array([math.cos(heading), math.sin(heading), 0.1 * math.sin(phase)])
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = at
    return pose


def frame(split: str, i: int) -> np.ndarray:
    """uint8 [3, 48, 64]."""
    pose = pose_of(split, i)
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5 - HEIGHT / 2, np.arange(WIDTH) + 0.5 - WIDTH / 2, indexing="ij")
    rays = np.stack([u / FOCAL, v / FOCAL, np.ones_like(u)], -1) @ pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = (np.sign(rays) * ROOM - pose[:3, 3]) / rays
    reach = np.where(np.isfinite(reach), reach, np.inf)
    axis = reach.argmin(-1)
    distance = reach.min(-1)
    hit = pose[:3, 3] + distance[..., None] * rays
    wall = 2 * axis + (np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0)
    return _painted(hit, axis, wall, distance)


def _painted(hit: np.ndarray, axis: np.ndarray, wall: np.ndarray, distance: np.ndarray) -> np.ndarray:
    along = np.where(axis == 0, hit[..., 1], hit[..., 0])
    up = np.where(axis == 2, hit[..., 1], hit[..., 2])
    base = np.array(
        [[0.8, 0.3, 0.2], [0.2, 0.6, 0.3], [0.2, 0.3, 0.8], [0.8, 0.7, 0.2], [0.4, 0.3, 0.3], [0.7, 0.7, 0.7]]
    )
    colour = base[wall]
    for k in range(3):
        wave = np.sin((1.1 + 0.7 * k + 0.3 * wall) * along + k) * np.cos((1.7 + 0.5 * k) * up + wall)
        colour[..., k] += 0.25 * wave + 0.1 * np.sign(np.sin(3.1 * along + 0.9 * k * wall))
    shaded = colour / (1 + 0.05 * distance[..., None])
    return (shaded.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
