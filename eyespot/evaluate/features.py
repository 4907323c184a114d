"""Frozen features: computed from samples in evaluation mode on the clean view, or read from a Parquet file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.data.sources import PARQUET
from eyespot.errors import UserError
from eyespot.nets.backbones import evaluating

METADATA = b"eyespot"
"""Key of the JSON that `eyespot embed` writes into the schema of its file."""


@dataclass
class Features:
    """Features of the same samples by one or more networks.

    Attributes:
        vectors: float32 [N, D] of each network, on CPU.
        labels: int64 [N] into `class_names`, -1 where a sample has none; None when no sample has a label.
        paths: what each sample is called.
        index: int64 [N], number of each sample in its data; empty for saved features.
    """

    vectors: list[Tensor]
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()
    paths: list[str] = field(default_factory=list)
    name: str = ""
    bad: int = 0
    """Samples that could not be read and were left out."""
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.vectors[0])

    def take(self, rows: np.ndarray) -> Features:
        """Some of the samples, in the order given."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        return Features(
            [v[index] for v in self.vectors],
            None if self.labels is None else self.labels[rows],
            self.class_names,
            [self.paths[i] for i in rows] if self.paths else [],
            self.name,
            self.bad,
            self.index[rows] if len(self.index) else self.index,
        )


def extract(
    backbone: nn.Module,
    data: BatchData,
    image_size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> tuple[Tensor, np.ndarray | None]:
    """Features of all readable samples, in the order of the data.

    Args:
        backbone: takes clean inputs (pixels [B, C, S, S] in [0, 1]) and returns [B, D]; its mode is left as it was.
        data: the samples; bad ones are left out and recorded in `data.bad`.
        image_size: S; None takes `backbone.image_size`.
        device: where it runs; the backbone is moved there. None: where it is.

    Returns:
        float32 [N, D] on CPU, and the labels int64 [N] or None.
    """
    features = extract_many([backbone], data, image_size=image_size, batch_size=batch_size, device=device)
    return features.vectors[0], features.labels


def extract_many(
    backbones: Sequence[nn.Module],
    data: BatchData,
    rows: np.ndarray | None = None,
    *,
    image_size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Features:
    """Features by several networks, of samples that are decoded once; the arguments of `extract`.

    Args:
        rows: int64, samples to take; None takes all.
    """
    parts: list[list[Tensor]] = [[] for _ in backbones]
    index = []
    for batch in stream(backbones, data, rows, image_size=image_size, batch_size=batch_size, device=device):
        index.append(batch.index)
        for kept, vectors in zip(parts, batch.vectors, strict=True):
            kept.append(vectors)
    if not index:
        raise UserError(f"No sample of {data.source.name} can be read.")
    where = np.concatenate(index)
    return Features(
        [torch.cat(kept) for kept in parts],
        None if data.labels is None else data.labels[where],
        tuple(data.class_names),
        [data.source.path(i) for i in where.tolist()],
        data.source.name,
        (len(data) if rows is None else len(rows)) - len(where),
        where,
    )


@dataclass
class Embedded:
    """One batch: the sample numbers int64 [B], and float32 [B, D] of each network on CPU."""

    index: np.ndarray
    vectors: list[Tensor]


def stream(
    backbones: Sequence[nn.Module],
    data: BatchData,
    rows: np.ndarray | None = None,
    *,
    image_size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Iterator[Embedded]:
    """Features batch by batch, bad samples left out; the arguments of `extract_many`."""
    where = torch.device(device) if device is not None else _place(backbones[0])[0]
    size = int(image_size or getattr(backbones[0], "image_size", 0))
    if size < 1:
        raise UserError("The network does not say what size it takes; give image_size.")
    clean = modality.of_backbone(backbones[0]).clean
    order = np.arange(len(data)) if rows is None else np.asarray(rows, np.int64)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with contextlib.ExitStack() as modes:
        for net in backbones:
            modes.enter_context(evaluating(net.to(where)))
        for batch in data.stream(batches, replace=False):
            if len(batch["index"]):
                inputs = clean(batch, size, device=where)
                yield Embedded(batch["index"].numpy(), [_forward(net, inputs) for net in backbones])


@torch.no_grad()
def _forward(net: nn.Module, inputs: modality.Inputs) -> Tensor:
    return net(modality.moved(inputs, *_place(net))).float().cpu()


def _place(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and number format of a network's weights."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return weight.device, weight.dtype


# --- saved features -------------------------------------------------------------------------------------------
def is_embeddings(value: Any) -> bool:
    """Whether it is the path of a Parquet file with a column `vector`."""
    if not isinstance(value, str | os.PathLike):
        return False
    path = Path(value).expanduser()
    if path.suffix.lower() not in PARQUET or not path.is_file():
        return False
    try:
        return "vector" in pq.read_schema(path).names
    except pa.ArrowException:
        return False  # whoever reads it as pictures says what is wrong with it


def read_embeddings(path: str | os.PathLike[str]) -> Features:
    """Features from a Parquet file with the columns vector (lists of equal length), and label, path where known.

    Labels may be integers or words; `eyespot embed` also keeps the names of the classes.

    Raises:
        UserError: the file is damaged, empty, or its vectors differ in length.
    """
    path = Path(path).expanduser()
    try:
        file = pq.ParquetFile(path)
        table = file.read(columns=[c for c in ("path", "vector", "label") if c in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise UserError(f"The embeddings '{path}' hold no rows; embed some pictures.")
    vectors = _vectors(table.column("vector"), path)
    labels, names = _labels(table, file.schema_arrow)
    paths = table.column("path").to_pylist() if "path" in table.column_names else []
    return Features([vectors], labels, names, paths, str(path))


def _vectors(column: Any, path: Path) -> Tensor:
    column = column.combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    rows = len(column)
    values = column.flatten()
    lists = pa.types.is_fixed_size_list(column.type) or bool(
        (np.diff(column.offsets.to_numpy()) * rows == len(values)).all()
    )
    if column.null_count or not lists or not len(values):
        raise UserError(f"The vectors of '{path}' are not all of one length; embed the pictures again.")
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(numbers.reshape(rows, -1))


def _labels(table: Any, schema: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
    from eyespot.data.sources import numbered

    if "label" not in table.column_names:
        return None, ()
    known = tuple(metadata(schema).get("class_names") or ())
    return numbered(table.column("label").to_pylist(), known)


def metadata(schema: Any) -> dict[str, Any]:
    """What `eyespot embed` wrote about the features: {"version", "model", "backbone", "class_names", ...}."""
    try:
        return json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    except ValueError:
        return {}
