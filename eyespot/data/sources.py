"""Where samples come from: one `Source` for everything that `--data` may name, and `open_source` that finds which.

    a folder              pictures at any depth and of any mix of formats; class folders become labels (folder.py)
    a text list           one path a line, with an optional label after a tab (folder.py)
    one picture           (folder.py)
    a Parquet file, or a folder of them, as the Hugging Face hub exports a data set (parquet.py)
    a tar, or a folder of them, in the form of WebDataset (webdataset.py)
    a pattern of Parquet files or tars, "shards/train-{000000..000099}.tar" (patterns.py)
    a `datasets.Dataset` of the Hugging Face library, or the folder that it was saved to (hub.py)
    a map-style PyTorch data set, or any sequence of pictures (dataset.py)
    scenes:train, scenes:test    the rendered demo data (scenes.py)
    mosaic:PATH                  scenes of four labelled pictures each, with masks (mosaic.py)
    glyphs:PATH                  pictures whose class is a small mark on them (glyphs.py)
    objects:train, objects:test  scenes of several shapes, with masks (objects.py)

A data set that marks its splits is told which by `split=`, or by the name after a colon: `flowers.parquet:test`.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eyespot.data.batches import SampleSource
from eyespot.data.decode import decode, shape_of
from eyespot.data.patterns import expand
from eyespot.errors import UserError, nearest

PARQUET = frozenset((".parquet", ".pq"))
TARS = frozenset((".tar",))
SQUEEZED = frozenset((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z"))
"""Compressed: nothing in them can be read without reading all that comes before."""
LISTS = frozenset((".txt", ".lst", ".list", ".tsv"))
Shape = tuple[int, int, int, bool]


class Source(SampleSource):
    """Numbered pictures. A subclass sets `name`, and `labels` and `class_names` where labels are known."""

    @abstractmethod
    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        """The picture [C, H, W] of sample i, as `eyespot.data.decode.decode` gives it. Raises BadFile."""

    @abstractmethod
    def shape(self, i: int) -> Shape:
        """(channels, height, width, more than 8 bits) of sample i without decoding it. Raises BadFile."""


class EncodedSource(Source):
    """Samples that are encoded pictures: a file or bytes."""

    @abstractmethod
    def raw(self, i: int) -> bytes | Path:
        """The encoded picture. Raises BadFile."""

    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        return decode(self.raw(i), name=self.path(i), channels=channels, plan=plan)

    def shape(self, i: int) -> Shape:
        return shape_of(self.raw(i), name=self.path(i))


def aligned_labels(source: Source, class_names: tuple[str, ...]) -> np.ndarray:
    """The labels of a source as numbers into other class names, int64 [n], -1 for a class that is not among them.

    Two folders, of which one lacks a class, number their classes differently; names tell them apart.
    """
    if source.labels is None:
        return np.full(len(source), -1, np.int64)
    number = {name: k for k, name in enumerate(class_names)}
    table = np.array([*(number.get(name, -1) for name in source.class_names), -1], np.int64)
    return table[source.labels]


def numbered(values: list[Any], known: tuple[str, ...] = ()) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as they are stored (integers, or words, or None) as int64 [n] and the names of the classes.

    Integers keep their numbers, so that a training and a test file agree; words are numbered in sorted order.
    """
    present = [v for v in values if v is not None and v != -1]
    if not present:
        return None, ()
    whole = all(isinstance(v, int | np.integer) for v in present)
    top = max(present) if whole else 0
    if whole and min(present) >= 0 and (known or top < 1000 + 10 * len(set(present))):
        names = known if top < len(known) else tuple(str(k) for k in range(top + 1))
        return np.array([-1 if v is None else v for v in values], np.int64), names
    words = sorted(set(present)) if whole else sorted({str(v) for v in present})
    names = tuple(str(w) for w in words)
    number = {name: k for k, name in enumerate(names)}
    return np.array([number.get(str(v), -1) for v in values], np.int64), names


def open_source(
    data: Any,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The samples of a path, a name or an object.

    Args:
        data: a path (see the head of this file), `scenes:train`, a map-style data set, or a Source.
        split: which part of a data set that marks parts by folder, by file name or in a `split` column; "all" takes
            every part. Without it: the training part where folders or files are named so, else every sample.
        image_column, label_column: columns of Parquet files and of the Hugging Face library, endings of the members of
            tars (a label also as a key of their .json), or keys of samples that are dictionaries.

    Raises:
        UserError: there is nothing to read, with the reason and the remedy.
    """
    if isinstance(data, Source):
        return data
    if not isinstance(data, str | Path):
        return _open_object(data, split, image_column, label_column)
    if not str(data).strip():
        raise UserError("The data path is empty; give a folder, a text list or a Parquet file.")
    path = Path(data).expanduser()
    if not path.exists() and str(data).startswith("mosaic:"):
        from eyespot.data.mosaic import open_mosaic

        return open_mosaic(str(data)[len("mosaic:") :], split, image_column, label_column)
    if not path.exists() and str(data).startswith("glyphs:"):
        from eyespot.data.glyphs import open_glyphs

        return open_glyphs(str(data)[len("glyphs:") :], split, image_column, label_column)
    if not path.exists() and str(data).partition(":")[0] == "objects":
        from eyespot.data.objects import open_objects

        return open_objects(str(data).partition(":")[2] or split or "train")
    if not path.exists() and ":" in str(data):
        front, _, back = str(data).rpartition(":")
        if front == "scenes":
            return _scenes(back)
        if back and split is None and Path(front).expanduser().exists():
            path, split = Path(front).expanduser(), back
    if not path.exists() and str(data) == "scenes":
        return _scenes(split or "train")
    if not path.exists() and "{" in str(data):
        return _open_files(str(data), expand(str(data)), split, image_column, label_column)
    if not path.exists():
        raise _missing(path)
    return _open_path(path, split, image_column, label_column)


def _open_object(data: Any, split: str | None, image_column: str | None, label_column: str | None) -> Source:
    from eyespot.data.dataset import DatasetSource
    from eyespot.data.hub import is_hub, open_hub

    if is_hub(data):
        return open_hub(data, split, image_column, label_column)
    no_split(split, "a data set object")
    return DatasetSource(data, image_key=image_column, label_key=label_column)


def _open_path(path: Path, split: str | None, image_column: str | None, label_column: str | None) -> Source:
    from eyespot.data.folder import FileSource, is_picture, open_folder, read_list

    if path.is_dir():
        return open_folder(path, split, image_column, label_column)
    suffix = path.suffix.lower()
    if suffix in PARQUET | TARS:
        return _open_files(str(path), [path], split, image_column, label_column)
    if suffix in LISTS:
        no_split(split, "a text list")
        return read_list(path)
    if is_picture(path.name):
        no_split(split, "one picture")
        return FileSource([str(path)], name=path.name)
    if suffix in SQUEEZED:
        raise UserError(f"{path} is compressed, and samples are read in any order; unpack it, and keep a tar plain.")
    raise UserError(
        f"{path} is neither a folder, a picture, a Parquet file ({', '.join(sorted(PARQUET))}), a tar nor a text list "
        f"({', '.join(sorted(LISTS))}); give one of these."
    )


def _open_files(
    name: str, files: list[Path], split: str | None, image_column: str | None, label_column: str | None
) -> Source:
    """Parquet files, or tars."""
    from eyespot.data.parquet import ParquetSource
    from eyespot.data.webdataset import TarSource

    kinds = {f.suffix.lower() for f in files}
    if kinds <= PARQUET:
        name += f":{split}" if split else ""
        return ParquetSource(files, split=split, image_column=image_column, label_column=label_column, name=name)
    if kinds <= TARS:
        no_split(split, "a tar")
        return TarSource(files, image_column=image_column, label_column=label_column, name=name)
    raise UserError(
        f"The files of the pattern {name} are {', '.join(sorted(kinds))}; all must be .tar, or all .parquet."
    )


def _scenes(split: str) -> Source:
    from eyespot.data.dataset import DatasetSource
    from eyespot.data.scenes import SPLITS, SceneDataset

    if split not in SPLITS:
        raise UserError(f"The rendered scenes have no split '{split}'; {nearest(split, SPLITS)}")
    return DatasetSource(SceneDataset(split=split), name=f"scenes:{split}")


def no_split(split: str | None, what: str) -> None:
    if split not in (None, "all"):
        raise UserError(f"There is no split '{split}', because {what} has no splits; leave the split out.")


def _missing(path: Path) -> UserError:
    """The error for a path that does not exist, with what is near it."""
    if "://" in str(path) or str(path).startswith(("http:/", "https:/", "hf:/", "s3:/")):
        return UserError(f"{path} is an address, not a path on this machine; download it and give the folder.")
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        return UserError(f"There is no path {path}: the last folder of it that exists is {parent.resolve()}.")
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    if not names:
        return UserError(f"There is no path {path}: the folder {parent.resolve()} is empty.")
    hint = nearest(path.name, names)
    if hint.startswith("valid") and len(names) > 5:
        hint = f"{parent.resolve()} holds {', '.join(names[:5])} and {len(names) - 5} more."
    return UserError(f"There is no path {path}; {hint}")
