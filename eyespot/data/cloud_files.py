"""Files of three-dimensional shapes, and what is read of them: the points, or the triangles that points are drawn from.

.off .obj .ply .stl .glb .gltf     triangles (or points alone), read by trimesh: pip install 'eyespot[points]'
.npy .npz                          numbers [N, 3 or more]; in an .npz under "points", "xyz" or "pos", or alone
.txt .xyz .pts .csv                a point a line, numbers apart by spaces or commas
.pcd                               of the Point Cloud Library, as text or binary (not compressed)
.bin                               KITTI's laser scans, float32 x, y, z, intensity
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eyespot.data.decode import BadFile, reason_of
from eyespot.data.picture import READ_ERRORS as PICTURE_ERRORS
from eyespot.errors import MissingExtra

MESHES = frozenset((".off", ".obj", ".ply", ".stl", ".glb", ".gltf"))
TEXTS = frozenset((".txt", ".xyz", ".pts", ".csv"))
SUFFIXES = MESHES | TEXTS | frozenset((".npy", ".npz", ".pcd", ".bin"))
KEYS = ("points", "xyz", "pos")
"""Names that an array of points has in an .npz."""
TYPES = {"F4": "<f4", "F8": "<f8", "U1": "<u1", "U2": "<u2", "U4": "<u4", "I1": "<i1", "I2": "<i2", "I4": "<i4"}
READ_ERRORS = (*PICTURE_ERRORS, zipfile.BadZipFile)
"""What readers of damaged files raise."""


@dataclass
class Surface:
    """What a file holds: points float64 [N, 3 or more], and triangles int64 [F, 3] of them where it is a mesh."""

    points: np.ndarray
    faces: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        return self.points.nbytes + (0 if self.faces is None else self.faces.nbytes)


def read_surface(path: Path, name: str = "") -> Surface:
    """The points or triangles of a file.

    Raises:
        BadFile: it is damaged, empty, or its places are not all finite.
        MissingExtra: a mesh, and trimesh is not installed.
    """
    name, suffix = name or str(path), path.suffix.lower()
    try:
        surface = _mesh(path) if suffix in MESHES else Surface(_points(path, suffix))
    except MissingExtra:
        raise
    except READ_ERRORS as error:
        raise BadFile(name, reason_of(error)) from error
    return checked(surface, name)


def checked(surface: Surface, name: str) -> Surface:
    """The surface, when points can be drawn of it. Raises BadFile."""
    points = surface.points
    if points.ndim != 2 or points.shape[1] < 3:
        raise BadFile(name, f"points of shape {tuple(points.shape)}, not [N, 3 or more]")
    if not len(points):
        raise BadFile(name, "has no points")
    if not np.isfinite(points).all():
        raise BadFile(name, "has places that are not finite numbers")
    if float(np.ptp(points[:, :3], axis=0).max()) == 0:
        raise BadFile(name, "all points are in one place")
    return surface


def _mesh(path: Path) -> Surface:
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtra("trimesh", "points", f"Reading {path.suffix} files") from error
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    loaded: Any = trimesh.load(path, process=False)
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_geometry()
    points = np.asarray(getattr(loaded, "vertices", np.zeros((0, 3))), np.float64)
    faces = getattr(loaded, "faces", None)
    if faces is None or not len(faces):
        return Surface(points)
    return Surface(points, np.asarray(faces, np.int64))


def _points(path: Path, suffix: str) -> np.ndarray:
    if suffix == ".npy":
        return _numbers(np.load(path, allow_pickle=False))
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return _numbers(stored[key_of(stored.files)])
    if suffix == ".bin":
        values = np.fromfile(path, "<f4")
        if not len(values) or len(values) % 4:
            raise ValueError(f"{len(values)} numbers are not points of x, y, z and intensity")
        return values.reshape(-1, 4).astype(np.float64)
    if suffix == ".pcd":
        return _pcd(path.read_bytes())
    return _text(path.read_text(encoding="utf-8"))


def _numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise ValueError(f"holds {values.dtype}, not numbers")
    return values.astype(np.float64)


def key_of(names: list[str]) -> str:
    """Under which name an .npz has its points."""
    found = next((key for key in KEYS if key in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise ValueError(f"has no array 'points' among {', '.join(names) or 'none'}")
    return found


def _text(text: str) -> np.ndarray:
    lines = [line for line in text.replace(",", " ").splitlines() if line.strip() and not line.startswith("#")]
    if lines and len(lines[0].split()) == 1:  # .pts and .xyz may begin with the number of points
        lines = lines[1:]
    return np.loadtxt(io.StringIO("\n".join(lines)), ndmin=2) if lines else np.zeros((0, 3))


def _pcd(raw: bytes) -> np.ndarray:
    """[N, 3 or more] of the fields x, y, z and, after them, those that are single numbers. Raises ValueError."""
    head, at = {}, 0
    while "DATA" not in head:
        end = raw.find(b"\n", at)
        if end < 0:
            raise ValueError("the header has no end")
        word, *rest = raw[at:end].decode("ascii", "replace").split() or ["#"]
        head[word], at = rest, end + 1
    fields, count = head["FIELDS"], int(head["POINTS"][0])
    repeats = [int(c) for c in head.get("COUNT", ["1"] * len(fields))]
    if head["DATA"][0] == "ascii":
        table = _text(raw[at:].decode("ascii")) if raw[at:].strip() else np.zeros((0, sum(repeats)))
        starts = np.concatenate([[0], np.cumsum(repeats)[:-1]])
        columns = {f: table[:, s] for f, s, c in zip(fields, starts, repeats, strict=True) if c == 1}
    elif head["DATA"][0] == "binary":
        kinds = [TYPES[t + s] for t, s in zip(head["TYPE"], head["SIZE"], strict=True)]
        named = [(f"{k}", kind, (c,)) for k, (kind, c) in enumerate(zip(kinds, repeats, strict=True))]
        rows = np.frombuffer(raw, np.dtype(named), count, at)
        columns = {f: rows[str(k)][:, 0] for k, (f, c) in enumerate(zip(fields, repeats, strict=True)) if c == 1}
    else:
        raise ValueError(f"its data are '{head['DATA'][0]}'; save it as ascii or binary")
    order = ["x", "y", "z", *(f for f in columns if f not in ("x", "y", "z"))]
    points = np.stack([columns[f].astype(np.float64) for f in order], 1)
    if len(points) != count:
        raise ValueError(f"has {len(points)} of {count} points")
    return points[np.isfinite(points[:, :3]).all(1)]  # the library writes NaN where a camera saw nothing
