"""Solids for the rendered scenes, as signed distance functions.

Each takes coordinates x, y, z (float tensors of one shape) and returns the distance to the surface, negative inside, or
a number nearer to zero: a ray that walks by it never steps through the solid (sphere tracing; Hart 1996). All solids
are centred, stand on the y axis and fit into the unit sphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Solid = Callable[[Tensor, Tensor, Tensor], Tensor]


def _away(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def _box(x: Tensor, y: Tensor, z: Tensor, a: float, b: float, c: float) -> Tensor:
    return torch.maximum(torch.maximum(x.abs() - a, y.abs() - b), z.abs() - c)


def sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt() - 0.76


def cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _box(x, y, z, 0.55, 0.55, 0.55)


def cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.maximum(_away(x, z) - 0.5, y.abs() - 0.74)


def cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Apex at y = 0.9, base of radius 0.7 at y = -0.65."""
    slope = math.atan2(0.7, 1.55)
    side = _away(x, z) * math.cos(slope) + (y - 0.9) * math.sin(slope)
    return torch.maximum(side, -0.65 - y)


def torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _away(_away(x, z) - 0.68, y) - 0.24


def capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Lies along x."""
    beyond = (x.abs() - 0.62).clamp_min(0)
    return (beyond * beyond + y * y + z * z).sqrt() - 0.33


def octahedron(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.abs() + y.abs() + z.abs() - 0.95) / math.sqrt(3)


def star(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Five points in the x-z plane, a slab in y."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(z, x)
    folded = (angle - sector * (angle / sector).round()).abs()
    radius = _away(x, z)
    # the edge from an outer point (0.95, 0) to an inner one at half a sector
    inner_x, inner_z = 0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2)
    length = math.hypot(inner_x - 0.95, inner_z)
    normal_x, normal_z = inner_z / length, (0.95 - inner_x) / length
    edge = (radius * folded.cos() - 0.95) * normal_x + radius * folded.sin() * normal_z
    return torch.maximum(edge, y.abs() - 0.22)


def cross(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Three square bars through the centre."""
    bars = torch.minimum(_box(x, y, z, 0.86, 0.2, 0.2), _box(x, y, z, 0.2, 0.86, 0.2))
    return torch.minimum(bars, _box(x, y, z, 0.2, 0.2, 0.86))


def dumbbell(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Two balls on a rod along x."""
    ball = ((x.abs() - 0.58).square() + y * y + z * z).sqrt() - 0.38
    rod = torch.maximum(_away(y, z) - 0.13, x.abs() - 0.58)
    return torch.minimum(ball, rod)


SOLIDS: dict[str, Solid] = {
    "capsule": capsule,
    "cone": cone,
    "cross": cross,
    "cube": cube,
    "cylinder": cylinder,
    "dumbbell": dumbbell,
    "octahedron": octahedron,
    "sphere": sphere,
    "star": star,
    "torus": torus,
}
"""By name, in alphabetical order: the order of the class folders."""


def march(
    solid: Solid, origin: Tensor, direction: Tensor, near: Tensor, far: Tensor, steps: int = 28
) -> tuple[Tensor, Tensor]:
    """Where rays meet a solid.

    Args:
        origin, direction: [3, M], the directions of unit length.
        near, far: [M], where along the ray the solid can be.

    Returns:
        hit bool [M], and the distance along the ray [M].
    """
    t, distance = near.clone(), torch.full_like(near, torch.inf)
    (a, b, c), (u, v, w) = origin, direction
    for _ in range(steps):
        distance = solid(a + u * t, b + v * t, c + w * t)
        t = t + distance
    return (distance < 0.02) & (t < far), t


def normals(solid: Solid, point: Tensor, step: float = 0.01) -> Tensor:
    """Unit normals [3, M] at points [3, M] near the surface, by differences at the corners of a tetrahedron."""
    corners = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    out = torch.zeros_like(point)
    for corner in corners:
        x, y, z = point + step * corner[:, None]
        out += corner[:, None] * solid(x, y, z)
    return out / out.square().sum(0).sqrt().clamp_min(1e-12)
