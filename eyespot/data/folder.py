"""Pictures as files: a folder of any depth, a text list, one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from eyespot.data.hub import open_saved
from eyespot.data.masks import without_masks
from eyespot.data.names import Files
from eyespot.data.parquet import ParquetSource
from eyespot.data.picture import SUFFIXES
from eyespot.data.sources import SQUEEZED, EncodedSource, Source, no_split, numbered
from eyespot.data.tree import Tree, scan
from eyespot.data.webdataset import TarSource
from eyespot.errors import UserError, nearest

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "unlabeled", "extra")
"""Names that mark a part of a data set rather than a class."""
TRAIN = ("train", "training")


class FileSource(EncodedSource):
    """A list of picture files.

    Args:
        files: paths.
        labels: int64 [n] or None.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        name: str = "",
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
    ):
        self.files, self.name, self.labels, self.class_names = files, name, labels, class_names

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        """The file; bytes of its name that are no UTF-8 as "\\xe9", so that any text file can hold it."""
        name = self.files[i]
        return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def raw(self, i: int) -> Path:
        return Path(self.files[i])


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def class_folders(files: Files, below: str = "") -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels by folder, when the folders are classes: every picture exactly one level below `below`, in at least two
    folders that are not named as splits. Otherwise there are no labels."""
    numbers = files.numbers()
    used = np.unique(numbers).tolist()
    folders = {k: files.folders[k][len(below) :] for k in used}
    names = sorted(f[:-1] for f in folders.values())
    if len(names) < 2 or any(f.count("/") != 1 for f in folders.values()) or all(n.lower() in SPLITS for n in names):
        return None, ()
    number = {name: k for k, name in enumerate(names)}
    table = np.full(max(used) + 1, -1, np.int64)
    table[used] = [number[folder[:-1]] for folder in folders.values()]
    return table[numbers], tuple(names)


def open_folder(root: Path, split: str | None, image_column: str | None, label_column: str | None) -> Source:
    """Pictures below a folder, or its Parquet files when it holds no picture, or its tars when it holds neither."""
    tree = scan(root)
    name = str(root) + (f":{split}" if split else "")
    if tree.pictures:
        return _pictures(root, tree.pictures, split)
    if tree.parquet:
        files, rest = _split_files(root, tree.parquet, split)
        return ParquetSource(
            [root / f for f in files], split=rest, image_column=image_column, label_column=label_column, name=name
        )
    if tree.tars:
        files, rest = _split_files(root, tree.tars, split)
        no_split(rest, "this set of tars")
        return TarSource([root / f for f in files], image_column=image_column, label_column=label_column, name=name)
    if (tree.arrow and (root / "state.json").is_file()) or (root / "dataset_dict.json").is_file():
        return open_saved(root, split, image_column, label_column)
    raise _nothing(root, tree)


def _pictures(root: Path, files: Files, split: str | None) -> Source:
    root, files = without_masks(root, files)
    folders = list(files.folders)
    parts = sorted({name.split("/")[0] for name in folders if name})
    marked = len(parts) > 0 and "" not in folders and all(p.lower() in SPLITS for p in parts)
    if split is None and marked:
        split = next((p for p in parts if p.lower() in TRAIN), None)
    if split in (None, "all"):
        labels, names = class_folders(files)
        return FileSource(files, name=str(root), labels=labels, class_names=names)
    chosen = files.below(f"{split}/")
    if not len(chosen):
        found = nearest(split, parts) if parts else "it has no folders; leave the split out."
        raise UserError(f"There is no folder '{split}' with pictures in {root}; {found}")
    labels, names = class_folders(chosen, f"{split}/")
    return FileSource(chosen, name=f"{root}:{split}", labels=labels, class_names=names)


def _split_of(file: str) -> str | None:
    """The split that a file is named for: train-00000-of-00005.parquet, data/test.parquet, val/0000.tar."""
    path = PurePosixPath(file)
    stem = path.stem.lower()
    for word in (stem, stem.split("-")[0], stem.split("_")[0], *(p.lower() for p in reversed(path.parts[:-1]))):
        if word in SPLITS:
            return word
    head, mark, _ = stem.partition("-0")
    return head if mark and "-of-" in stem else None


def _split_files(root: Path, files: list[str], split: str | None) -> tuple[list[str], str | None]:
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
        return UserError(f"The folder {root} is empty; give one that holds pictures, Parquet files or tars.")
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in tree.other.most_common(3))
    if SQUEEZED & tree.other.keys():
        return UserError(
            f"The folder {root} holds no picture but compressed files ({kinds}), and samples are read in any order; "
            "unpack them, and keep tars plain."
        )
    return UserError(
        f"The folder {root} holds no picture, no Parquet file and no tar, only other files ({kinds}); "
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
