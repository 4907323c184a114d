"""Parquet files as the Hugging Face hub exports a data set: encoded pictures in a column, with an optional label.

The picture column holds bytes, or a struct {bytes, path}. Small columns are read at once. The pictures stay encoded:
in memory when they are few, else copied once, uncompressed and one row group at a time, into a file that is mapped into
memory, because a row inside a Parquet file cannot be reached without decoding the hundreds of rows around it. Of
several processes on a machine one makes the copy. Files are opened one after the other, so that there may be thousands.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eyespot.data.decode import BadFile
from eyespot.data.memory import cache_budget
from eyespot.data.sources import EncodedSource, numbered
from eyespot.data.stored import alone_on_this_machine, cache_folder
from eyespot.errors import UserError, nearest
from eyespot.process import world_size
from eyespot.runs import replacing

LABELS = ("label", "labels", "fine_label", "class", "class_name", "category", "target")
"""Names of columns that are taken for labels, the first that exists."""


class ParquetSource(EncodedSource):
    """The rows of one or more Parquet files.

    Args:
        files: the files, all with the same columns.
        split: keep rows whose column `split` has this value; None or "all" keeps every row.
        image_column, label_column: None finds them.
        memory: most bytes of encoded pictures held in memory; more are mapped from a file in the cache (stored.py
            says where). None: a share of the free memory.

    Raises:
        UserError: a file is damaged or has other columns than the first, there is no column of pictures, or no row.
    """

    def __init__(
        self,
        files: list[Path],
        *,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str = "",
        memory: int | None = None,
    ):
        self.files = files
        self.name = name or str(files[0]) + (f":{split}" if split else "")
        self.memory = cache_budget(world_size()) if memory is None else memory
        schema = _open(files[0]).schema_arrow
        features = _features(schema)
        self.column = _image_column(files[0], schema, features, image_column)
        self.pictures = tuple(f.name for f in schema if is_encoded(f.type))
        """The columns of encoded pictures, `column` among them."""
        label = _label_column(files[0], schema, label_column)
        self._stamps = [_stamp(file) for file in files]
        self._ends, self._bytes = self._measure([self.column, *([label] if label else [])])
        self.rows = self._chosen(schema, split)
        if not len(self.rows):
            raise UserError(f"{self.name} has no rows.")
        self._labels(label, features)
        self._chunks: list[Any] | None = None
        self._starts = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> str:
        row = int(self.rows[i])
        file = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self.files[file]}#{row - (int(self._ends[file - 1]) if file else 0)}"

    def raw(self, i: int) -> bytes | Path:
        self.prepare()
        assert self._chunks is not None
        row = int(self.rows[i])
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = self._chunks[chunk][row - int(self._starts[chunk])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or self._beside(value.get("path"))
        if not value:
            raise BadFile(self.path(i), "the row is empty")
        return value

    def other(self, column: str) -> ParquetSource:
        """The same rows, with another column of encoded pictures."""
        schema = _open(self.files[0]).schema_arrow
        source = copy.copy(self)
        source.column = _image_column(self.files[0], schema, {}, column)
        source._ends, source._bytes = source._measure([source.column])
        source._chunks = None
        return source

    def _beside(self, path: str | None) -> Path | None:
        """A picture that is only named in its row: a file beside the Parquet file."""
        file = self.files[0].parent / path if path else None
        return file if file is not None and file.is_file() else None

    def prepare(self) -> None:
        if self._chunks is None:
            self._check_unchanged()
            self._chunks = list(self._read()) if self._bytes <= self.memory else self._copy()
            lengths = [len(c) for c in self._chunks]
            self._starts = np.cumsum([0, *lengths[:-1]])

    def _check_unchanged(self) -> None:
        """Rows and labels are those of the files as they were opened."""
        for file, stamp in zip(self.files, self._stamps, strict=True):
            if _stamp(file) != stamp:
                raise UserError(f"{file} has changed since it was opened; start again when nothing writes to it.")

    def _measure(self, columns: list[str]) -> tuple[np.ndarray, int]:
        """Rows up to the end of each file int64 [files], and the bytes of the pictures in all of them."""
        rows, size = [], 0
        for file in self.files:
            parquet = _open(file)
            _need(file, parquet.schema_arrow, columns)
            rows.append(parquet.metadata.num_rows)
            size += _stored_bytes(parquet, self.column)
        return np.cumsum(rows), size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": None}  # a worker that is not forked opens the files itself

    def _read(self) -> Iterator[Any]:
        for file in self.files:
            parquet = _open(file)
            for group in range(parquet.num_row_groups):
                try:
                    column = parquet.read_row_group(group, columns=[self.column]).column(0)
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(file, error) from error
                yield from column.chunks

    def _copy(self) -> list[Any]:
        """The pictures, mapped from an uncompressed Arrow file that is written once for these files."""
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in self.files]
        key = hashlib.blake2b(json.dumps([stats, self.column]).encode(), digest_size=12).hexdigest()
        target = cache_folder() / f"{key}.arrow"
        chunks = self._whole(target)
        if chunks is not None:
            return chunks
        try:
            with alone_on_this_machine(target):
                if self._whole(target) is None:  # another process may have made it meanwhile
                    self._write(target)
                chunks = self._whole(target)
        except OSError as error:
            raise UserError(
                f"Cannot copy the pictures of {self.name} to {target.parent} ({error.strerror or error}); "
                "set EYESPOT_CACHE to a folder with room."
            ) from error
        if chunks is None:
            raise UserError(f"The copy of {self.name} in {target} cannot be read; delete it and start again.")
        return chunks

    def _whole(self, target: Path) -> list[Any] | None:
        """The chunks of a copy; None where there is none with every row."""
        try:
            chunks = pa.ipc.open_file(pa.memory_map(str(target))).read_all().column(0).chunks
        except (pa.ArrowException, OSError):
            return None
        return chunks if sum(map(len, chunks)) == self._ends[-1] else None

    def _write(self, target: Path) -> None:
        free = shutil.disk_usage(target.parent).free
        if free < self._bytes:
            raise OSError(f"{self._bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
        kind = _open(self.files[0]).schema_arrow.field(self.column).type
        schema = pa.schema([pa.field("image", kind)])
        with replacing(target) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for chunk in self._read():
                writer.write_batch(pa.record_batch([chunk.cast(kind)], schema=schema))

    def _chosen(self, schema: Any, split: str | None) -> np.ndarray:
        if split in (None, "all"):
            return np.arange(int(self._ends[-1]))
        if "split" not in schema.names:
            raise UserError(
                f"There is no split '{split}' in {self.name}, it has no column 'split'; leave the split out."
            )
        values = self._column("split")
        rows = np.array([k for k, value in enumerate(values) if str(value) == split], np.int64)
        if not len(rows):
            found = sorted({str(v) for v in values})[:20]
            raise UserError(f"There is no split '{split}' in {self.name}; {nearest(str(split), found)}")
        return rows

    def _column(self, name: str) -> list[Any]:
        """A small column of all rows."""
        values: list[Any] = []
        for file in self.files:
            parquet = _open(file)
            _need(file, parquet.schema_arrow, [name])
            try:
                values += parquet.read(columns=[name]).column(0).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, error) from error
        return values

    def _labels(self, label: str | None, features: dict[str, Any]) -> None:
        if label is None:
            return
        known = tuple(str(n) for n in features.get(label, {}).get("names") or ())
        # numbered over every row, so that the splits of one file agree
        labels, names = numbered(self._column(label), known)
        if labels is not None and (labels[self.rows] >= 0).any():
            self.labels, self.class_names = labels[self.rows], names


def _stamp(file: Path) -> tuple[int, int]:
    """Size and modification time; of a file that is gone, none."""
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0].rstrip('.')}.")


def _stored_bytes(parquet: Any, column: str) -> int:
    """Size in memory of a column, nested or not."""
    total = 0
    for group in range(parquet.num_row_groups):
        meta = parquet.metadata.row_group(group)
        for k in range(meta.num_columns):
            if meta.column(k).path_in_schema.split(".")[0] == column:
                total += meta.column(k).total_uncompressed_size
    return total


def _features(schema: Any) -> dict[str, Any]:
    """What the Hugging Face library wrote about the columns: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _is_bytes(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_encoded(kind: Any) -> bool:
    """Whether a column of this type holds files: bytes, or a struct {bytes, path}."""
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    return any(kind.field(k).name == "bytes" and _is_bytes(kind.field(k).type) for k in range(kind.num_fields))


def _image_column(file: Path, schema: Any, features: dict[str, Any], asked: str | None) -> str:
    fit = [f.name for f in schema if is_encoded(f.type)]
    if asked is not None:
        _need(file, schema, [asked])
        if asked not in fit:
            raise UserError(f"The column '{asked}' of {file} holds no encoded pictures; {nearest(asked, fit)}")
        return asked
    for name in ("image", "img", *(n for n in fit if features.get(n, {}).get("_type") == "Image")):
        if name in fit:
            return name
    pictures = [n for n in fit if "im" in n.lower() or "pic" in n.lower() or "photo" in n.lower()] or fit
    if len(pictures) == 1 and features.get(pictures[0], {}).get("_type") != "Audio" and "audio" not in pictures[0]:
        return pictures[0]
    if not fit:
        raise UserError(f"{file} has no column of encoded pictures, only {', '.join(schema.names)}.")
    raise UserError(f"{file} has no column 'image'; name the one with pictures: {', '.join(fit)}.")


def _is_label(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(check(kind) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string))


def _label_column(file: Path, schema: Any, asked: str | None) -> str | None:
    if asked is not None:
        _need(file, schema, [asked])
        if not _is_label(schema.field(asked).type):
            raise UserError(f"The column '{asked}' of {file} holds {schema.field(asked).type}, not integers or words.")
        return asked
    return next((n for n in LABELS if n in schema.names and _is_label(schema.field(n).type)), None)


def _need(file: Path, schema: Any, columns: list[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise UserError(f"{file} has no column '{column}'; {nearest(column, schema.names)}")
