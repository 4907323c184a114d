"""Point clouds as records: {"points": float32 [n, 3 or more]}, the places in the unit sphere.

    a folder                    shape files at any depth; class folders become labels; split folders above or below them
    a text list                 one path a line, with an optional label after a tab
    a set in one .npz           "points" or "xyz" [S, N, 3], or "voxels_packed" [S, side^3 / 8]; "label" or
                                "category" [S], "split" [S]
    a Parquet file              a column "points" of 3 N numbers (or lists of three), and label and split columns
    shapes:train, shapes:test   made solids (solids.py)

How many points are drawn, and which, says the plan {"points": n, "seed": k}: of a mesh even by area, of a cloud without
repetition as long as it has that many. Without a plan the draw is the same every time.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eyespot.data.cloud_files import SUFFIXES, Surface, checked, key_of, read_surface
from eyespot.data.decode import BadFile
from eyespot.data.folder import SPLITS, TRAIN, read_list
from eyespot.data.records import Record, RecordSource
from eyespot.data.solids import NAMES, SIZES, labels, solid, uniform
from eyespot.data.sources import LISTS, PARQUET, no_split, numbered
from eyespot.errors import UserError, nearest

USUAL = 2048
"""Points of a sample without a plan, as many as ModelNet's files have."""
KEPT_BYTES = 128 << 20
"""Shapes that are kept in memory after they were read."""


def normalised(points: np.ndarray) -> np.ndarray:
    """Places [N, 3 or more] moved to mean 0 and scaled so that the farthest is at 1; features stay."""
    out = points.copy()
    out[:, :3] -= out[:, :3].mean(0)
    farthest = np.sqrt(np.square(out[:, :3]).sum(1).max())
    out[:, :3] /= farthest if farthest > 0 else 1
    return out


def drawn_points(surface: Surface, n: int, seed: int, name: str) -> np.ndarray:
    """n points of a surface, float64 [n, 3 or more], in an order that says nothing."""
    if surface.faces is not None:
        return _on_triangles(surface.points, surface.faces, n, seed, name)
    order = np.argsort(uniform(seed, "clouds/order", len(surface.points), 1)[:, 0], kind="stable")
    return surface.points[order[np.arange(n) % len(order)]]


def _on_triangles(points: np.ndarray, faces: np.ndarray, n: int, seed: int, name: str) -> np.ndarray:
    a, b, c = (points[faces[:, k], :3] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    ends = np.cumsum(area)
    if not ends[-1] > 0:
        raise BadFile(name, "its triangles have no area")
    u = uniform(seed, "clouds/surface", n, 3)
    which = np.searchsorted(ends, u[:, 0] * ends[-1], side="right").clip(0, len(faces) - 1)
    root = np.sqrt(u[:, 1:2])
    return (1 - root) * a[which] + root * (1 - u[:, 2:]) * b[which] + root * u[:, 2:] * c[which]


class CloudSource(RecordSource):
    """Numbered clouds. A subclass says what shape i is.

    Args:
        channels: numbers of a point: 3, or more where the shapes have features.
        points: of a sample without a plan.
    """

    fields = ("points",)

    def __init__(self, channels: int = 3, points: int = USUAL):
        if channels < 3:
            raise UserError(f"--channels {channels} is not for clouds: a point has at least three numbers.")
        self.channels, self.points = channels, points

    @abstractmethod
    def sampled(self, i: int, n: int, seed: int) -> np.ndarray:
        """n points [n, channels or more] of shape i. Raises BadFile."""

    def count(self, i: int) -> int:
        """How many points shape i has; `points` where there is no end of them. Raises BadFile."""
        return self.points

    def record(self, i: int, plan: dict[str, Any] | None = None) -> Record:
        plan = plan or {}
        points = self.sampled(i, int(plan.get("points", self.points)), int(plan.get("seed", 0)))
        if points.shape[1] < self.channels:
            raise BadFile(self.path(i), f"has {points.shape[1]} numbers a point where {self.channels} are asked for")
        ready = normalised(points[:, : self.channels]).astype(np.float32)
        return {"points": torch.from_numpy(ready)}


class SurfaceSource(CloudSource):
    """Shapes that are read whole and then drawn from; those that fit are kept in memory."""

    def __init__(self, **common: Any):
        super().__init__(**common)
        self._kept: dict[int, Surface] = {}
        self._bytes = 0

    @abstractmethod
    def surface(self, i: int) -> Surface:
        """Shape i. Raises BadFile."""

    def _surface(self, i: int) -> Surface:
        found = self._kept.get(i)
        if found is None:
            found = self.surface(i)
            if self._bytes + found.bytes <= KEPT_BYTES:
                self._kept[i], self._bytes = found, self._bytes + found.bytes
        return found

    def sampled(self, i: int, n: int, seed: int) -> np.ndarray:
        return drawn_points(self._surface(i), n, seed, self.path(i))

    def count(self, i: int) -> int:
        surface = self._surface(i)
        return self.points if surface.faces is not None else len(surface.points)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_bytes": 0}


class FileClouds(SurfaceSource):
    """One file a shape."""

    def __init__(
        self,
        files: Sequence[str],
        name: str,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        **common: Any,
    ):
        super().__init__(**common)
        self.files, self.name, self.labels, self.class_names = files, name, labels, class_names

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        return self.files[i]

    def surface(self, i: int) -> Surface:
        return read_surface(Path(self.files[i]))


class ArrayClouds(SurfaceSource):
    """A set of clouds [N, C], or of packed bits of occupied cells of a cube, in memory.

    Args:
        rows: int64 [S], where each stands in `file`.
    """

    def __init__(
        self,
        clouds: Sequence[np.ndarray],
        name: str,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        rows: np.ndarray | None = None,
        voxels: bool = False,
        file: str = "",
        **common: Any,
    ):
        super().__init__(**common)
        self.clouds, self.name, self.labels, self.class_names, self.voxels = clouds, name, labels, class_names, voxels
        self.file = file or name
        self.rows = np.arange(len(clouds)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.clouds)

    def path(self, i: int) -> str:
        return f"{self.file}#{self.rows[i]}"

    def surface(self, i: int) -> Surface:
        raw = self.clouds[i]
        cloud = _cells(raw) if self.voxels else np.asarray(raw, np.float64)
        return checked(Surface(cloud), self.path(i))

    def sampled(self, i: int, n: int, seed: int) -> np.ndarray:
        points = super().sampled(i, n, seed)
        return points + uniform(seed, "clouds/cells", n, 3) - 0.5 if self.voxels else points

    def count(self, i: int) -> int:
        return self.points if self.voxels else super().count(i)


def _cells(packed: np.ndarray) -> np.ndarray:
    """Places [N, 3] of the occupied cells at the surface, of the packed bits of a cube."""
    bits = np.unpackbits(packed)
    side = round(len(bits) ** (1 / 3))
    full = np.pad(bits[: side**3].reshape(side, side, side).astype(bool), 1)
    inner = full.copy()
    for axis in range(3):
        inner &= np.roll(full, 1, axis) & np.roll(full, -1, axis)
    return np.argwhere(full & ~inner).astype(np.float64)


class MadeClouds(CloudSource):
    """The solids of solids.py."""

    def __init__(self, split: str, **common: Any):
        super().__init__(**common)
        self.split, self.name = split, f"shapes:{split}"
        self.labels, self.class_names = labels(split), NAMES

    def __len__(self) -> int:
        return SIZES[self.split]

    def path(self, i: int) -> str:
        return f"{self.name}#{i}"

    def sampled(self, i: int, n: int, seed: int) -> np.ndarray:
        return solid(self.split, i, n, seed)


# --- opening --------------------------------------------------------------------------------------------------
def open_clouds(
    value: Any, *, split: str | None = None, label_column: str | None = None, channels: int = 3, points: int = USUAL
) -> CloudSource:
    """The clouds that a path or a name means, see the head of this file.

    Raises:
        UserError: there are none, with the reason and the remedy.
    """
    if isinstance(value, CloudSource):
        return value
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"Clouds are given as a path or as shapes:train, not as {type(value).__name__} '{value}'.")
    common = {"channels": channels, "points": points}
    path = Path(value).expanduser()
    if not path.exists() and ":" in str(value):
        front, _, back = str(value).rpartition(":")
        if front == "shapes":
            return _made(back, common)
        if split is None and back and Path(front).expanduser().exists():
            path, split = Path(front).expanduser(), back
    if not path.exists():
        if str(value) == "shapes":
            return _made(split or "train", common)
        raise UserError(f"There is no path {path}; give a folder of shapes, a list, or shapes:train.")
    if path.is_dir():
        return _folder(path, split, label_column, common)
    return _file(path, split, label_column, common)


def _made(split: str, common: dict[str, Any]) -> CloudSource:
    if split not in SIZES:
        raise UserError(f"The made shapes have no split '{split}'; {nearest(split, SIZES)}")
    return MadeClouds(split, **common)


def _file(path: Path, split: str | None, label_column: str | None, common: dict[str, Any]) -> CloudSource:
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        from eyespot.data.cloud_tables import open_table

        return open_table(path, split, label_column, common)
    if suffix == ".npz" and (stored := _set_of(path)):
        return _array_set(path, stored, split, label_column, common)
    if suffix in LISTS and _is_list(path):
        no_split(split, "a text list")
        listed = read_list(path)
        return FileClouds(list(listed.files), str(path), listed.labels, listed.class_names, **common)
    if suffix in SUFFIXES:
        no_split(split, "one shape")
        return FileClouds([str(path)], path.name, **common)
    raise UserError(f"{path} is no shape that can be read; give {', '.join(sorted(SUFFIXES))}, .parquet or a folder.")


def _is_list(path: Path) -> bool:
    """Whether a .txt names files rather than places."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        words = [*stream.readline().replace(",", " ").split(), ""]
    try:
        float(words[0])
    except ValueError:
        return not words[0].startswith("#")
    return False


# --- folders --------------------------------------------------------------------------------------------------
def _folder(root: Path, split: str | None, label_column: str | None, common: dict[str, Any]) -> CloudSource:
    files = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root, followlinks=True)
        if not _hide(folders)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith((".", "README"))
    )
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in PARQUET)
    if (not files and len(tables) == 1) or (len(files) == 1 and files[0].endswith(".npz")):
        return _file(tables[0] if not files else root / files[0], split, label_column, common)
    if not files:
        raise UserError(f"The folder {root} holds no shapes; give one with files such as .off, .ply, .npy or .pcd.")
    parts = [[p.lower() for p in Path(f).parts[:-1] if p.lower() in SPLITS] for f in files]
    marked = sorted({p[0] for p in parts if p})
    if split is None and all(parts):
        split = next((p for p in marked if p in TRAIN), None)
    if split not in (None, "all"):
        files = [f for f, p in zip(files, parts, strict=True) if split.lower() in p]
        if not files:
            raise UserError(
                f"There is no split '{split}' in {root}; {nearest(split, marked) if marked else 'leave it out.'}"
            )
    labels, names = _classes(files)
    name = str(root) + (f":{split}" if split else "")
    return FileClouds([str(root / f) for f in files], name, labels, names, **common)


def _hide(folders: list[str]) -> None:
    folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")


def _classes(files: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels by folder: CLASS/x, SPLIT/CLASS/x and CLASS/SPLIT/x, when that is what all paths are like."""
    folders = [[p for p in Path(f).parts[:-1] if p.lower() not in SPLITS] for f in files]
    if any(len(f) != 1 for f in folders) or len({f[0] for f in folders}) < 2:
        return None, ()
    return numbered([f[0] for f in folders])


# --- sets in one file -----------------------------------------------------------------------------------------
def _set_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz that holds many shapes; nothing where it holds one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {k: stored[k] for k in stored.files}
            if "voxels_packed" in arrays:
                return arrays
            return arrays if arrays[key_of(stored.files)].ndim == 3 else {}
    except (OSError, ValueError, LookupError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); give an .npz of plain arrays.") from error


def _array_set(
    path: Path, stored: dict[str, np.ndarray], split: str | None, label_column: str | None, common: dict[str, Any]
) -> CloudSource:
    voxels = "voxels_packed" in stored
    clouds = stored["voxels_packed"] if voxels else stored[key_of(list(stored))]
    rows = chosen_rows(stored.get("split"), len(clouds), split, path)
    key = label_column or next(
        (k for k in ("label", "labels", "category") if stored.get(k, clouds).shape == (len(clouds),)), None
    )
    if label_column is not None and getattr(stored.get(label_column), "shape", None) != (len(clouds),):
        raise UserError(f"{path} has no label for each shape under '{label_column}'; it has {', '.join(stored)}.")
    labels, names = (None, ()) if key is None else numbered(stored[key].tolist())
    if not voxels and clouds.shape[2] == 3 and common["channels"] > 3 and stored.get("rgb") is not None:
        clouds = np.concatenate([clouds.astype(np.float32), stored["rgb"].astype(np.float32) / 255], 2)
    name = str(path) + (f":{split}" if split else "")
    taken = None if labels is None else labels[rows]
    return ArrayClouds(list(clouds[rows]), name, taken, names, rows, voxels, str(path), **common)


def chosen_rows(marks: np.ndarray | None, n: int, split: str | None, path: Path) -> np.ndarray:
    """Rows of a split, by the word that marks each row; the training part when none is asked for."""
    if marks is None or marks.shape != (n,):
        no_split(split, f"{path.name}")
        return np.arange(n)
    words = [str(w).lower() for w in marks.tolist()]
    found = sorted(set(words))
    alias = {"train": ("train", "training", "learn"), "test": ("test", "testing")}
    if split == "all":
        return np.arange(n)
    wanted = alias.get((split or "train").lower(), (str(split).lower(),))
    rows = np.array([i for i, w in enumerate(words) if w in wanted], np.int64)
    if not len(rows):
        if split is None:
            return np.arange(n)
        raise UserError(f"There is no split '{split}' in {path}; {nearest(split, found)}")
    return rows
