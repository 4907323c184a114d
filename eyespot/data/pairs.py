"""Pictures with captions, in any script.

    a Parquet file, or several     a column of pictures and one of captions, one string or a list of strings a row
    a folder of pictures           with captions.tsv, captions.csv, captions.jsonl (or metadata.csv, metadata.jsonl as
                                   the Hugging Face library has it) that names file and caption; a file may occur again
                                   with another caption. Else with a .txt beside each picture, one caption a line
    tars in the form of WebDataset a .txt beside the picture of each sample

A picture may have several captions. A record carries all of them, so that a method draws which one a step sees and the
pictures can stay in memory; a plan {"caption": k} chooses before anything is read.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eyespot.data.decode import BadFile
from eyespot.data.folder import FileSource
from eyespot.data.names import Strings
from eyespot.data.parquet import ParquetSource
from eyespot.data.records import Record, RecordSource
from eyespot.data.sources import Source, open_source
from eyespot.data.webdataset import TarSource
from eyespot.errors import UserError, nearest

TEXT_NAMES = ("captions", "caption", "text", "texts", "sentences", "sentence", "description", "alt_text")
"""Names of columns and keys that are taken for captions, the first that exists."""
FILE_NAMES = ("file", "file_name", "filename", "image", "path", "picture", "img")
CLASS_NAMES = ("name", "class_name", "class", "category", "label_name", "label_text")
LISTS = tuple(f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in (".tsv", ".csv", ".jsonl"))


class Captions(Sequence[tuple[str, ...]]):
    """The captions of n samples in one block of bytes, see `eyespot.data.names.Strings`; empty ones are left out."""

    def __init__(self, captions: Iterable[Iterable[str]]):
        kept = [tuple(c for c in (_clean(text) for text in texts) if c) for texts in captions]
        self.strings = Strings.of(c for texts in kept for c in texts)
        self.ends = np.cumsum([0, *map(len, kept)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: Any) -> Any:
        return tuple(self.strings[k] for k in range(int(self.ends[i]), int(self.ends[i + 1])))

    def all(self) -> Iterator[str]:
        """Every caption, sample by sample."""
        return iter(self.strings)


def _clean(text: Any) -> str:
    return " ".join(str(text).split()) if text is not None else ""


class PairSource(RecordSource):
    """Records of "image", uint8 [C, H, W], "text", one caption, and "captions", all of them.

    Args:
        pictures: where the pictures come from.
        texts: the captions of each of them.
        channels: of every picture; None keeps what each has.
        refused: {name: reason} of captions whose picture does not exist.
    """

    fields = ("image", "text", "captions")

    def __init__(
        self,
        pictures: Source,
        texts: Iterable[Iterable[str]],
        *,
        channels: int | None = 3,
        refused: dict[str, str] | None = None,
    ):
        self.pictures, self.channels = pictures, channels
        self.texts = Captions(texts)
        if len(self.texts) != len(pictures):
            raise UserError(
                f"There are captions for {len(self.texts)} of {len(pictures)} pictures; give some for each."
            )
        if not len(self.texts.strings):
            raise UserError(
                f"No picture of {pictures.name} has a caption; say where they are, see the page on captions."
            )
        self.name, self.labels = pictures.name, pictures.labels
        self.class_names = class_names(pictures)
        self.threads = pictures.threads
        self.refused = {**pictures.refused, **(refused or {})}

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, i: int) -> str:
        return self.pictures.path(i)

    def prepare(self) -> None:
        self.pictures.prepare()

    def captions(self, i: int) -> tuple[str, ...]:
        """All captions of sample i. Raises BadFile when it has none."""
        found = self.texts[i]
        if not found:
            raise BadFile(self.path(i), "has no caption")
        return found

    def record(self, i: int, plan: dict[str, Any] | None = None) -> Record:
        """Picture and caption of sample i. Raises BadFile.

        Args:
            plan: {"caption": k} takes caption k, counted round and round; "region" and "short_side" are of the picture,
                see `eyespot.data.decode.decode`.
        """
        plan = dict(plan or {})
        captions = self.captions(i)
        text = captions[int(plan.pop("caption", 0)) % len(captions)]
        image = self.pictures.load(i, channels=self.channels, plan=plan or None)
        return {"image": image, "text": text, "captions": captions}


def open_pairs(
    data: Any,
    *,
    split: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    channels: int | None = 3,
) -> PairSource:
    """The pictures with captions of a path, see the head of this file.

    Args:
        data: a path, as `eyespot.data.sources.open_source` takes it, or a PairSource.
        split: part of the data, where parts are marked; also after a colon in the path.
        image_column, text_column, label_column: columns of Parquet files; `text_column` also of a list, and the ending
            of these members of tars. None finds them.
        channels: of every picture.

    Raises:
        UserError: there are no pictures or no captions, with the remedy.
    """
    if isinstance(data, PairSource):
        return data
    pictures = open_source(data, split=split, image_column=image_column, label_column=label_column)
    if isinstance(pictures, TarSource):
        told = open_source(data, split=split, image_column=image_column, label_column=text_column or "txt")
        return PairSource(pictures, _from_labels(told), channels=channels)
    if isinstance(pictures, ParquetSource):
        return PairSource(pictures, parquet_texts(pictures, text_column), channels=channels)
    if isinstance(pictures, FileSource):
        texts, refused = _folder_texts(pictures, _folder_of(data, pictures), text_column)
        return PairSource(pictures, texts, channels=channels, refused=refused)
    raise UserError(
        f"'{pictures.name}' has no captions that eyespot can read; give Parquet files with a column of captions, or a "
        "folder of pictures with captions.tsv."
    )


# --- Parquet ------------------------------------------------------------------------------------------------------
def parquet_texts(source: ParquetSource, column: str | None = None) -> list[list[str]]:
    """The captions of the rows of a source."""
    schema = pq.read_schema(source.files[0])
    fit = [field.name for field in schema if _is_text(field.type)]
    if column is not None and column not in schema.names:
        raise UserError(f"{source.files[0]} has no column '{column}'; {nearest(column, schema.names)}")
    if column is not None and column not in fit:
        raise UserError(f"The column '{column}' of {source.files[0]} holds no text; {nearest(column, fit)}")
    found = column or next((name for name in TEXT_NAMES if name in fit), None)
    if found is None:
        raise UserError(
            f"{source.files[0]} has no column of captions ({', '.join(TEXT_NAMES[:4])}); name it with --text-column, "
            f"one of: {', '.join(fit) or 'there is no column of text'}."
        )
    values = column_of(source, found)
    return [[v] if isinstance(v, str) else list(v or ()) for v in values]


def _is_text(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def column_of(source: ParquetSource, name: str) -> list[Any]:
    """A small column, of the rows of a source."""
    values: list[Any] = []
    for file in source.files:
        try:
            values += pq.read_table(file, columns=[name]).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"The column '{name}' of {file} cannot be read ({reason}).") from error
    return [values[row] for row in source.rows.tolist()]


def class_names(source: Source) -> tuple[str, ...]:
    """The names of the classes in words: where they are only numbers, those of a column beside them that has exactly
    one word for each class (name, class_name, category ...)."""
    names = source.class_names
    if source.labels is None or not isinstance(source, ParquetSource) or not all(n.isdecimal() for n in names):
        return names
    columns = pq.read_schema(source.files[0])
    for column in (c for c in CLASS_NAMES if c in columns.names and pa.types.is_string(columns.field(c).type)):
        pairs = {(k, w) for k, w in zip(source.labels.tolist(), column_of(source, column), strict=True) if k >= 0}
        words = {k: w for k, w in pairs if w}
        if len(pairs) == len(words) == len(set(words.values())):
            return tuple(words.get(k, name) for k, name in enumerate(names))
    return names


# --- folders ------------------------------------------------------------------------------------------------------
def _folder_of(data: Any, pictures: Source) -> Path:
    """The folder that was named, without a split after a colon."""
    path = Path(str(data)).expanduser()
    if path.is_dir():
        return path
    front = Path(str(data).rpartition(":")[0]).expanduser()
    return front if front.is_dir() else Path(pictures.name).parent


def _folder_texts(pictures: FileSource, root: Path, column: str | None) -> tuple[list[list[str]], dict[str, str]]:
    """The captions of each picture, and what a list names that does not exist."""
    files = [os.path.relpath(pictures.files[i], root).replace(os.sep, "/") for i in range(len(pictures))]
    places = dict.fromkeys([root, *(root / f.split("/")[0] for f in files if "/" in f)])
    lists = [place / name for place in places for name in LISTS if (place / name).is_file()]
    if not lists:
        return [_beside(Path(pictures.files[i])) for i in range(len(pictures))], {}
    given: dict[str, list[str]] = {}
    for path in lists:
        below = os.path.relpath(path.parent, root).replace(os.sep, "/")
        for file, texts in read_captions(path, column):
            full = file if below == "." else f"{below}/{file}"
            given.setdefault(os.path.normpath(full).replace(os.sep, "/"), []).extend(texts)
    by_leaf = _unique_leaves(files)
    number = {name: k for k, name in enumerate(files)}
    found: list[list[str]] = [[] for _ in files]
    refused = {}
    for name, texts in given.items():
        k = number.get(name, by_leaf.get(name.rpartition("/")[2], -1))
        if k >= 0:
            found[k] += texts
        elif not (root / name).is_file():  # else a picture of another split
            refused[str(root / name)] = "has captions, but there is no such picture"
    return found, refused


def _unique_leaves(files: list[str]) -> dict[str, int]:
    """The picture of each file name that occurs once."""
    seen: dict[str, int] = {}
    for k, name in enumerate(files):
        leaf = name.rpartition("/")[2]
        seen[leaf] = -1 if leaf in seen else k
    return seen


def _beside(picture: Path) -> list[str]:
    """The lines of the .txt beside a picture; none where there is no such file, or it is no text."""
    try:
        return picture.with_suffix(".txt").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def read_captions(path: Path, column: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """(file, captions) of each line of captions.tsv, .csv or .jsonl.

    A table begins with the names of its columns; without them it has two, file and caption.

    Raises:
        UserError: it is no text in UTF-8, or file or caption are not to be found.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8; save it as UTF-8.") from error
    rows = _json_rows(path, text) if path.suffix == ".jsonl" else _table_rows(path, text, column)
    for number, row in rows:
        file = next((row[k] for k in FILE_NAMES if row.get(k)), None)
        value = row.get(column) if column else next((row[k] for k in TEXT_NAMES if row.get(k) is not None), None)
        if file is None:
            raise UserError(f"Line {number} of {path} names no picture; write it as one of {', '.join(FILE_NAMES)}.")
        texts = [value] if isinstance(value, str) else list(value or ())
        yield str(file), [str(t) for t in texts]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"Line {number} of {path} is not JSON ({error}); mend or remove it.") from error
        if not isinstance(row, dict):
            raise UserError(f'Line {number} of {path} must be like {{"file": "a.jpg", "caption": "..."}}.')
        yield number, row


def _table_rows(path: Path, text: str, column: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    head = [name.strip().lower() for name in rows[0]] if rows else []
    named = any(name in FILE_NAMES for name in head) and (column or any(name in TEXT_NAMES for name in head))
    if not named and (len(head) != 2 or column):
        raise UserError(f"{path} must begin with a line that names its columns, such as file and caption.")
    names = [column if column and n == column.lower() else n for n in head] if named else ["file", "caption"]
    for number, row in enumerate(rows[1:] if named else rows, 2 if named else 1):
        if len(row) > len(names):
            raise UserError(
                f"Line {number} of {path} has {len(row)} cells for {len(names)} columns; put captions that hold the "
                "separator in quotes."
            )
        if any(cell.strip() for cell in row):
            yield number, dict(zip(names, row + [""] * (len(names) - len(row)), strict=True))


# --- tars ---------------------------------------------------------------------------------------------------------
def _from_labels(told: Source) -> list[list[str]]:
    """The captions of tars, which were read as labels are: one word of its own for each."""
    if told.labels is None:
        raise UserError(f"{told.name} has no captions (.txt); name their ending with --text-column.")
    return [[told.class_names[k]] if k >= 0 else [] for k in told.labels.tolist()]
