"""The samples of an evaluation: training and test side with matched classes, from pictures or saved embeddings.

The pictures are read once, however many protocols and networks look at them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot import modality
from eyespot.data.batches import BatchData, SampleSource
from eyespot.data.loader import Data
from eyespot.data.part import Part
from eyespot.data.sources import open_source
from eyespot.errors import UserError
from eyespot.evaluate.features import Features, extract_many, is_embeddings, read_embeddings
from eyespot.evaluate.measured import OWN
from eyespot.evaluate.models import Model, channels_of, modality_of, open_model, random_twin
from eyespot.evaluate.splits import stratified_split
from eyespot.nets.backbones import Backbone
from eyespot.options import EvaluateOptions

HELD_OUT = 0.2
"""Share of every class that is measured on when no test data is given."""


@dataclass
class Samples:
    """Both sides of one evaluation.

    Attributes:
        train, test: features by the model and, after it, by its random twins; of no width when none were asked for.
        labels, test_labels: int64 class numbers below `classes`, [n] and [m].
        config: what the results say about model and data.
        same: int64 [m], the training sample that a test sample is itself, -1 where there is none.
        nets: the model and its random twins; empty for saved embeddings.
        data: the pictures of both sides; one `Data` twice where a part of it is held out.
        seconds: time of the feature pass.
    """

    train: Features
    test: Features
    labels: Tensor
    test_labels: Tensor
    classes: int
    config: dict[str, Any]
    same: Tensor | None = None
    nets: list[Backbone] = field(default_factory=list)
    data: tuple[BatchData, ...] = ()
    seconds: float = 0.0

    def pictures(self) -> tuple[Data, Data]:
        """The pictures of the training and the test samples, labelled by `labels` and `test_labels`."""
        if not all(isinstance(data, Data) for data in self.data):
            raise UserError("finetune trains on pictures, and this model takes none; ask for knn or linear.")
        sides = zip(self.data, (self.train, self.test), (self.labels, self.test_labels), strict=True)
        names = tuple(str(k) for k in range(self.classes))
        train, test = (
            Data(
                Part(data.source, side.index, labels.numpy(), names),
                channels=data.channels,
                workers=data.workers,
                max_bad=data.max_bad,
                short_side=(data.plan or {}).get("short_side"),
            )
            for data, side, labels in sides
            if isinstance(data, Data)
        )
        return train, test


def read_samples(
    o: EvaluateOptions, floor_seeds: int, device: torch.device, *, features: bool, pictures: bool
) -> Samples:
    """The samples that the options name.

    Args:
        features: whether features are computed; otherwise samples have labels only.
        pictures: whether the pictures themselves are needed.
    """
    if not is_embeddings(o.model):
        return _from_pictures(o, floor_seeds, device, features)
    if pictures:
        raise UserError(f"'{o.model}' holds embeddings, and there is no network to train; give a run or a backbone.")
    return _from_saved(o)


# --- pictures -------------------------------------------------------------------------------------------------
def _from_pictures(o: EvaluateOptions, floor_seeds: int, device: torch.device, features: bool) -> Samples:
    """Samples with features by the model and its random twins."""
    channels = channels_of(o.model, o.channels, o.pretrained)
    kind = modality_of(o.model)
    data = open_labelled(o.data, o, channels, o.split, kind)
    test = None if o.test_data is None else open_labelled(o.test_data, o, data.channels, None, kind)
    model = open_model(o.model, data, image_size=o.image_size, pretrained=o.pretrained, seed=o.seed)
    size = o.image_size or model.net.image_size
    twins, floor = floor_of(model, o, floor_seeds)
    nets = [model.net, *twins]
    started = time.perf_counter()
    train, held = (
        None
        if d is None
        else extract_many(nets, d, _known(d), image_size=size, batch_size=o.batch_size, device=device)
        if features
        else _without_features(d, len(nets))
        for d in (data, test)
    )
    seconds = time.perf_counter() - started
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
        "data_id": data_id(data.source, None if test is None else test.source, o.seed),
        "floor": floor,
    }
    samples = _matched(train, held, o, config)
    samples.nets, samples.data, samples.seconds = nets, (data, data if test is None else test), seconds
    return samples


def _without_features(data: BatchData, nets: int) -> Features:
    """The labelled samples, unread."""
    rows = _known(data)
    assert data.labels is not None
    paths = [data.source.path(i) for i in rows.tolist()]
    empty = [torch.zeros(len(rows), 0)] * nets
    return Features(empty, data.labels[rows], tuple(data.class_names), paths, data.source.name, 0, rows)


def open_labelled(
    value: Any, o: EvaluateOptions, channels: int | None, split: str | None, kind: modality.Modality
) -> BatchData:
    """Samples that must have labels."""
    data = open_data(value, o, channels, split, kind)
    if data.labels is None or not (data.labels >= 0).any():
        raise UserError(
            f"'{data.source.name}' has no labels to evaluate with; give class folders, a list with a label after each "
            "path, or a Parquet file with a label column (--label-column)."
        )
    return data


def open_data(value: Any, o: Any, channels: int | None, split: str | None, kind: modality.Modality) -> BatchData:
    """Samples that are read once, in order: nothing is kept in memory."""
    if isinstance(value, BatchData):
        return value
    if is_embeddings(value):
        raise UserError(
            f"'{value}' holds embeddings, not {kind.UNIT}; give the embeddings as the model too, or a folder of "
            f"{kind.UNIT}."
        )
    return kind.open_data(value, modality.Reading.of(o, channels=channels, split=split, cache_bytes=0))


def _known(data: BatchData) -> np.ndarray:
    """Rows with a label."""
    assert data.labels is not None
    return np.flatnonzero(data.labels >= 0)


def floor_of(model: Model, o: EvaluateOptions, count: int) -> tuple[list[Any], dict[str, Any]]:
    """The random networks to measure beside the model, and what config says about them."""
    if not o.floor:
        return [], {"weights": "not asked for"}
    seeds = list(range(o.seed, o.seed + count))
    if model.weights == "random" and count == 1:
        return [], {"weights": OWN, "seeds": seeds}  # it is its own floor
    twins = [random_twin(model.net, seed) for seed in seeds]
    if any(twin is None for twin in twins):
        return [], {"weights": "none: the module has parameters that cannot be drawn anew"}
    return twins, {"weights": "random, as initialised", "seeds": seeds}


# --- saved embeddings -----------------------------------------------------------------------------------------
def _from_saved(o: EvaluateOptions) -> Samples:
    """Samples with saved features."""
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
        "data_id": _id([_names(f.paths, f.labels, f.class_names) for f in (train, test) if f is not None], o.seed),
        "floor": {"weights": "none: saved embeddings have no network to draw anew"},
    }
    return _matched(train, test, o, config)


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


def _joined(saved: Features, source: SampleSource, max_bad: float) -> Features:
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
def data_id(train: SampleSource, test: SampleSource | None, seed: int) -> str:
    """What tells the labelled samples of an evaluation from those of another, 12 hexadecimal digits.

    It depends on the names and classes of all labelled samples, on which side they are, and on the seed where a part is
    held out; not on where they lie.
    """
    sides = []
    for source in (train, test):
        if source is not None and source.labels is not None:
            rows = np.flatnonzero(source.labels >= 0)
            paths = (source.path(i) for i in rows.tolist())
            sides.append(_names(paths, source.labels[rows], source.class_names))
    return _id(sides, seed)


def _names(paths: Iterable[str], labels: np.ndarray | None, names: tuple[str, ...]) -> list[str]:
    """A line for each sample: its class and the last part of its path."""
    assert labels is not None
    words = [names[k] if k < len(names) else str(k) for k in labels.tolist()]
    called = list(paths) or [""] * len(words)  # saved embeddings may have no paths
    return [f"{word}/{os.path.basename(path)}" for word, path in zip(words, called, strict=True)]


def _id(sides: list[list[str]], seed: int) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for side in sides:
        for line in side:
            digest.update(line.encode() + b"\n")
        digest.update(b"\0")
    if len(sides) == 1:
        digest.update(f"{HELD_OUT} of seed {seed}".encode())
    return digest.hexdigest()


def _matched(train: Features, test: Features | None, o: EvaluateOptions, config: dict[str, Any]) -> Samples:
    """Both sides with their classes matched; without test samples a part of the training ones is held out."""
    if o.name is not None:
        config["name"] = o.name
    train, test = _halves(train, test, o.seed, config)
    labels, test_labels, classes = _aligned(train, test)
    return Samples(train, test, labels, test_labels, classes, config, same=_same(train, test))


def _same(train: Features, test: Features) -> Tensor:
    """The training sample that each test sample is itself, by its path, -1 where there is none: int64 [m]."""
    row = {_full(path): k for k, path in enumerate(train.paths)}
    return torch.tensor([row.get(_full(path), -1) for path in test.paths] or [-1] * len(test), dtype=torch.int64)


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
