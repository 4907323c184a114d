"""Pictures as files: a folder of any depth, a text list, one file."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from eyespot.data.parquet import ParquetSource
from eyespot.data.picture import SUFFIXES
from eyespot.data.sources import PARQUET, EncodedSource, Source, numbered
from eyespot.errors import UserError, nearest

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "unlabeled", "extra")
"""Names that mark a part of a data set rather than a class."""
TRAIN = ("train", "training")
SKIPPED = frozenset(("__MACOSX", "__pycache__"))


class FileSource(EncodedSource):
    """A list of picture files.

    Args:
        files: paths.
        labels: int64 [n] or None.
    """

    def __init__(
        self,
        files: list[str],
        *,
        name: str = "",
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
    ):
        self.files, self.name, self.labels, self.class_names = files, name, labels, class_names

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        return self.files[i]

    def raw(self, i: int) -> Path:
        return Path(self.files[i])


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


@dataclass
class Tree:
    """What lies below a folder: paths relative to it, sorted, with "/" between parts."""

    pictures: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    """Files of other kinds by suffix."""


def scan(root: Path) -> Tree:
    """All files below a folder. Hidden files and folders are left out; links to folders are followed, each real
    folder once, real ones first, so that loops end and no picture is listed twice."""
    tree, seen = Tree(), set()
    waiting, links = [(root, "")], []
    while waiting or links:
        folder, prefix = waiting.pop() if waiting else links.pop(0)
        try:
            key = os.stat(folder)
            if (key.st_dev, key.st_ino) in seen:
                continue
            seen.add((key.st_dev, key.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"Cannot read the folder {folder}: {error.strerror}; mend its permissions.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif entry.is_file() or entry.is_symlink():  # a dangling link is listed, and reported when it is read
                _sort_in(tree, prefix + entry.name)
    tree.pictures.sort()
    tree.parquet.sort()
    return tree


def _sort_in(tree: Tree, name: str) -> None:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        tree.pictures.append(name)
    elif suffix in PARQUET:
        tree.parquet.append(name)
    else:
        tree.other[suffix or "no suffix"] += 1


def class_folders(pictures: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels by folder, when the folders are classes: every picture exactly one level down, in at least two folders
    that are not named as splits. Otherwise there are no labels."""
    parts = [name.split("/") for name in pictures]
    names = sorted({p[0] for p in parts})
    if len(names) < 2 or any(len(p) != 2 for p in parts) or all(n.lower() in SPLITS for n in names):
        return None, ()
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[p[0]] for p in parts], np.int64), tuple(names)


def open_folder(root: Path, split: str | None, image_column: str | None, label_column: str | None) -> Source:
    """Pictures below a folder, or its Parquet files when it holds no picture."""
    tree = scan(root)
    if tree.pictures:
        return _pictures(root, tree.pictures, split)
    if not tree.parquet:
        raise _nothing(root, tree)
    files, rest = _parquet_split(root, tree.parquet, split)
    return ParquetSource(
        [root / f for f in files],
        split=rest,
        image_column=image_column,
        label_column=label_column,
        name=str(root) + (f":{split}" if split else ""),
    )


def _pictures(root: Path, pictures: list[str], split: str | None) -> Source:
    parts = sorted({name.split("/")[0] for name in pictures if "/" in name})
    marked = len(parts) > 0 and all("/" in n for n in pictures) and all(p.lower() in SPLITS for p in parts)
    if split is None and marked:
        split = next((p for p in parts if p.lower() in TRAIN), None)
    if split in (None, "all"):
        labels, names = class_folders(pictures)
        return FileSource([str(root / p) for p in pictures], name=str(root), labels=labels, class_names=names)
    chosen = [name[len(split) + 1 :] for name in pictures if name.startswith(f"{split}/")]
    if not chosen:
        found = nearest(split, parts) if parts else "it has no folders; leave the split out."
        raise UserError(f"There is no folder '{split}' with pictures in {root}; {found}")
    labels, names = class_folders(chosen)
    files = [str(root / split / p) for p in chosen]
    return FileSource(files, name=f"{root}:{split}", labels=labels, class_names=names)


def _split_of(file: str) -> str | None:
    """The split that a Parquet file is named for: train-00000-of-00005.parquet, data/test.parquet, val/0000.parquet."""
    path = PurePosixPath(file)
    stem = path.stem.lower()
    for word in (stem, stem.split("-")[0], stem.split("_")[0], *(p.lower() for p in reversed(path.parts[:-1]))):
        if word in SPLITS:
            return word
    head, mark, _ = stem.partition("-0")
    return head if mark and "-of-" in stem else None


def _parquet_split(root: Path, files: list[str], split: str | None) -> tuple[list[str], str | None]:
    """The files of a split, and the split that is still to be found in a column."""
    by_name = {f: _split_of(f) for f in files}
    marked = sorted({s for s in by_name.values() if s})
    if split == "all" or not marked:
        return files, split
    if split is None:
        wanted = next((s for s in marked if s in TRAIN), None)
        return [f for f in files if wanted in (None, by_name[f])], None
    chosen = [f for f in files if by_name[f] == split.lower()]
    if chosen:
        return chosen, None
    if len(marked) < 2:
        return files, split  # perhaps a column tells
    raise UserError(f"There is no split '{split}' in {root}; {nearest(split, marked)}")


def _nothing(root: Path, tree: Tree) -> UserError:
    if not tree.other:
        return UserError(f"The folder {root} is empty; give one that holds pictures or Parquet files.")
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in tree.other.most_common(3))
    return UserError(
        f"The folder {root} holds no picture and no Parquet file, only other files ({kinds}); "
        "give a folder with pictures such as .jpg, .png, .tif or .npy."
    )


def read_list(path: Path) -> FileSource:
    """A text list: one path a line, relative to the list, with an optional label after a tab.

    Raises:
        UserError: the list is empty or no text, names files that do not exist, or labels only some lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text list in UTF-8; write one path a line.") from error
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"The list {path} is empty; write one path a line.")
    files = [str(path.parent / line[0].strip()) for line in lines]
    missing = [line[0] for line, file in zip(lines, files, strict=True) if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"The list {path} names {len(missing)} of {len(files)} files that do not exist, the first is "
            f"'{missing[0]}' (relative to {path.parent.resolve()}); correct or remove these lines."
        )
    words = [line[1].strip() if len(line) > 1 else "" for line in lines]
    if any(words) and not all(words):
        bare = words.index("")
        raise UserError(f"The list {path} has no label for '{lines[bare][0]}' but for others; label all lines or none.")
    values = [int(w) if w.lstrip("-").isdecimal() else w for w in words] if any(words) else []
    labels, names = numbered(values)
    return FileSource(files, name=str(path), labels=labels, class_names=names)
