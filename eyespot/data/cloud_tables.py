"""Clouds in a Parquet file: a column "points" (or "xyz") with the numbers of each cloud, row after row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eyespot.data.cloud_files import KEYS
from eyespot.data.clouds import ArrayClouds, CloudSource, chosen_rows
from eyespot.data.sources import numbered
from eyespot.errors import UserError, nearest

LABELS = ("label", "labels", "category", "class")


def open_table(path: Path, split: str | None, label_column: str | None, common: dict[str, Any]) -> CloudSource:
    """The clouds of a Parquet file; lists of 3 N numbers, or lists of lists of three or more.

    Raises:
        UserError: the file is damaged or has no column of points.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    names = table.column_names
    key = next((k for k in KEYS if k in names), None)
    if key is None:
        raise UserError(f"'{path}' has no column 'points' among {', '.join(names)}; name the column of the clouds so.")
    column = label_column or next((k for k in LABELS if k in names), None)
    if column is not None and column not in names:
        raise UserError(f"'{path}' has no column '{column}'; {nearest(column, names)}")
    marks = np.array(table["split"].to_pylist(), dtype=object) if "split" in names else None
    rows = chosen_rows(marks, table.num_rows, split, path)
    clouds = [_cloud(v) for v in table[key].take(pa.array(rows)).to_pylist()]
    labels, classes = (None, ()) if column is None else numbered(table[column].to_pylist())
    taken = None if labels is None else labels[rows]
    return ArrayClouds(
        clouds, str(path) + (f":{split}" if split else ""), taken, classes, rows, file=str(path), **common
    )


def _cloud(value: Any) -> np.ndarray:
    """[N, 3 or more]; what is no cloud becomes one without points, which is reported when it is read."""
    try:
        cloud = np.asarray(value, np.float64)
    except (ValueError, TypeError):
        return np.zeros((0, 3))
    return cloud.reshape(-1, 3) if cloud.ndim == 1 and len(cloud) % 3 == 0 else cloud
