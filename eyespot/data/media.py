"""Media files - clips, sounds - below a path: a folder of any depth, a text list, tars, one file.

    found = find(path, split, CLIPS)      # where every one lies, its label by class folders, what was refused

Data without splits can be cut: `split="fold2/5"` is the second fifth of every class in the order of the names, and
`split="rest2/5"` all the others, so that neighbouring names, often parts of one recording, stay on one side.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eyespot.data.batches import SampleSource
from eyespot.data.decode import BadFile, reason_of
from eyespot.data.folder import SPLITS, TRAIN, class_folders, read_list
from eyespot.data.names import Files
from eyespot.data.sources import LISTS, SQUEEZED, TARS, no_split
from eyespot.data.tar import NoTar, Reader, members
from eyespot.errors import UserError, nearest

LARGEST = 1 << 31
"""Bytes of one file that is read out of a tar."""
FOLD = re.compile(r"(fold|rest)(\d+)/(\d+)")


@dataclass(frozen=True)
class Kind:
    """What is looked for."""

    unit: str
    """What one is called: clip, sound."""
    of: str
    """What the files are called: video files."""
    suffixes: tuple[str, ...]
    """Endings of names, in lower case; files are recognised by content."""

    def has(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.suffixes


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


@dataclass
class Found:
    """Files of one kind, with what is known of them."""

    places: list[Place]
    names: list[str] | None = None
    """Below the folder or in the tar, to find classes by; None where labels are known."""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> Found:
        labels = None if self.labels is None else self.labels[rows]
        names = None if self.names is None else [self.names[i] for i in rows]
        return Found([self.places[i] for i in rows], names, labels, self.classes, self.refused)


class MediaFiles(SampleSource):
    """Encoded files, one a sample: in folders or in tars.

    Args:
        found: where they lie.
        name: what they are called together.
    """

    def __init__(self, found: Found, name: str):
        self.places, self.name = found.places, name
        self.labels, self.class_names, self.refused = found.labels, found.classes, found.refused
        self._reader = lru_cache(maxsize=8)(Reader)

    def __len__(self) -> int:
        return len(self.places)

    def path(self, i: int) -> str:
        return self.places[i].name

    def raw(self, i: int) -> bytes | Path:
        """The encoded file: its path, or its bytes where it lies in a tar. Raises BadFile."""
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
        return {**self.__dict__, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_reader": lru_cache(maxsize=8)(Reader)})


def find(data: Any, split: str | None, kind: Kind) -> tuple[Found, str]:
    """The files of a kind at a path, and what they are called together.

    Args:
        data: a folder, a text list, a tar, a folder of tars or one file; `PATH:SPLIT` names the split too.
        split: the folder `train`, `test`, ... that the files lie in (without it: the training part where folders are
            named so, else every file; "all" takes every part), or a part of every class: fold1/5, rest1/5.

    Raises:
        UserError: there are none, with the reason and the remedy.
    """
    path, split = path_and_split(data, split, kind)
    fold = FOLD.fullmatch(split or "")
    found = _found(path, kind)
    if found.names is not None:
        found = _of_split(path, found, None if fold else split, kind)
    elif not fold:
        no_split(split, "a text list")
    if fold:
        found = found.take(fold_rows(fold, found.labels, len(found.places), kind.unit))
    return found, f"{path}:{split}" if split else str(path)


def path_and_split(data: Any, split: str | None, kind: Kind) -> tuple[Path, str | None]:
    if not isinstance(data, str | os.PathLike):
        raise UserError(
            f"{kind.unit.capitalize()}s come from a path, not from {type(data).__name__}; give a folder, a list or a "
            "tar."
        )
    path = Path(data).expanduser()
    if not path.exists() and ":" in str(data) and split is None:
        front, _, split = str(data).rpartition(":")
        path = Path(front).expanduser()
    if not path.exists():
        raise UserError(f"There is no path {path}; give a folder of {kind.of}, a text list, a tar or one file.")
    return path, split


def _found(path: Path, kind: Kind) -> Found:
    """All files of a path, in the order of their names."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return _in_folder(path, kind)
    if suffix in TARS:
        return _in_tars([path], kind)
    if suffix in LISTS:
        listed = read_list(path)
        return Found([Place(f) for f in listed.files], None, listed.labels, listed.class_names)
    if suffix in SQUEEZED:
        raise UserError(f"{path} is compressed, and samples are read in any order; unpack it, and keep a tar plain.")
    if not kind.has(path.name):
        raise UserError(f"{path} is no {kind.unit} ({', '.join(kind.suffixes[:6])} ...), no tar and no text list.")
    return Found([Place(str(path))], [path.name])


def _in_folder(path: Path, kind: Kind) -> Found:
    names = _walk(path)
    fitting = [n for n in names if kind.has(n)]
    if fitting:
        return Found([Place(str(path / n)) for n in fitting], fitting)
    tars = [n for n in names if os.path.splitext(n)[1].lower() in TARS]
    if tars:
        return _in_tars([path / n for n in tars], kind)
    kinds = Counter(os.path.splitext(n)[1].lower() or "no suffix" for n in names).most_common(3)
    told = ", ".join(f"{count} {suffix}" for suffix, count in kinds)
    raise UserError(
        f"The folder {path} holds no {kind.unit} ({', '.join(kind.suffixes[:6])} ...) and no tar, "
        + (f"only other files ({told})" if told else "it is empty")
        + f"; give a folder of {kind.of}."
    )


def _walk(root: Path) -> list[str]:
    """Files below a folder, relative to it, in order; hidden ones are left out."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        below = os.path.relpath(folder, root)
        names += [f if below == "." else f"{below}/{f}" for f in files if not f.startswith(".")]
    return sorted(names)


def _in_tars(files: list[Path], kind: Kind) -> Found:
    """The files in tars; what is not trusted in them is refused."""
    found, refused, others = [], {}, Counter()
    for file in files:
        try:
            for member in members(Reader(file)):
                base = member.name.rpartition("/")[2]
                if member.reason or (kind.has(base) and member.size > LARGEST):
                    where = f"{file}#{member.name}" if member.name else str(file)
                    refused[where] = member.reason or f"has {member.size:,} bytes, more than {LARGEST:,}"
                elif kind.has(base) and not base.startswith("."):
                    found.append(Place(str(file), member.name, member.offset, member.size))
                else:
                    others[os.path.splitext(base)[1].lower() or "no suffix"] += 1
        except (OSError, NoTar) as error:
            raise UserError(f"{file} cannot be read as a tar ({reason_of(error)}); mend or remove it.") from error
    if not found:
        told = ", ".join(k for k, _ in others.most_common(3)) or "nothing"
        raise UserError(f"{files[0]} holds no {kind.unit}, its members end in {told}; give a tar of {kind.of}.")
    found.sort(key=lambda place: (place.member, place.file))
    return Found(found, [place.member for place in found], refused=refused)


def _of_split(path: Path, found: Found, split: str | None, kind: Kind) -> Found:
    """The files of a split, labelled by their folders."""
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
            raise UserError(f"There is no folder '{split}' with {kind.unit}s in {path}; {hint}")
        found = found.take(np.array(rows))
    labels, classes = class_folders(Files.of("", found.names or []), below)
    return replace(found, labels=labels, classes=classes)


def fold_rows(fold: re.Match[str], labels: np.ndarray | None, count: int, unit: str) -> np.ndarray:
    """The rows of fold k of n of every class, or the rest of them, in order.

    Args:
        fold: a match of `FOLD`.
        labels: int64 [count] or None.
        count: number of samples.
        unit: what one is called.
    """
    kind, k, n = fold[1], int(fold[2]), int(fold[3])
    if not 1 <= k <= n or n < 2:
        raise UserError(f"There is no split '{fold[0]}'; the folds are numbered from 1, as in fold1/5 to fold5/5.")
    labels = labels if labels is not None else np.zeros(count, np.int64)
    inside = np.zeros(len(labels), bool)
    for value in np.unique(labels):
        inside[np.array_split(np.flatnonzero(labels == value), n)[k - 1]] = True
    rows = np.flatnonzero(inside if kind == "fold" else ~inside)
    if not len(rows):
        raise UserError(f"The split '{fold[0]}' holds no {unit} of {len(labels)}; take fewer folds.")
    return rows
