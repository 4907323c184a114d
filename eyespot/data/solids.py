"""Made solids as point clouds: `shapes:train` and `shapes:test`, so that tests and a demo need no files.

Twelve families of everyday outlines (ellipsoid, box, cylinder, cone, torus, capsule, pyramid, table, chair, lamp, mug,
dumbbell). Shape i is of family i mod 12, of its own proportions, tapered, twisted and turned about the upright axis,
and its surface is sampled evenly by area. Everything is a function of the split and i, and the points of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from eyespot.draws import bits_numpy

Part = tuple[float, Callable[[np.ndarray], np.ndarray]]
"""Area, and points [n, 3] of numbers [n, 3] in [0, 1)."""
SIZES: Mapping[str, int] = {"train": 720, "test": 240}
SEEDS: Mapping[str, int] = {"train": 0, "test": 1}


def uniform(seed: int, name: str, n: int, columns: int) -> np.ndarray:
    """float64 [n, columns] in [0, 1), a function of the arguments alone."""
    bits = bits_numpy(seed, name, 0, np.arange(n), columns)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


# --- parts ----------------------------------------------------------------------------------------------------
def ellipsoid(a: float, b: float, c: float) -> Part:
    def points(u: np.ndarray) -> np.ndarray:
        z, angle = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
        r = np.sqrt(1 - z * z)
        return np.stack([a * r * np.cos(angle), b * r * np.sin(angle), c * z], 1)

    p = 1.6075  # Knud Thomsen's approximation
    mean = ((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3
    return 4 * math.pi * mean ** (1 / p), points


def box(a: float, b: float, c: float) -> Part:
    """Half lengths."""
    sides = np.array([b * c, a * c, a * b])
    ends = np.cumsum(sides) / sides.sum()

    def points(u: np.ndarray) -> np.ndarray:
        axis = np.searchsorted(ends, u[:, 0], side="right").clip(0, 2)
        sign = np.where((u[:, 0] * 1e6) % 1 < 0.5, -1.0, 1.0)
        out = np.stack([sign, 2 * u[:, 1] - 1, 2 * u[:, 2] - 1], 1)
        place = (np.arange(3)[None] - axis[:, None]) % 3
        return np.take_along_axis(out, place, 1) * np.array([a, b, c])

    return 8 * float(sides.sum()), points


def frustum(low: float, high: float, h: float, corners: int = 0) -> Part:
    """Of a cone about z from -h to h with radii `low` and `high`, closed; `corners` > 0 makes it a pyramid."""
    slant = math.hypot(2 * h, low - high)
    side, bottom, top = math.pi * (low + high) * slant, math.pi * low**2, math.pi * high**2

    def points(u: np.ndarray) -> np.ndarray:
        total = side + bottom + top
        where, angle = u[:, 0] * total, 2 * math.pi * u[:, 1]
        root = np.sqrt(low**2 + u[:, 2] * (high**2 - low**2)) if low != high else np.full(len(u), low)
        t = (root - low) / (high - low) if low != high else u[:, 2]
        on_side, on_bottom = where < side, (where >= side) & (where < side + bottom)
        r = np.where(on_side, root, np.sqrt(u[:, 2]) * np.where(on_bottom, low, high))
        z = np.where(on_side, -h + 2 * h * t, np.where(on_bottom, -h, h))
        if corners:
            turn = 2 * math.pi / corners
            r = r * math.cos(turn / 2) / np.cos((angle % turn) - turn / 2)
        return np.stack([r * np.cos(angle), r * np.sin(angle), z], 1)

    return side + bottom + top, points


def torus(large: float, small: float) -> Part:
    def points(u: np.ndarray) -> np.ndarray:
        a, b = 2 * math.pi * u[:, 0], 2 * math.pi * u[:, 1]
        b = b - small / large * np.sin(b)  # first-order correction: the outside has more area than the inside
        r = large + small * np.cos(b)
        return np.stack([r * np.cos(a), r * np.sin(a), small * np.sin(b)], 1)

    return 4 * math.pi**2 * large * small, points


def at(part: Part, x: float = 0.0, y: float = 0.0, z: float = 0.0, upright: bool = False) -> Part:
    """A part moved, and before that laid on its side when `upright`."""
    area, inner = part

    def points(u: np.ndarray) -> np.ndarray:
        p = inner(u)
        p = p[:, [0, 2, 1]] if upright else p
        return p + np.array([x, y, z])

    return area, points


# --- families -------------------------------------------------------------------------------------------------
def _legs(a: float, b: float, h: float, z: float, thick: float) -> list[Part]:
    return [at(box(thick, thick, h), sx * (a - thick), sy * (b - thick), z) for sx in (-1, 1) for sy in (-1, 1)]


def _table(p: np.ndarray) -> list[Part]:
    a, b, h = 0.6 + 0.4 * p[0], 0.4 + 0.4 * p[1], 0.3 + 0.3 * p[2]
    return [at(box(a, b, 0.05), z=h), *_legs(a, b, h, 0, 0.05 + 0.04 * p[3])]


def _chair(p: np.ndarray) -> list[Part]:
    a, h, back = 0.35 + 0.15 * p[0], 0.3 + 0.15 * p[1], 0.3 + 0.3 * p[2]
    seat, rest = at(box(a, a, 0.05), z=h), at(box(a, 0.05, back), y=-a, z=h + back)
    return [seat, rest, *_legs(a, a, h, 0, 0.05)]


def _lamp(p: np.ndarray) -> list[Part]:
    h, foot, shade = 0.5 + 0.3 * p[0], 0.25 + 0.15 * p[1], 0.3 + 0.2 * p[2]
    stick = frustum(0.04, 0.04, h)
    return [at(frustum(foot, foot, 0.04), z=-h), stick, at(frustum(shade, 0.4 * shade, 0.2 + 0.1 * p[3]), z=h)]


def _mug(p: np.ndarray) -> list[Part]:
    r, h = 0.35 + 0.15 * p[0], 0.4 + 0.2 * p[1]
    return [frustum(r, r * (0.9 + 0.2 * p[2]), h), at(torus(0.22 + 0.1 * p[3], 0.06), x=r, upright=True)]


def _dumbbell(p: np.ndarray) -> list[Part]:
    h, r = 0.5 + 0.3 * p[0], 0.25 + 0.15 * p[1]
    ball = ellipsoid(r, r, r * (0.7 + 0.6 * p[2]))
    return [frustum(0.07, 0.07, h), at(ball, z=h), at(ball, z=-h)]


def _capsule(p: np.ndarray) -> list[Part]:
    h, r = 0.4 + 0.4 * p[0], 0.2 + 0.2 * p[1]
    return [frustum(r, r, h), at(ellipsoid(r, r, r), z=h), at(ellipsoid(r, r, r), z=-h)]


FAMILIES: Mapping[str, Callable[[np.ndarray], list[Part]]] = {
    "ellipsoid": lambda p: [ellipsoid(0.4 + 0.6 * p[0], 0.4 + 0.6 * p[1], 0.4 + 0.6 * p[2])],
    "box": lambda p: [box(0.4 + 0.6 * p[0], 0.4 + 0.6 * p[1], 0.4 + 0.6 * p[2])],
    "cylinder": lambda p: [frustum(0.3 + 0.4 * p[0], 0.3 + 0.4 * p[0], 0.4 + 0.5 * p[1])],
    "cone": lambda p: [frustum(0.4 + 0.4 * p[0], 0.02, 0.4 + 0.5 * p[1])],
    "torus": lambda p: [torus(0.6 + 0.2 * p[0], 0.12 + 0.2 * p[1])],
    "capsule": _capsule,
    "pyramid": lambda p: [frustum(0.5 + 0.4 * p[0], 0.02, 0.4 + 0.4 * p[1], corners=4)],
    "table": _table,
    "chair": _chair,
    "lamp": _lamp,
    "mug": _mug,
    "dumbbell": _dumbbell,
}
NAMES = tuple(FAMILIES)


def solid(split: str, i: int, n: int, seed: int) -> np.ndarray:
    """n points of shape i, float64 [n, 3], in an order that says nothing."""
    bits = bits_numpy(SEEDS[split], "solids/shape", 0, np.array([i]), 12)[0]
    shape = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    parts = FAMILIES[NAMES[i % len(NAMES)]](shape)
    u = uniform(seed, f"solids/{split}/{i}", n, 4)
    ends = np.cumsum([area for area, _ in parts])
    which = np.searchsorted(ends / ends[-1], u[:, 3], side="right").clip(0, len(parts) - 1)
    points = np.zeros((n, 3))
    for k, (_, inner) in enumerate(parts):
        points[which == k] = inner(u[which == k, :3])
    return _deformed(points, shape[4:])


def _deformed(points: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Tapered, twisted and stretched along z, bent, then turned about it."""
    x, y, z = points.T
    z = z * (0.7 + 0.6 * p[0])
    taper = 1 + 0.4 * (p[1] - 0.5) * z
    twist = 0.9 * (p[2] - 0.5) * z + 2 * math.pi * p[3]
    x, y = x * taper + 0.3 * (p[4] - 0.5) * z * z, y * taper * (0.8 + 0.4 * p[5])
    return np.stack([x * np.cos(twist) - y * np.sin(twist), x * np.sin(twist) + y * np.cos(twist), z], 1)


def labels(split: str) -> np.ndarray:
    return (np.arange(SIZES[split]) % len(NAMES)).astype(np.int64)
