"""Synthetic demo data: small pictures of one solid each, rendered with known factors.

These are no photographs. A solid of one of ten shapes (the class) stands in front of a cluttered background; shape is
the only thing that tells the classes apart. Pose, position, size, colours, surface pattern, light, shadow, background
and noise are drawn independently of it and change most of the pixels, so that a network with random weights tells the
classes apart badly. Some backgrounds and surfaces are cut from the two photographs that scikit-learn carries.

Every factor is a pure function of (seed, split, number of the picture), by `eyespot.draws`. Pictures are bit-equal on
one machine; another processor may round a pixel differently.

    >>> images, factors = render_scenes(100)          # uint8 [100, 3, 32, 32]
    >>> write_scenes("scenes", 8000)                  # scenes/train/cone/000001.png ...
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from eyespot.data.shapes import SOLIDS, march, normals
from eyespot.draws import Draws

CLASSES = tuple(SOLIDS)
SPLITS = {"train": 8000, "test": 2000}
"""Pictures of the two splits by default."""
CHUNK = 125
DISTANCE = 4.0
"""From the camera to the middle of the scene, in units of the solid's bounding sphere."""
HALF_VIEW = 1.2
"""Half the side of the view at that distance."""
SUPERSAMPLE = 2

SURFACE = ("rotation", "light", "brightness", "color", "pattern", "waves", "phases", "frequency", "surface_window")
"""Factors that decide how a point of the solid looks."""
Factors = dict[str, Tensor]


def scene_factors(index: np.ndarray, seed: int = 0, split: str = "train") -> Factors:
    """What is in some scenes: float32 [N, ...] by name, "shape" int64 [N] (classes in turn, so equally many)."""
    draws = Draws(seed, index=index, prefix=f"scenes/{split}/")
    yaw, tilt, roll = (
        draws.uniform("yaw", low=-np.pi, high=np.pi),
        draws.uniform("tilt", low=np.radians(-62), high=np.radians(-28)),
        draws.uniform("roll", low=np.radians(-30), high=np.radians(30)),
    )
    light = draws.uniform("light", 3, low=-1.0)
    light = torch.stack([light[:, 0], light[:, 1].abs() + 0.35, -light[:, 2].abs() - 0.35], 1)
    return {
        "shape": torch.from_numpy(index % len(CLASSES)),
        "rotation": _rotation(yaw, tilt, roll),
        "position": draws.uniform("position", 2, low=-0.18, high=0.18),
        "size": draws.uniform("size", low=0.82, high=1.12),
        "light": functional.normalize(light, dim=1),
        "brightness": draws.uniform("brightness", low=0.75, high=1.15),
        "color": _colors(draws.uniform("color", 6)),
        "pattern": draws.integers("pattern", 5),
        "waves": functional.normalize(draws.normal("waves", 9).view(-1, 3, 3), dim=2),
        "phases": draws.uniform("phases", 3, high=2 * np.pi),
        "frequency": draws.uniform("frequency", low=5.0, high=11.0),
        "surface_window": draws.uniform("surface_window", 3),
        "background": draws.integers("background", 3),
        "background_window": draws.uniform("background_window", 5),
        "background_color": _colors(draws.uniform("background_color", 6)),
        "clutter": draws.uniform("clutter", 4 * 9).view(-1, 4, 9),
    }


def render_scenes(
    count: int, seed: int = 0, size: int = 32, *, split: str = "train", start: int = 0
) -> tuple[Tensor, Factors]:
    """Scenes `start` to `start + count`: uint8 [count, 3, size, size], and their factors."""
    pictures, factors = [], []
    for first in range(start, start + count, CHUNK):
        index = np.arange(first, min(first + CHUNK, start + count))
        factors.append(scene_factors(index, seed, split))
        pixels = _render(factors[-1], size)
        noise = Draws(seed, index=index, prefix=f"scenes/{split}/").noise("noise", 3, size, size)
        pixels = (pixels + (noise - 0.5) * 0.06).clamp(0, 1)
        pictures.append((pixels * 255).round().to(torch.uint8))
    if not pictures:
        return torch.zeros(0, 3, size, size, dtype=torch.uint8), scene_factors(np.arange(0), seed, split)
    return torch.cat(pictures), {k: torch.cat([f[k] for f in factors]) for k in factors[0]}


class SceneDataset(Dataset):
    """Map-style data set of (uint8 [3, size, size], class), rendered when it is first read and kept."""

    def __init__(self, count: int | None = None, seed: int = 0, size: int = 32, split: str = "train"):
        self.count = SPLITS[split] if count is None else count
        self.seed, self.size, self.split = seed, size, split
        self.classes = list(CLASSES)
        self.targets = [i % len(CLASSES) for i in range(self.count)]
        self._chunks: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not 0 <= i < self.count:
            raise IndexError(i)
        chunk, place = divmod(i, CHUNK)
        if chunk not in self._chunks:
            first = chunk * CHUNK
            self._chunks[chunk] = render_scenes(
                min(CHUNK, self.count - first), self.seed, self.size, split=self.split, start=first
            )[0]
        return self._chunks[chunk][place], self.targets[i]


def write_scenes(
    folder: str | Path, count: int | None = None, seed: int = 0, size: int = 32, split: str = "train"
) -> Path:
    """Scenes as PNG files in class folders below `folder`/`split`; returns that path. Existing files are replaced."""
    root = Path(folder) / split
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(_stream(SPLITS[split] if count is None else count, seed, size, split)):
        file = root / CLASSES[i % len(CLASSES)] / f"{i:06d}.png"
        Image.fromarray(picture).save(file, compress_level=1)
    return root


def _stream(count: int, seed: int, size: int, split: str) -> Iterator[np.ndarray]:
    for first in range(0, count, CHUNK):
        images, _ = render_scenes(min(CHUNK, count - first), seed, size, split=split, start=first)
        yield from images.permute(0, 2, 3, 1).contiguous().numpy()


# --- rendering ------------------------------------------------------------------------------------------------
def _render(factors: Factors, size: int) -> Tensor:
    """Pixels in [0, 1], [N, 3, size, size]."""
    fine = size * SUPERSAMPLE
    u, v = _grid(size)
    background = _background(factors, u, v)
    coverage = torch.zeros(len(background), fine * fine)
    surface = torch.zeros(3, len(background), fine * fine)
    view = tuple(x.flatten() for x in _grid(fine))
    for shape, name in enumerate(CLASSES):
        member = (factors["shape"] == shape).nonzero()[:, 0]
        if len(member):
            _draw_solid(SOLIDS[name], member, factors, (view[0], view[1]), coverage, surface)
    coverage = functional.avg_pool2d(coverage.view(-1, 1, fine, fine), SUPERSAMPLE)
    solid = functional.avg_pool2d(surface.view(3, -1, fine, fine), SUPERSAMPLE).transpose(0, 1)
    lit = background * (1 - 0.6 * _shadow(coverage, factors["light"]))
    return (lit * (1 - coverage) + solid).clamp(0, 1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Places of the middles of pixels, [size, size] each: u to the right and v upwards, the picture's edges at +-1."""
    side = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    v, u = torch.meshgrid(-side, side, indexing="ij")
    return u, v


def _draw_solid(
    solid, member: Tensor, factors: Factors, view: tuple[Tensor, Tensor], coverage: Tensor, surface: Tensor
) -> None:
    """Render the scenes `member`, which have one solid, into `coverage` [N, P] and `surface` [3, N, P]."""
    rotation, size = factors["rotation"][member], factors["size"][member]
    # the ray of every pixel in the solid's own coordinates, where it is upright and of unit size
    direction = torch.stack([view[0] * HALF_VIEW, view[1] * HALF_VIEW, torch.full_like(view[0], DISTANCE)])
    direction = rotation.transpose(1, 2) @ functional.normalize(direction, dim=0)  # [n, 3, P]
    camera = torch.cat([-factors["position"][member], torch.full((len(member), 1), -DISTANCE)], 1)
    camera = (rotation.transpose(1, 2) @ camera[:, :, None])[:, :, 0] / size[:, None]  # [n, 3]
    # only rays that meet the unit sphere
    middle = -(camera[:, :, None] * direction).sum(1)
    chord = 1 - camera.square().sum(1, keepdim=True) + middle.square()
    scene, pixel = (chord > 0).nonzero(as_tuple=True)
    ray, origin = direction[scene, :, pixel].T.contiguous(), camera[scene].T.contiguous()
    middle, half = middle[scene, pixel], chord[scene, pixel].sqrt()
    hit, t = march(solid, origin, ray, middle - half, middle + half)
    scene, pixel, ray = scene[hit], pixel[hit], ray[:, hit]
    point = origin[:, hit] + ray * t[hit]
    number = member[scene]
    color = _shade(normals(solid, point), ray, point, {k: factors[k][number] for k in SURFACE})
    coverage[number, pixel] = 1.0
    surface[:, number, pixel] = color


def _shade(normal: Tensor, ray: Tensor, point: Tensor, factors: Factors) -> Tensor:
    """Colours [3, M] of surface points: a pattern, lit by one far light, with a highlight."""
    light = (factors["rotation"].transpose(1, 2) @ factors["light"][:, :, None])[:, :, 0].T
    facing = (normal * light).sum(0)
    half = light - ray
    highlight = ((normal * half).sum(0) / half.square().sum(0).sqrt()).clamp_min(0) ** 24
    shade = factors["brightness"] * (0.32 + 0.78 * facing.clamp_min(0) + 0.1 * facing)
    return (_pattern(point, factors) * shade + 0.3 * highlight).clamp(0, 1)


def _pattern(point: Tensor, factors: Factors) -> Tensor:
    """Colours [3, M] of the surface pattern: plain, stripes, checks, marble or a piece of a photograph."""
    kind, first, second = factors["pattern"], factors["color"][:, :3].T, factors["color"][:, 3:].T
    axes = factors["waves"]
    along = (axes @ point.T[:, :, None])[:, :, 0] * factors["frequency"][:, None] + factors["phases"]
    wave = along.sin()
    marble = (along[:, 0] + 2 * wave[:, 1] + 1.5 * wave[:, 2]).sin()
    level = torch.where(kind == 2, wave.prod(1) * 6, wave[:, 0] * 3)
    level = torch.where(kind == 3, marble * 1.5, level).clamp(-1, 1) * 0.5 + 0.5
    level = torch.where(kind == 0, torch.zeros_like(level), level)
    color = torch.lerp(first, second, level)
    window = factors["surface_window"]
    place = window[:, :2] * 1.4 - 0.7 + (axes[:, :2] @ point.T[:, :, None])[:, :, 0] * 0.25
    photo = _photo(place, window[:, 2], level=2)
    tinted = (0.35 + 0.65 * first) * (photo * 1.3)
    return torch.where(kind == 4, tinted, color)


def _background(factors: Factors, u: Tensor, v: Tensor) -> Tensor:
    """[N, 3, H, W]: a piece of a photograph, a gradient or waves, with flat shapes strewn over it."""
    kind, window = factors["background"], factors["background_window"]
    n, (height, width) = len(kind), u.shape
    first, second = factors["background_color"][:, :3], factors["background_color"][:, 3:]
    zoom = 0.12 + 0.25 * window[:, 3, None, None]
    place = torch.stack([u * zoom, v * zoom], -1) + (window[:, None, None, :2] * 1.2 - 0.6)
    photo = _photo(place.view(-1, 2), window[:, 2].repeat_interleave(height * width), level=2)
    photo = photo.view(3, n, height, width).transpose(0, 1)
    photo = photo * (0.5 + 0.8 * first[:, :, None, None])
    angle = window[:, 4, None, None] * 2 * np.pi
    along = u * angle.cos() + v * angle.sin()
    wave = ((along * 8 * (0.5 + window[:, 3, None, None])).sin() + (u * 3 - v * 2 + angle).sin()) / 4 + 0.5
    level = torch.where(kind[:, None, None] == 1, along * 0.5 + 0.5, wave).clamp(0, 1)[:, None]
    plain = torch.lerp(first[:, :, None, None], second[:, :, None, None], level)
    picture = torch.where(kind[:, None, None, None] == 0, photo, plain)
    return _strew(picture, factors["clutter"], u, v) * factors["brightness"][:, None, None, None]


def _strew(picture: Tensor, clutter: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Flat ellipses and boxes over a background; `clutter` [N, pieces, 9] in [0, 1]."""
    for piece in clutter.unbind(1):
        x, y, turn, a, b, round_, *rgb = piece[:, :, None, None].unbind(1)
        turn = turn * np.pi
        right, up = u - (x * 2.4 - 1.2), v - (y * 2.4 - 1.2)
        across = (right * turn.cos() + up * turn.sin()) / (0.08 + 0.4 * a)
        down = (up * turn.cos() - right * turn.sin()) / (0.08 + 0.3 * b)
        ellipse, box = (across.square() + down.square()).sqrt(), torch.maximum(across.abs(), down.abs())
        inside = ((1 - torch.where(round_ < 0.5, ellipse, box)) * 12).clamp(0, 1)
        picture = torch.lerp(picture, torch.stack(rgb, 1), inside[:, None] * 0.8)
    return picture


def _shadow(coverage: Tensor, light: Tensor) -> Tensor:
    """The solid's soft shadow on the background [N, 1, H, W]: its outline, moved away from the light."""
    size = coverage.shape[-1]
    u, v = _grid(size)
    move = 0.35 * light[:, :2] / light[:, 2:].abs().clamp_min(0.5)
    grid = torch.stack([u + move[:, 0, None, None], move[:, 1, None, None] * -1 - v], -1)
    moved = functional.grid_sample(coverage, grid, align_corners=False)
    for _ in range(2):  # a blur that grows with the picture
        width = size // 16 * 2 + 1
        moved = functional.avg_pool2d(moved, width, stride=1, padding=width // 2, count_include_pad=False)
    return moved


# --- ingredients ----------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _photographs() -> tuple[tuple[Tensor, ...], ...]:
    """The two photographs that scikit-learn carries, each at full, half and quarter size: [1, 3, H, W] in [0, 1]."""
    from sklearn.datasets import load_sample_images

    out = []
    for array in load_sample_images().images:
        full = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
        out.append((full, functional.avg_pool2d(full, 2), functional.avg_pool2d(full, 4)))
    return tuple(out)


def _photo(place: Tensor, which: Tensor, level: int) -> Tensor:
    """Colours [3, M] of the photographs at places [M, 2] in [-1, 1] (mirrored beyond); `which` [M] in [0, 1)."""
    looks = [
        functional.grid_sample(p[level], place[None, None], padding_mode="reflection", align_corners=False)[0, :, 0]
        for p in _photographs()
    ]
    return torch.where(which < 0.5, looks[0], looks[1] * 1.5).clamp(0, 1)


def _colors(unit: Tensor) -> Tensor:
    """Two colours [N, 6] from uniform numbers: any hue, from pale to strong, from dim to bright."""
    out = []
    for hue, strength, value in (unit[:, :3].T, unit[:, 3:].T):
        phase = hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])
        pure = ((phase % 6 - 3).abs() - 1).clamp(0, 1)
        out.append((0.3 + 0.7 * value[:, None]) * torch.lerp(torch.ones_like(pure), pure, 0.85 * strength[:, None]))
    return torch.cat(out, 1)


def _rotation(yaw: Tensor, tilt: Tensor, roll: Tensor) -> Tensor:
    """[N, 3, 3]: turn about the upright axis, tilt its top towards the camera (negative), roll in the picture."""

    def about(axis: int, angle: Tensor) -> Tensor:
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = torch.eye(3).repeat(len(angle), 1, 1)
        turn[:, i, i] = turn[:, j, j] = angle.cos()
        turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
        return turn

    return about(2, roll) @ about(0, tilt) @ about(1, yaw)
