"""Frames with camera poses as records.

    a Parquet file       a column "image" and one of "pose", "pose_3x4", "camera_to_world" (12 or 16 numbers,
                         row after row); "sequence", "frame" and "split" where they are there
    a folder             of 7-Scenes: seq-01/frame-000000.color.png beside frame-000000.pose.txt, TrainSplit.txt,
                         TestSplit.txt; of KITTI odometry: sequences/00/image_2/000000.png and poses/00.txt
    tour:train, :test    a made room (tour.py)

Sample i is the tuple of frames around frame i of its sequence:

    "image_pair"   uint8 [T, C, H, W], the frames
    "pose"         float32 [T, 7], translation in metres and unit quaternion (w first, not negative), camera to world
    "place"        float32 [T], where in its sequence each frame stands, from 0 to 1
    "image"        uint8 [C, H, W], frame i itself: what a frozen network of pictures sees

The plan {"frames": T, "spacing": k, "short_side": s} says how many frames, how far apart, and how large; a tuple is
clamped at the ends of the sequence. Frames of another shape than the first are resized to it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from eyespot.data.cloud_files import READ_ERRORS
from eyespot.data.decode import BadFile, decode
from eyespot.data.records import Record, RecordSource
from eyespot.data.sources import PARQUET, no_split
from eyespot.data.tour import SIZES, frame, pose_of
from eyespot.errors import UserError, nearest

POSES = ("pose", "pose_3x4", "camera_to_world")
FRAMES, SPACING = 3, 10
"""Of a tuple without a plan, as in MapNet."""
GAP = 4
"""A sequence ends where frame numbers jump by more than so many usual steps."""


def as_pose(matrix: np.ndarray) -> np.ndarray:
    """[7] of a matrix of 12 or 16 numbers. Raises ValueError."""
    values = np.asarray(matrix, np.float64).reshape(-1)
    if len(values) not in (12, 16) or not np.isfinite(values).all():
        raise ValueError("the pose is not 12 or 16 finite numbers")
    values = values[:12].reshape(3, 4)
    if np.linalg.det(values[:, :3]) < 0.1:
        raise ValueError("the pose is no rotation and translation")
    q = Rotation.from_matrix(values[:, :3]).as_quat()[[3, 0, 1, 2]]
    return np.concatenate([values[:, 3], -q if q[0] < 0 else q])


class PosedSource(RecordSource):
    """Frames in sequences. A subclass says what a frame is.

    Args:
        starts: int64 [n], where the sequence of frame i begins; ends: int64 [n], and where it ends.
    """

    fields = ("image_pair", "pose", "place", "image")

    def __init__(self, name: str, starts: np.ndarray, ends: np.ndarray, channels: int = 3):
        self.name, self.starts, self.ends, self.channels = name, starts, ends, channels
        self._shape: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @abstractmethod
    def image(self, i: int, plan: dict[str, Any] | None) -> Tensor:
        """Frame i, uint8 [C, H, W]. Raises BadFile."""

    @abstractmethod
    def pose(self, i: int) -> np.ndarray:
        """Pose [7] of frame i. Raises BadFile."""

    def prepare(self) -> None:
        self.shape()

    def shape(self) -> tuple[int, int]:
        """Height and width of the first frame that can be read."""
        if self._shape is None:
            for i in range(len(self)):
                try:
                    found = self.image(i, None).shape
                except BadFile:
                    continue  # counted when it is read
                self._shape = (found[1], found[2])
                break
            else:
                raise BadFile(self.name, "no frame can be read")
        return self._shape

    def tuple_of(self, i: int, frames: int, spacing: int) -> np.ndarray:
        """Frames of the tuple around frame i, int64 [frames]."""
        offsets = spacing * (np.arange(frames) - (frames - 1) // 2)
        return np.clip(i + offsets, self.starts[i], self.ends[i] - 1)

    def record(self, i: int, plan: dict[str, Any] | None = None) -> Record:
        plan = plan or {}
        rows = self.tuple_of(i, plan.get("frames", FRAMES), plan.get("spacing", SPACING)).tolist()
        how = {"short_side": plan["short_side"]} if "short_side" in plan else None
        read = {k: self._sized(self.image(k, how), how) for k in {*rows, i}}
        poses = np.stack([self.pose(k) for k in rows]).astype(np.float32)
        length = np.maximum(self.ends[rows] - self.starts[rows], 1)
        place = (np.array(rows) - self.starts[rows]) / length
        return {
            "image_pair": torch.stack([read[k] for k in rows]),
            "pose": torch.from_numpy(poses),
            "place": torch.from_numpy(place.astype(np.float32)),
            "image": read[i],
        }

    def _sized(self, image: Tensor, how: dict[str, Any] | None) -> Tensor:
        h, w = self.shape()
        if how is not None and how["short_side"] < min(h, w):
            ratio = how["short_side"] / min(h, w)
            h, w = max(1, round(h * ratio)), max(1, round(w * ratio))
        if tuple(image.shape[1:]) == (h, w):
            return image
        sized = F.interpolate(image[None].float(), (h, w), mode="bilinear", antialias=True, align_corners=False)[0]
        return sized.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else sized


class FrameSource(PosedSource):
    """Encoded frames, files or bytes, with matrices or files of poses."""

    def __init__(self, name: str, images: Sequence[Any], poses: Sequence[Any], paths: Sequence[str], **common: Any):
        super().__init__(name, **common)
        self.images, self.poses, self.paths = images, poses, paths

    def path(self, i: int) -> str:
        return self.paths[i]

    def image(self, i: int, plan: dict[str, Any] | None) -> Tensor:
        raw = self.images[i]
        if not isinstance(raw, bytes | Path):
            raise BadFile(self.path(i), "has no picture")
        return decode(raw, name=self.path(i), channels=self.channels, plan=plan)

    def pose(self, i: int) -> np.ndarray:
        stored = self.poses[i]
        try:
            return as_pose(np.loadtxt(stored) if isinstance(stored, Path) else stored)
        except READ_ERRORS as error:
            raise BadFile(self.path(i), f"pose: {error}") from error


class TourSource(PosedSource):
    """The made room."""

    def __init__(self, split: str, channels: int = 3):
        n = SIZES[split]
        super().__init__(f"tour:{split}", np.zeros(n, np.int64), np.full(n, n, np.int64), channels)
        self.split = split

    def path(self, i: int) -> str:
        return f"{self.name}#{i}"

    def image(self, i: int, plan: dict[str, Any] | None) -> Tensor:
        picture = torch.from_numpy(frame(self.split, i))
        return picture if self.channels == 3 else picture.float().mean(0, keepdim=True).round().to(torch.uint8)

    def pose(self, i: int) -> np.ndarray:
        return as_pose(pose_of(self.split, i))


def cut(keys: Sequence[Any], numbers: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of sequences, int64 [n] each: where `keys` change, or frame numbers jump or fall."""
    n = len(keys)
    new = np.array([i == 0 or keys[i] != keys[i - 1] for i in range(n)])
    if numbers is not None and n > 1:
        step = np.diff(np.asarray(numbers, np.int64), prepend=numbers[0])
        usual = np.median(step[~new]) if (~new).any() else 1
        new |= (step > GAP * max(usual, 1)) | (step < 0)
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], n)
    which = np.cumsum(new) - 1
    return starts[which].astype(np.int64), ends[which].astype(np.int64)


# --- opening --------------------------------------------------------------------------------------------------
def open_posed(
    value: Any, *, split: str | None = None, image_column: str | None = None, channels: int = 3
) -> PosedSource:
    """The posed frames that a path or a name means, see the head of this file.

    Raises:
        UserError: there are none, with the reason and the remedy.
    """
    if isinstance(value, PosedSource):
        return value
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"Posed frames are given as a path or as tour:train, not as {type(value).__name__} '{value}'.")
    path = Path(value).expanduser()
    if not path.exists() and ":" in str(value):
        front, _, back = str(value).rpartition(":")
        if front == "tour":
            return _tour(back, channels)
        if split is None and back and Path(front).expanduser().exists():
            path, split = Path(front).expanduser(), back
    if not path.exists():
        if str(value) == "tour":
            return _tour(split or "train", channels)
        raise UserError(f"There is no path {path}; give a folder of posed frames, a Parquet file, or tour:train.")
    if path.is_dir():
        return _folder(path, split, image_column, channels)
    if path.suffix.lower() in PARQUET:
        return _table(path, split, image_column, channels)
    raise UserError(f"{path} holds no posed frames; give a Parquet file, or a folder of 7-Scenes or KITTI odometry.")


def _tour(split: str, channels: int) -> PosedSource:
    if split not in SIZES:
        raise UserError(f"The made room has no tour '{split}'; {nearest(split, SIZES)}")
    return TourSource(split, channels)


def _table(path: Path, split: str | None, image_column: str | None, channels: int) -> PosedSource:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    names, image = table.column_names, image_column or "image"
    pose = next((p for p in POSES if p in names), None)
    if pose is None or image not in names:
        missing = f"'{image}'" if image not in names else f"of poses ({', '.join(POSES)})"
        raise UserError(f"'{path}' has no column {missing} among {', '.join(names)}; add it.")
    rows = np.arange(table.num_rows)
    if "split" in names and split != "all":
        words = table["split"].to_pylist()
        wanted = split or ("train" if "train" in words else words[0])
        rows = np.array([i for i, w in enumerate(words) if w == wanted], np.int64)
        if not len(rows):
            raise UserError(f"There is no split '{split}' in {path}; {nearest(str(split), sorted(set(words)))}")
    elif "split" not in names:
        no_split(split, path.name)
    part = table.take(pa.array(rows))
    numbers = [int(n) for n in part["frame"].to_pylist()] if "frame" in names else None
    keys = part["sequence"].to_pylist() if "sequence" in names else [0] * len(rows)
    starts, ends = cut(keys, numbers)
    images = [v.get("bytes") if isinstance(v, dict) else v for v in part[image].to_pylist()]
    name = str(path) + (f":{split}" if split else "")
    paths = [f"{path}#{i}" for i in rows]
    return FrameSource(name, images, part[pose].to_pylist(), paths, starts=starts, ends=ends, channels=channels)


def _folder(root: Path, split: str | None, image_column: str | None, channels: int) -> PosedSource:
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in PARQUET)
    if len(tables) == 1:
        return _table(tables[0], split, image_column, channels)
    found = (
        _seven_scenes(root, split) if any(root.glob("seq-*")) else _kitti(root) if (root / "poses").is_dir() else None
    )
    if found is None:
        raise UserError(f"{root} is neither of 7-Scenes (seq-01/...) nor of KITTI odometry (sequences/, poses/).")
    images, poses, keys = found
    if not images:
        raise UserError(
            f"{root} holds no frame with a pose{f' in the split {split}' if split else ''}; check its names."
        )
    starts, ends = cut(keys, None)
    name = str(root) + (f":{split}" if split else "")
    return FrameSource(name, images, poses, [str(p) for p in images], starts=starts, ends=ends, channels=channels)


Found = tuple[list[Path], list[Any], list[str]]


def _seven_scenes(root: Path, split: str | None) -> Found:
    """Frames with a file of their pose, of the sequences of a split."""
    wanted: set[int] | None = None
    listed = root / f"{(split or 'train').capitalize()}Split.txt"
    if split != "all" and listed.is_file():
        wanted = {int(n) for n in re.findall(r"\d+", listed.read_text(encoding="utf-8"))}
    elif split not in (None, "all"):
        raise UserError(f"There is no split '{split}' in {root}: {listed.name} is missing; leave the split out.")
    images: list[Path] = []
    for folder in sorted(root.glob("seq-*")):
        if wanted is None or int(folder.name.split("-")[1]) in wanted:
            images += [p for p in sorted(folder.glob("*.color.*")) if _beside(p).is_file()]
    return images, [_beside(p) for p in images], [p.parent.name for p in images]


def _beside(image: Path) -> Path:
    return image.with_name(image.name.split(".")[0] + ".pose.txt")


def _kitti(root: Path) -> Found:
    """Frames of every sequence with a file of poses; the colour camera where it is there."""
    images: list[Path] = []
    poses: list[Any] = []
    for file in sorted((root / "poses").glob("*.txt")):
        folder = next((f for n in (2, 0) if (f := root / "sequences" / file.stem / f"image_{n}").is_dir()), None)
        if folder is None:
            continue
        try:
            table = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise UserError(f"{file} is no table of 12 numbers a line ({error}); mend it.") from error
        frames = sorted(p for p in folder.iterdir() if p.stem.isdigit() and int(p.stem) < len(table))
        images += frames
        poses += [table[int(p.stem)] for p in frames]
    return images, poses, [str(p.parent) for p in images]
