"""What lies below a folder, found once: the listing of a large folder is kept, and checked by its folders' times.

A listing counts as long as every folder in it has the times and the inode that it had. Adding, removing or renaming a
file changes the times of its folder, so it is noticed; a folder that changed within two seconds before it was listed is
listed again the next time. What is not noticed: changes on file systems that do not keep the times of folders (some
mounts of object stores), and a dangling link that has become a folder. Then delete the folder `index` in the cache
(stored.py says where it is). Contents are never kept: a picture that is replaced under its name is read as it is now.
One look at every folder is left at each start, which is quick for thousands of folders and slow for millions.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eyespot.data.names import Files, Strings
from eyespot.data.picture import SUFFIXES
from eyespot.data.sources import PARQUET, TARS
from eyespot.data.stored import Arrays, index_file, keep_index, kept_index, settled
from eyespot.errors import UserError

SKIPPED = frozenset(("__MACOSX", "__pycache__"))
KEPT = 20_000
"""Files from which on a listing is kept: fewer are listed in a tenth of a second."""
KIND, MARKS = "folder", 3


@dataclass
class Tree:
    """What lies below a folder, sorted by path; "/" between parts."""

    pictures: Files
    parquet: list[str] = field(default_factory=list)
    """Relative to the folder, as are the next two."""
    tars: list[str] = field(default_factory=list)
    arrow: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    """Files of other kinds by suffix."""


def scan(root: Path) -> Tree:
    """All files below a folder, from the kept listing where it still holds. Hidden files and folders are left out;
    links to folders are followed, each real folder once, real ones first, so that loops end and no picture is listed
    twice.

    Raises:
        UserError: a folder cannot be read.
    """
    file = index_file(KIND, str(root.resolve()))
    return _kept(root, file) or _listed(root, file)


def _kept(root: Path, file: Path) -> Tree | None:
    found = kept_index(file, KIND) if file.exists() else None
    if found is None:
        return None
    about, arrays = found
    try:
        visited = Strings(arrays["visited"], arrays["visited_ends"])
        if not _unchanged(root, visited, arrays["marks"]):
            return None
        pictures = Files(
            str(root),
            Strings(arrays["folders"], arrays["folders_ends"]),
            arrays["folder_of"],
            Strings(arrays["leaves"], arrays["leaves_ends"]),
        )
        return Tree(pictures, about["parquet"], about["tars"], about["arrow"], Counter(about["other"]))
    except (LookupError, ValueError, TypeError):
        return None  # another program's file


def _unchanged(root: Path, visited: Strings, marks: np.ndarray) -> bool:
    if len(marks) != MARKS * len(visited):
        return False
    for name, mark in zip(visited, marks.reshape(-1, MARKS).tolist(), strict=True):
        try:
            if _mark(os.stat(root / name)) != mark:
                return False
        except OSError:
            return False
    return True


def _mark(found: os.stat_result) -> list[int]:
    """What changes with a folder: modification time, change time (ns) and inode."""
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_ino & ((1 << 63) - 1)]


class _Listing:
    """A walk through the folders, and what it came by."""

    def __init__(self) -> None:
        self.pictures: list[str] = []
        self.parquet: list[str] = []
        self.tars: list[str] = []
        self.arrow: list[str] = []
        self.other: Counter[str] = Counter()
        self.visited: list[str] = []
        self.marks: list[list[int]] = []
        """Of each folder, taken before it was listed."""

    def walk(self, root: Path) -> None:
        waiting, links, seen = [(str(root), "")], [], set()
        while waiting or links:
            folder, prefix = waiting.pop() if waiting else links.pop(0)
            try:
                found = os.stat(folder)
                self.visited.append(prefix)
                self.marks.append(_mark(found))
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda e: e.name)
            except OSError as error:
                raise UserError(f"Cannot read the folder {folder}: {error.strerror}; mend its permissions.") from error
            for entry in entries:
                if entry.name.startswith(".") or entry.name in SKIPPED:
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file() or entry.is_symlink():  # a dangling link is reported when it is read
                    self.sort_in(prefix + entry.name)
        for names in (self.pictures, self.parquet, self.tars, self.arrow):
            names.sort()

    def sort_in(self, name: str) -> None:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            self.pictures.append(name)
        elif suffix in PARQUET:
            self.parquet.append(name)
        elif suffix in TARS:
            self.tars.append(name)
        else:
            if suffix == ".arrow":
                self.arrow.append(name)
            self.other[suffix or "no suffix"] += 1

    def large(self) -> bool:
        lists = (self.pictures, self.parquet, self.tars, self.visited)
        return sum(map(len, lists)) + self.other.total() >= KEPT


def _listed(root: Path, file: Path) -> Tree:
    started, listing = time.time(), _Listing()
    listing.walk(root)
    pictures = Files.of(str(root), listing.pictures)
    tree = Tree(pictures, listing.parquet, listing.tars, listing.arrow, listing.other)
    if listing.large() and settled(max(mark[0] for mark in listing.marks) / 1e9, started):
        keep_index(file, KIND, _about(tree), _arrays(pictures, listing))
    return tree


def _about(tree: Tree) -> dict[str, Any]:
    return {"parquet": tree.parquet, "tars": tree.tars, "arrow": tree.arrow, "other": dict(tree.other)}


def _arrays(pictures: Files, listing: _Listing) -> Arrays:
    visited = Strings.of(listing.visited)
    return {
        "folders": pictures.folders.block,
        "folders_ends": pictures.folders.ends,
        "folder_of": pictures.folder_of,
        "leaves": pictures.leaves.block,
        "leaves_ends": pictures.leaves.ends,
        "visited": visited.block,
        "visited_ends": visited.ends,
        "marks": np.array(listing.marks, np.int64).reshape(-1),
    }
