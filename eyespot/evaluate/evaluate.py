"""`eyespot.evaluate`: frozen features under a fixed protocol, beside the same network with random weights.

Features are computed in evaluation mode on the clean view (shorter side resized, central crop), pooled, float32.
Whatever a protocol chooses, it chooses on training samples. Without test data a fifth of every class is held out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.loader import Data
from eyespot.data.sources import Source, open_source
from eyespot.errors import UserError, unknown
from eyespot.evaluate import knn, linear
from eyespot.evaluate.features import Features, extract_many, is_embeddings, read_embeddings
from eyespot.evaluate.models import Model, channels_of, open_model, random_twin
from eyespot.evaluate.splits import stratified_split
from eyespot.options import EvaluateOptions, build
from eyespot.train.launch import resolve_device

PROTOCOLS: Mapping[str, Any] = {knn.NAME: knn, linear.NAME: linear}
HELD_OUT = 0.2
"""Share of every class that is measured on when no test data is given."""


def evaluate(
    model: Any,
    data: Any = None,
    test_data: Any = None,
    protocol: str = "knn",
    *,
    floor_seeds: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Measure the frozen features of a model.

    Args:
        model: run folder, run, name of a backbone (`pretrained=True` for its published weights), `Backbone` or other
            module, or a Parquet file of saved embeddings; then `data` and `test_data` are such files too, or pictures
            whose paths are in it (`data` may be left out: the file itself).
        data: labelled pictures to learn from: whatever `pretrain` takes as data, or a `Data`.
        test_data: labelled pictures to measure on; None holds out a fifth of every class of `data`.
        protocol: "knn" or "linear".
        floor_seeds: random networks over which the floor is averaged, with seeds seed, seed + 1, ...
        options: the options of `eyespot evaluate`, with their defaults, in `eyespot.options.EvaluateOptions`.

    Returns:
        {"protocol", "version", "top1", "top5" (percent), "floor": {"top1", "top5"} or None, "n_train", "n_test",
        "classes", "seconds", "run", "config"}: plain values that JSON can hold.

    Raises:
        UserError: no labels, test classes that were not in the training data, an unknown protocol or model, ...
    """
    started = time.perf_counter()
    saved = is_embeddings(model)
    data = model if data is None and saved else data
    o = build(EvaluateOptions, model, data=data, test_data=test_data, protocol=protocol, **options)
    if o.protocol not in PROTOCOLS:
        raise unknown("protocol", o.protocol, PROTOCOLS)
    if floor_seeds < 1:
        raise UserError(f"floor_seeds cannot be {floor_seeds}; give 1 or more, or floor=False.")
    runner, device = PROTOCOLS[o.protocol], resolve_device(o.device)
    train, test, config = _from_saved(o) if saved else _from_pictures(o, floor_seeds, device)
    train, test = _halves(train, test, o.seed, config)
    labels, test_labels, classes = _aligned(train, test)
    results = [
        runner.run(_finite(a, train), labels, _finite(b, test), test_labels, classes, seed=o.seed, device=device)
        for a, b in zip(train.vectors, test.vectors, strict=True)
    ]
    metrics, used = results[0]
    floors = [m for m, _ in results[1:]] or ([metrics] if config["floor"]["weights"] == "the model's own" else [])
    return {
        "protocol": runner.NAME,
        "version": runner.VERSION,
        **metrics,
        "floor": {k: float(np.mean([f[k] for f in floors])) for k in metrics} if floors else None,
        "n_train": len(train),
        "n_test": len(test),
        "classes": int(labels.unique().numel()),
        "seconds": round(time.perf_counter() - started, 3),
        "run": config.pop("run"),
        "config": config | {"bad_files": train.bad + test.bad, "seed": o.seed} | used,
    }


# --- features -------------------------------------------------------------------------------------------------
def _from_pictures(
    o: EvaluateOptions, floor_seeds: int, device: torch.device
) -> tuple[Features, Features | None, dict[str, Any]]:
    """Features by the model and its random twins, of the training and, where given, the test pictures."""
    channels = channels_of(o.model, o.channels, o.pretrained)
    data = open_labelled(o.data, o, channels, o.split)
    test = None if o.test_data is None else open_labelled(o.test_data, o, data.channels, None)
    model = open_model(o.model, data, image_size=o.image_size, pretrained=o.pretrained, seed=o.seed)
    size = o.image_size or model.net.image_size
    twins, floor = _floor(model, o, floor_seeds)
    nets = [model.net, *twins]
    train, held = (
        None if d is None else extract_many(nets, d, _known(d), image_size=size, batch_size=o.batch_size, device=device)
        for d in (data, test)
    )
    assert train is not None
    config = {
        "run": model.name,
        "backbone": model.net.name,
        "weights": model.weights,
        "features": "pooled, evaluation mode, clean view",
        "embed_dim": model.net.embed_dim,
        "image_size": size,
        "channels": model.net.channels,
        "data": train.name,
        "test_data": None if held is None else held.name,
        "floor": floor,
    }
    return train, held, config


def open_labelled(value: Any, o: EvaluateOptions, channels: int | None, split: str | None) -> Data:
    """Pictures that must have labels."""
    data = open_data(value, o, channels, split)
    if data.labels is None or not (data.labels >= 0).any():
        raise UserError(
            f"'{data.source.name}' has no labels to evaluate with; give class folders, a list with a label after each "
            "path, or a Parquet file with a label column (--label-column)."
        )
    return data


def open_data(value: Any, o: Any, channels: int | None, split: str | None) -> Data:
    """Pictures that are read once, in order: nothing is kept in memory."""
    if isinstance(value, Data):
        return value
    if is_embeddings(value):
        raise UserError(
            f"'{value}' holds embeddings, not pictures; give the embeddings as the model too, or a folder of pictures."
        )
    source = open_source(value, split=split, image_column=o.image_column, label_column=o.label_column)
    return Data(source, channels=channels, workers=o.workers, max_bad=o.max_bad, cache_bytes=0)


def _known(data: Data) -> np.ndarray:
    """Rows with a label."""
    assert data.labels is not None
    return np.flatnonzero(data.labels >= 0)


def _floor(model: Model, o: EvaluateOptions, count: int) -> tuple[list[Any], dict[str, Any]]:
    """The random networks to measure beside the model, and what config says about them."""
    if not o.floor:
        return [], {"weights": "not asked for"}
    seeds = list(range(o.seed, o.seed + count))
    if model.weights == "random" and count == 1:
        return [], {"weights": "the model's own", "seeds": seeds}  # it is its own floor
    twins = [random_twin(model.net, seed) for seed in seeds]
    if any(twin is None for twin in twins):
        return [], {"weights": "none: the module has parameters that cannot be drawn anew"}
    return twins, {"weights": "random, as initialised", "seeds": seeds}


def _from_saved(o: EvaluateOptions) -> tuple[Features, Features | None, dict[str, Any]]:
    """Saved features of the training and, where given, the test samples."""
    saved = read_embeddings(o.model)
    if is_embeddings(o.data) and o.test_data is None and not os.path.samefile(o.data, o.model):
        raise UserError(
            f"'{o.model}' and '{o.data}' are two files of embeddings; give the training one as --data and the other "
            "as --test-data."
        )
    train = _saved_part(o.data, saved, o, o.split)
    test = None if o.test_data is None else _saved_part(o.test_data, saved, o, None)
    if test is not None and test.vectors[0].shape[1] != train.vectors[0].shape[1]:
        raise UserError(
            f"The vectors of '{train.name}' have {train.vectors[0].shape[1]} numbers and those of '{test.name}' "
            f"{test.vectors[0].shape[1]}; embed both with the same model."
        )
    config = {
        "run": str(o.model),
        "weights": "saved embeddings",
        "embed_dim": train.vectors[0].shape[1],
        "data": train.name,
        "test_data": None if test is None else test.name,
        "floor": {"weights": "none: saved embeddings have no network to draw anew"},
    }
    return train, test, config


def _saved_part(value: Any, saved: Features, o: EvaluateOptions, split: str | None) -> Features:
    """The features of one file of embeddings, or of the pictures of `value` whose paths are in `saved`."""
    if is_embeddings(value):
        part = read_embeddings(value)
    else:
        source = open_source(value, split=split, image_column=o.image_column, label_column=o.label_column)
        part = _joined(saved, source, o.max_bad)
    if part.labels is None:
        raise UserError(
            f"'{part.name}' has no labels to evaluate with; give the labelled pictures that were embedded as --data, "
            "or embed them again with labels."
        )
    return part.take(np.flatnonzero(part.labels >= 0))


def _joined(saved: Features, source: Source, max_bad: float) -> Features:
    """The saved features of a source's samples, by path, with the source's labels."""
    row = {_full(path): k for k, path in enumerate(saved.paths)}
    found = [(i, row[p]) for i in range(len(source)) if (p := _full(source.path(i))) in row]
    missing = len(source) - len(found)
    if missing > max_bad * len(source):
        raise UserError(
            f"{missing} of the {len(source)} samples of '{source.name}' are not in the embeddings '{saved.name}'; "
            "embed these pictures first."
        )
    part = saved.take(np.array([k for _, k in found], np.int64))
    part.labels = None if source.labels is None else source.labels[[i for i, _ in found]]
    part.class_names, part.name, part.bad = source.class_names, source.name, missing
    return part


def _full(path: str) -> str:
    return str(Path(path).expanduser().absolute())


# --- labels ---------------------------------------------------------------------------------------------------
def _halves(train: Features, test: Features | None, seed: int, config: dict[str, Any]) -> tuple[Features, Features]:
    """Training and test features; a stratified part of the training ones where no test data was given."""
    if test is not None:
        shared = len(set(map(_full, train.paths)) & set(map(_full, test.paths)))
        if shared:
            config["warning"] = f"{shared} of the {len(test)} test samples are training samples too"
        return train, test
    assert train.labels is not None
    rows, held = stratified_split(train.labels, HELD_OUT, seed, "held out")
    if len(held) == 0:
        raise UserError(f"No class of '{train.name}' has two samples, so none can be held out; give --test-data.")
    config["split"] = f"{len(held)} of {len(train)} samples held out for testing, {HELD_OUT:.0%} of every class"
    test = train.take(held)
    test.bad = 0  # counted with the training samples
    return train.take(rows), test


def _aligned(train: Features, test: Features) -> tuple[Tensor, Tensor, int]:
    """Labels of both as numbers of the training classes, and how many numbers there are.

    Classes are matched by name where both sides have names, for a class folder may be missing on one side.
    """
    assert train.labels is not None and test.labels is not None
    present = set(np.unique(train.labels).tolist())
    if len(present) < 2:
        only = _class(train, present.pop())
        raise UserError(f"'{train.name}' has one class only ({only}); accuracy needs at least two.")
    labels = test.labels
    if train.class_names and test.class_names and not _numbers_for_names(train, test):
        number = {name: k for k, name in enumerate(train.class_names)}
        table = np.array([number.get(name, -1) for name in test.class_names], np.int64)
        labels = table[test.labels]
    strange = np.unique(test.labels[~np.isin(labels, list(present))]).tolist()
    if strange:
        shown = ", ".join(f"'{_class(test, k)}'" for k in strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise UserError(
            f"'{test.name}' has {len(strange)} class{'es' if len(strange) > 1 else ''} that '{train.name}' has no "
            f"samples of ({shown}); give training and test data of the same classes."
        )
    classes = max(len(train.class_names), max(present) + 1)
    return torch.from_numpy(train.labels), torch.from_numpy(labels), classes


def _numbers_for_names(train: Features, test: Features) -> bool:
    """Whether one side names its classes and the other only numbers them."""
    numbered = [all(name == str(k) for k, name in enumerate(f.class_names)) for f in (train, test)]
    return numbered[0] != numbered[1] and not set(train.class_names) & set(test.class_names)


def _class(features: Features, number: int) -> str:
    return features.class_names[number] if number < len(features.class_names) else str(number)


def _finite(vectors: Tensor, features: Features) -> Tensor:
    bad = int((~vectors.isfinite().all(1)).sum())
    if bad:
        raise UserError(
            f"The features of {bad} of the {len(vectors)} samples of '{features.name}' are not finite; the training "
            "diverged: evaluate an earlier run, or train with a lower rate."
        )
    return vectors
