"""Clips: video files as samples.

    a folder        video files at any depth and of any mix of formats; class folders become labels, train/ and test/
                    are splits
    a text list     one path a line, with an optional label after a tab
    a tar           of video files (or a folder of tars), read without unpacking; its folders are the classes
    one video file

    data = open_clips("clips/")                     # ClipSource
    data.record(0)["video"]                         # uint8 [16, C, H, W], evenly spaced over the clip
    data.record(0, {"windows": [(10, 8, 2)]})       # only these frames are decoded: [8, C, H, W]

Data without splits can be cut: `split="fold2/5"` is the second fifth of every class in the order of the names, and
`split="rest2/5"` all the others, so that neighbouring names, often parts of one recording, stay on one side.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.decode import BadFile, reason_of
from eyespot.data.folder import SPLITS, TRAIN, class_folders, read_list
from eyespot.data.names import Files
from eyespot.data.records import RecordSource
from eyespot.data.sources import LISTS, SQUEEZED, TARS, no_split
from eyespot.data.tar import NoTar, Reader, members
from eyespot.data.video import Clip, about, evenly, read_windows, window_frames
from eyespot.errors import UserError, nearest

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".ts")
"""Names that are taken for clips in a folder, in lower case; files are recognised by content. (.gif is a picture.)"""
MAX_CLIP = 1 << 31
"""Bytes of one clip that is read out of a tar."""
SHORT = 128
"""Frames up to which a clip may be kept decoded."""
FOLD = re.compile(r"(fold|rest)(\d+)/(\d+)")


@dataclass(frozen=True)
class Place:
    """Where a clip lies: a file, or a part of a tar."""

    file: str
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        text = f"{self.file}#{self.member}" if self.member else self.file
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ClipSource(RecordSource):
    """Clips, of which windows of frames are decoded.

    Args:
        places: where the clips lie.
        labels: int64 [n] or None.
        channels: 3, or 1 for grey.
        frames: frames of a clip that evaluation sees, evenly spaced.
        short_side: frames are shrunk to this shorter side while they are decoded, unless the plan says another;
            None keeps their size.
        keep_bytes: bytes of decoded short clips that a process keeps, so that a small set is decoded once.
    """

    fields = ("video",)

    def __init__(
        self,
        places: Sequence[Place],
        *,
        name: str = "",
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        refused: Mapping[str, str] = MappingProxyType({}),
        channels: int = 3,
        frames: int = 16,
        short_side: int | None = None,
        keep_bytes: int = 1 << 28,
    ):
        if channels not in (1, 3):
            raise UserError(f"A clip has 3 channels, or 1 of grey, not {channels}; leave the number out.")
        if frames < 1:
            raise UserError(f"Evaluation sees {frames} frames of a clip; give 1 or more.")
        self.places, self.name, self.labels, self.class_names = places, name, labels, class_names
        self.refused, self.channels, self.frames, self.short_side = refused, channels, frames, short_side
        self.keep_bytes = keep_bytes
        self._about: dict[int, Clip] = {}
        self._kept: dict[tuple[int, int | None], Tensor] = {}
        self._room = keep_bytes
        self._reader = lru_cache(maxsize=8)(Reader)

    def __len__(self) -> int:
        return len(self.places)

    def path(self, i: int) -> str:
        return self.places[i].name

    def about(self, i: int) -> Clip:
        """Number of frames, rate and size of clip i, from its header; read once. Raises BadFile."""
        if i not in self._about:
            self._about[i] = about(self._raw(i), self.path(i))
        return self._about[i]

    def length(self, i: int) -> int:
        """Number of frames of clip i; 0 where the clip cannot be read, which is told when it is decoded."""
        try:
            return self.about(i).frames
        except BadFile:
            return 0

    def record(self, i: int, plan: dict[str, Any] | None = None) -> dict[str, Any]:
        """{"video": uint8 [T, C, H, W]}, or [W, T, C, H, W] when the plan has several windows. Raises BadFile.

        Args:
            plan: {"windows": [(start, frames, stride), ...]} in frame numbers, which wrap around at the end of the
                clip, and {"short_side": s}. None: `frames` evenly spaced ones.
        """
        plan = plan or {}
        side, windows = plan.get("short_side", self.short_side), plan.get("windows")
        kept = self._whole(i, side)
        if kept is None:
            how = {"name": self.path(i), "channels": self.channels, "short_side": side, "frames": self.frames}
            return {"video": read_windows(self._raw(i), windows, **how)}
        length = len(kept)
        chosen = evenly(length, self.frames) if windows is None else [window_frames(w, length) for w in windows]
        parts = [kept[torch.from_numpy(numbers)] for numbers in chosen]
        return {"video": parts[0] if len(parts) == 1 else torch.stack(parts)}

    # --- what is behind ---------------------------------------------------------------------------------------
    def _whole(self, i: int, side: int | None) -> Tensor | None:
        """All frames of a short clip, kept from then on; None where there is no room for them."""
        if (i, side) not in self._kept:
            info = self.about(i)
            scale = min(1.0, side / min(info.width, info.height)) if side else 1.0
            size = int(info.frames * self.channels * info.width * info.height * scale**2)
            if info.frames > SHORT or size > self._room:
                return None
            window = (0, info.frames, 1)
            how = {"name": self.path(i), "channels": self.channels, "short_side": side}
            self._kept[i, side] = read_windows(self._raw(i), [window], **how)
            self._room -= size
        return self._kept[i, side]

    def _raw(self, i: int) -> bytes | Path:
        place = self.places[i]
        if not place.member:
            return Path(place.file)
        try:
            data = self._reader(place.file).read(place.offset, place.size)
        except OSError as error:
            raise BadFile(self.path(i), (error.strerror or str(error)).lower()) from error
        if len(data) < place.size:
            raise BadFile(self.path(i), "its tar has been cut off since the run began")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_room": self.keep_bytes, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_reader": lru_cache(maxsize=8)(Reader)})


# --- from a path to clips ---------------------------------------------------------------------------------------------
def is_clip(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def open_clips(data: Any, *, split: str | None = None, **options: Any) -> ClipSource:
    """The clips of a path.

    Args:
        data: see the head of this file; `PATH:SPLIT` names the split too. A ClipSource is returned as it is.
        split: the folder `train`, `test`, ... that the clips lie in (without it: the training part where folders are
            named so, else every clip; "all" takes every part), or a part of every class such as fold1/5 or rest1/5.
        options: of `ClipSource`.

    Raises:
        UserError: there are no clips, with the reason and the remedy.
    """
    if isinstance(data, ClipSource):
        return data
    path, split = _path_and_split(data, split)
    fold = FOLD.fullmatch(split or "")
    found = _found(path)
    if found.names is not None:
        found = _of_split(path, found, None if fold else split)
    elif not fold:
        no_split(split, "a text list")
    if fold:
        found = found.take(_fold(fold, found))
    name = f"{path}:{split}" if split else str(path)
    about = {"labels": found.labels, "class_names": found.classes, "refused": found.refused}
    return ClipSource(found.places, name=name, **about, **options)


@dataclass
class _Found:
    places: list[Place]
    names: list[str] | None = None
    """Below the folder or in the tar, to find classes by; None where labels are known."""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> _Found:
        labels = None if self.labels is None else self.labels[rows]
        names = None if self.names is None else [self.names[i] for i in rows]
        return _Found([self.places[i] for i in rows], names, labels, self.classes, self.refused)


def _path_and_split(data: Any, split: str | None) -> tuple[Path, str | None]:
    if not isinstance(data, str | os.PathLike):
        raise UserError(f"Clips come from a path, not from {type(data).__name__}; give a folder, a list or a tar.")
    path = Path(data).expanduser()
    if not path.exists() and ":" in str(data) and split is None:
        front, _, split = str(data).rpartition(":")
        path = Path(front).expanduser()
    if not path.exists():
        raise UserError(f"There is no path {path}; give a folder of clips, a text list, a tar or one video file.")
    return path, split


def _found(path: Path) -> _Found:
    """All clips of a path, in the order of their names."""
    suffix = path.suffix.lower()
    if path.is_dir():
        names = _walk(path)
        clips = [n for n in names if is_clip(n)]
        tars = [n for n in names if os.path.splitext(n)[1].lower() in TARS]
        if clips:
            return _Found([Place(str(path / n)) for n in clips], clips)
        if tars:
            return _in_tars([path / n for n in tars])
        kinds = Counter(os.path.splitext(n)[1].lower() or "no suffix" for n in names).most_common(3)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds)
        raise UserError(
            f"The folder {path} holds no clip ({', '.join(SUFFIXES[:6])} ...) and no tar, "
            + (f"only other files ({told})" if told else "it is empty")
            + "; give a folder of video files."
        )
    if suffix in TARS:
        return _in_tars([path])
    if suffix in LISTS:
        listed = read_list(path)
        return _Found([Place(f) for f in listed.files], None, listed.labels, listed.class_names)
    if suffix in SQUEEZED:
        raise UserError(f"{path} is compressed, and clips are read in any order; unpack it, and keep a tar plain.")
    return _Found([Place(str(path))], [path.name])


def _walk(root: Path) -> list[str]:
    """Files below a folder, relative to it, in order; hidden ones are left out."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        below = os.path.relpath(folder, root)
        names += [f if below == "." else f"{below}/{f}" for f in files if not f.startswith(".")]
    return sorted(names)


def _in_tars(files: list[Path]) -> _Found:
    """The clips in tars; what is not trusted in them is refused."""
    found, refused, others = [], {}, Counter()
    for file in files:
        try:
            for member in members(Reader(file)):
                base = member.name.rpartition("/")[2]
                if member.reason or (is_clip(base) and member.size > MAX_CLIP):
                    where = f"{file}#{member.name}" if member.name else str(file)
                    refused[where] = member.reason or f"has {member.size:,} bytes, more than {MAX_CLIP:,}"
                elif is_clip(base) and not base.startswith("."):
                    found.append(Place(str(file), member.name, member.offset, member.size))
                else:
                    others[os.path.splitext(base)[1].lower() or "no suffix"] += 1
        except (OSError, NoTar) as error:
            raise UserError(f"{file} cannot be read as a tar ({reason_of(error)}); mend or remove it.") from error
    if not found:
        told = ", ".join(k for k, _ in others.most_common(3)) or "nothing"
        raise UserError(f"{files[0]} holds no clip, its members end in {told}; give a tar of video files.")
    found.sort(key=lambda place: (place.member, place.file))
    return _Found(found, [place.member for place in found], refused=refused)


def _of_split(path: Path, found: _Found, split: str | None) -> _Found:
    """The clips of a split, labelled by their folders."""
    names = found.names or []
    parts = sorted({n.split("/")[0] for n in names if "/" in n})
    marked = bool(parts) and all("/" in n for n in names) and all(p.lower() in SPLITS for p in parts)
    if split is None and marked:
        split = next((p for p in parts if p.lower() in TRAIN), None)
    below = ""
    if split not in (None, "all"):
        below = f"{split}/"
        rows = [i for i, n in enumerate(names) if n.startswith(below)]
        if not rows:
            hint = nearest(split, parts) if parts else "it has no folders; leave the split out, or take fold1/5."
            raise UserError(f"There is no folder '{split}' with clips in {path}; {hint}")
        found = found.take(np.array(rows))
    labels, classes = class_folders(Files.of("", found.names or []), below)
    return replace(found, labels=labels, classes=classes)


def _fold(fold: re.Match[str], found: _Found) -> np.ndarray:
    """The rows of fold k of n of every class, or the rest of them, in order."""
    kind, k, n = fold[1], int(fold[2]), int(fold[3])
    if not 1 <= k <= n or n < 2:
        raise UserError(f"There is no split '{fold[0]}'; the folds are numbered from 1, as in fold1/5 to fold5/5.")
    labels = found.labels if found.labels is not None else np.zeros(len(found.places), np.int64)
    inside = np.zeros(len(labels), bool)
    for value in np.unique(labels):
        inside[np.array_split(np.flatnonzero(labels == value), n)[k - 1]] = True
    rows = np.flatnonzero(inside if kind == "fold" else ~inside)
    if not len(rows):
        raise UserError(f"The split '{fold[0]}' holds no clip of {len(labels)}; take fewer folds.")
    return rows
