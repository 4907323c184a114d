"""`eyespot.embed`: features of pictures as a Parquet file, written batch by batch in constant memory.

Columns: id (int64, the sample's number in the data), path (string), vector (fixed-size list of float32), and label
(int64, null where a sample has none) when labels are known. The schema's metadata holds, under the key `eyespot`, a
JSON object: {"version", "model", "backbone", "weights", "image_size", "embed_dim", "data", "class_names"}.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.evaluate.features import METADATA, Embedded, is_embeddings, stream
from eyespot.evaluate.models import Model, channels_of, modality_of, open_model
from eyespot.evaluate.samples import open_data
from eyespot.options import EmbedOptions
from eyespot.runs import replacing
from eyespot.train.launch import resolve_device

VERSION = 1
GROUP = 4096
"""Least rows of a row group, but for the last."""


def embed(model: Any, data: Any = None, out: Any = None, **options: Any) -> dict[str, Any]:
    """Write the features of all readable pictures to a Parquet file, which is replaced in one step when it is whole.

    Args:
        model: run folder, run, name of a backbone (`pretrained=True` for its published weights), or a module.
        data: pictures: whatever `pretrain` takes as data, or a `Data`.
        out: the file; its folder is made when missing.
        options: the options of `eyespot embed`, with their defaults, in `eyespot.options.EmbedOptions`.

    Returns:
        {"out", "rows", "embed_dim", "labels" (bool), "bad_files", "seconds"}; the bad files themselves are in
        `Data.bad` when a `Data` was given.

    Raises:
        UserError: the model or the data do not exist, the file cannot be written, ...
    """
    started = time.perf_counter()
    o = build(EmbedOptions, model, data=data, out=out, **options)
    target = _target(o.out)
    if is_embeddings(o.model):
        raise UserError(f"'{o.model}' holds embeddings already; give a run or the name of a backbone.")
    channels = channels_of(o.model, o.channels, o.pretrained)
    pictures = open_data(o.data, o, channels, o.split, modality_of(o.model))
    opened = open_model(o.model, pictures, image_size=o.image_size, pretrained=o.pretrained)
    size = o.image_size or opened.net.image_size
    batches = stream([opened.net], pictures, image_size=size, batch_size=o.batch_size, device=resolve_device(o.device))
    rows = _write(target, _schema(opened, pictures, size), batches, pictures)
    return {
        "out": str(target),
        "rows": rows,
        "embed_dim": opened.net.embed_dim,
        "labels": pictures.labels is not None,
        "bad_files": len(pictures) - rows,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _target(out: Any) -> Path:
    """The file to write, checked before any work is done."""
    path = Path(out).expanduser()
    if path.is_dir():
        raise UserError(f"--out '{path}' is a folder; name a file, such as {path / 'embeddings.parquet'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{path}' cannot be written ({error.strerror}); choose another place.") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out '{path}' cannot be written: no permission for {path.parent}; choose another place.")
    return path


def _schema(model: Model, data: BatchData, image_size: int) -> pa.Schema:
    fields = [
        pa.field("id", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), model.net.embed_dim)),
    ]
    if data.labels is not None:
        fields.append(pa.field("label", pa.int64()))
    about = {
        "version": VERSION,
        "model": model.name,
        "backbone": model.net.name,
        "weights": model.weights,
        "image_size": image_size,
        "embed_dim": model.net.embed_dim,
        "data": data.source.name,
        "class_names": list(data.class_names),
    }
    return pa.schema(fields, metadata={METADATA: json.dumps(about).encode()})


def _write(target: Path, schema: pa.Schema, batches: Iterator[Embedded], data: BatchData) -> int:
    """Rows written. What was begun is removed when something goes wrong."""
    rows, waiting, count = 0, [], 0
    try:
        with replacing(target) as part, pq.ParquetWriter(part, schema) as writer:
            for batch in batches:
                waiting.append(_record(batch.index, batch.vectors[0], data, schema))
                count += len(batch.index)
                rows += len(batch.index)
                if count >= GROUP:
                    writer.write_table(pa.Table.from_batches(waiting, schema), count)
                    waiting, count = [], 0
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting, schema), count)
            if not rows:
                raise UserError(f"No sample of '{data.source.name}' can be read, so nothing was written.")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--out '{target}' cannot be written ({reason}); make room or choose another place.") from error
    return rows


def _record(index: np.ndarray, vectors: Tensor, data: BatchData, schema: pa.Schema) -> pa.RecordBatch:
    flat = pa.array(vectors.contiguous().numpy().reshape(-1), pa.float32())
    columns = [
        pa.array(index, pa.int64()),
        pa.array([data.source.path(i) for i in index.tolist()], pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    ]
    if data.labels is not None:
        labels = data.labels[index]
        columns.append(pa.array(labels, pa.int64(), mask=labels < 0))
    return pa.record_batch(columns, schema=schema)
