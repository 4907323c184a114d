"""`datasets.Dataset` of the Hugging Face library, in memory or mapped from Arrow files, and the folder it was saved to.

The library is recognised by its name, never imported before somebody gives one of its objects or folders. Pictures are
taken as they are stored and decoded here, so that they are the same as from any other source; labels keep the names of
their `ClassLabel`. A data set with a transform of its own is read sample by sample, as any other map-style data set.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from eyespot.data.dataset import IMAGE_KEYS, LABEL_KEYS, DatasetSource
from eyespot.data.decode import BadFile
from eyespot.data.sources import EncodedSource, Source, no_split, numbered
from eyespot.errors import MissingExtra, UserError, nearest

PARTS = ("train", "training")


def is_hub(data: Any) -> bool:
    """Whether an object is a `datasets.Dataset` or a `datasets.DatasetDict`."""
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(data).__mro__}
    return bool(names & {("datasets", "Dataset"), ("datasets", "DatasetDict")})


def open_hub(
    data: Any,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str = "",
) -> Source:
    """The samples of a `datasets.Dataset`, or of one part of a `datasets.DatasetDict`.

    Args:
        split: the part; None takes the training part, or the only one; "all" takes every part.

    Raises:
        UserError: there is no such part or column, or no column holds pictures.
    """
    if isinstance(data, dict):
        data, name = _part(data, split), f"{name}:{split}" if name and split else name
    else:
        no_split(split, "a data set object")
    name = name or str(getattr(data.info, "dataset_name", None) or "Dataset")
    if data.format["type"] == "custom":
        return DatasetSource(data, name=name, image_key=image_column, label_key=label_column)
    image = _image_column(data, name, image_column)
    if image is None:
        return DatasetSource(data, name=name, image_key=image_column, label_key=label_column)
    return HubSource(data, image, _label_column(data, name, label_column), name)


def open_saved(root: Path, split: str | None, image_column: str | None, label_column: str | None) -> Source:
    """The samples of a folder that `save_to_disk` wrote; its Arrow files are mapped, not read.

    Raises:
        MissingExtra: the library is not installed.
        UserError: the folder is damaged.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", f"The folder {root} of the Hugging Face library") from error
    try:
        data = library.load_from_disk(str(root))
    except (OSError, ValueError, TypeError, LookupError) as error:  # Arrow's errors are ValueErrors
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"The saved data set {root} cannot be read: {reason}; save it again.") from error
    return open_hub(data, split, image_column, label_column, str(root))


class HubSource(EncodedSource):
    """The rows of a `datasets.Dataset` whose column `image` holds encoded pictures.

    Raises:
        UserError: there are no rows.
    """

    def __init__(self, data: Any, image: str, label: str | None, name: str):
        if not len(data):
            raise UserError(f"The data set {name} is empty.")
        self.name, self.column = name, image
        self.rows = data.with_format(None).select_columns([image])
        if hasattr(data.features[image], "decode"):
            self.rows = self.rows.cast_column(image, type(data.features[image])(decode=False))
        if label is not None:
            known = tuple(str(n) for n in getattr(data.features[label], "names", None) or ())
            self.labels, self.class_names = numbered(list(data.with_format(None)[label][:]), known)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> str:
        return f"{self.name}#{i}"

    def raw(self, i: int) -> bytes | Path:
        value = self.rows[int(i)][self.column] or {}
        if isinstance(value, bytes):
            return value
        if value.get("bytes"):
            return value["bytes"]
        path = value.get("path")
        if not path:
            raise BadFile(self.path(i), "the row holds no picture")
        if not os.path.isfile(path):
            raise BadFile(self.path(i), f"names '{path}', which is no file on this machine")
        return Path(path)


def _part(data: dict[str, Any], split: str | None) -> Any:
    names = [str(k) for k in data]
    if not names:
        raise UserError("The data set is empty: it has no parts.")
    if split == "all":
        return importlib.import_module("datasets").concatenate_datasets(list(data.values()))
    if split is not None and split not in data:
        raise UserError(f"There is no split '{split}' in the data set; {nearest(split, names)}")
    chosen = split or next((n for n in names if n in PARTS), names[0] if len(names) == 1 else None)
    if chosen is None:
        raise UserError(f"The data set has the parts {', '.join(names)}; name one as the split.")
    return data[chosen]


def _image_column(data: Any, name: str, asked: str | None) -> str | None:
    """The column of pictures; None where no column is of that kind."""
    fit = [n for n, feature in data.features.items() if _is_image(feature)]
    if asked is not None:
        _need(data, name, asked)
        return asked if asked in fit else None
    found = next((n for n in IMAGE_KEYS if n in fit), None)
    if found is None and len(fit) > 1:
        raise UserError(f"{name} has several columns of pictures; name one: {', '.join(fit)}.")
    return found or (fit[0] if fit else None)


def _label_column(data: Any, name: str, asked: str | None) -> str | None:
    if asked is not None:
        _need(data, name, asked)
        if not _is_label(data.features[asked]):
            raise UserError(f"The column '{asked}' of {name} holds {data.features[asked]}, not integers or words.")
        return asked
    named = [n for n, feature in data.features.items() if type(feature).__name__ == "ClassLabel"]
    usual = [n for n in LABEL_KEYS if n in data.features and _is_label(data.features[n])]
    return next((n for n in usual if n in named), None) or (named[0] if len(named) == 1 else next(iter(usual), None))


def _is_image(feature: Any) -> bool:
    """Pictures, or bytes as Parquet files without the library's own notes hold them."""
    kind = feature.get("bytes") if isinstance(feature, dict) else feature
    return type(kind).__name__ == "Image" or getattr(kind, "dtype", "") in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "ClassLabel" or kind.startswith(("int", "uint", "string", "large_string"))


def _need(data: Any, name: str, column: str) -> None:
    if column not in data.column_names:
        raise UserError(f"{name} has no column '{column}'; {nearest(column, data.column_names)}")
