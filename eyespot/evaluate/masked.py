"""Protocols against masks: from the options of `evaluate` to what each measured, in one pass over each side."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eyespot.data.loader import Data
from eyespot.data.masks import MaskedSource, open_masked
from eyespot.draws import epoch_permutation
from eyespot.errors import UserError
from eyespot.evaluate import dense, slots
from eyespot.evaluate.dense import Forward, Job, Numbering, Side
from eyespot.evaluate.features import is_embeddings
from eyespot.evaluate.measured import Measured
from eyespot.evaluate.models import channels_of, modality_of, open_model, run_folder, seeded
from eyespot.evaluate.samples import HELD_OUT, floor_of
from eyespot.options import EvaluateOptions


@dataclass
class Group:
    """Networks that give one kind of map, and the protocols that look at it: the model first, then its twins."""

    nets: Sequence[nn.Module]
    forward: Forward
    protocols: Sequence[ModuleType]
    jobs: Sequence[Sequence[Job]] = ()


def measure(
    o: EvaluateOptions, protocols: Sequence[ModuleType], floor_seeds: int, device: torch.device
) -> list[Measured]:
    """What each of these protocols gives.

    Raises:
        UserError: no masks, no feature map, no maps of the method's own, ...
    """
    if is_embeddings(o.model):
        raise UserError(f"'{o.model}' holds one vector a picture and no feature maps; give a run or a backbone.")
    data, test, rows, held = sides_of(o)
    model = open_model(o.model, data, image_size=o.image_size, pretrained=o.pretrained, seed=o.seed)
    size = o.image_size or model.net.image_size
    twins, floor = floor_of(model, o, floor_seeds)
    groups = _groups(o, protocols, [model.net, *twins], floor_seeds if twins else 0)
    numbering = Numbering(o.ignored)
    train_side, test_side = (
        Side(d, r, size, o.batch_size, device) for d, r in ((data, rows), (data if test is None else test, held))
    )
    started = time.perf_counter()
    n_train = _fit(groups, train_side, numbering, o.seed, device)
    classes = len(numbering)
    n_test = _count(groups, test_side, numbering, device)
    spent = sum(job.seconds for g in groups for jobs in g.jobs for job in jobs)
    passes = time.perf_counter() - started - spent
    if not n_test:
        raise UserError(f"No picture of '{test_side.source.name}' has a mask that can be used; mend the masks.")
    names = numbering.names(train_side.source.mask_names)
    config = {
        "run": model.name,
        "backbone": model.net.name,
        "weights": model.weights,
        "features": "feature map, evaluation mode, clean view",
        "embed_dim": model.net.embed_dim,
        "image_size": size,
        "channels": model.net.channels,
        "data": train_side.source.name,
        "test_data": None if test is None else test_side.source.name,
        "data_id": data_id(train_side.source, None if test is None else test_side.source, o),
        "floor": floor,
        "ignore": list(o.ignored),
    }
    config |= {} if o.name is None else {"name": o.name}
    config |= _notes(train_side, test_side, test is None, len(numbering) - classes)
    bad = len(train_side.bad | test_side.bad)
    return [
        Measured(
            protocol=protocol.NAME,
            version=protocol.VERSION,
            outcomes=[jobs[k].fitted.outcome(_grown(jobs[k], len(names)), names) for jobs in group.jobs],
            config=dict(config),
            n_train=n_train,
            n_test=n_test,
            classes=classes,
            seconds=passes + sum(jobs[k].seconds for jobs in group.jobs),
            bad=bad,
            seed=o.seed,
        )
        for group in groups
        for k, protocol in enumerate(group.protocols)
    ]


def _grown(job: Job, classes: int) -> Tensor:
    return dense.count_into(job.counts, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), classes)


# --- networks -------------------------------------------------------------------------------------------------
def _groups(o: EvaluateOptions, protocols: Sequence[ModuleType], nets: Sequence[Any], twins: int) -> list[Group]:
    by_features = [p for p in protocols if p.MAPS == "features"]
    by_slots = [p for p in protocols if p.MAPS == "slots"]
    groups = []
    if by_features:
        if nets[0].stride < 1:
            raise UserError(f"{nets[0].name} gives one vector a picture and no feature map; use another backbone.")
        groups.append(Group(nets, _feature_map, by_features))
    if by_slots:
        methods = _methods(o, twins)
        groups.append(Group(methods, lambda m, pixels: slots.memberships(m, pixels.to(_dtype(m))), by_slots))
    return groups


def _methods(o: EvaluateOptions, twins: int) -> list[nn.Module]:
    """The method of a run, and the same with random weights."""
    from eyespot.train.build import fresh_method, load_method

    folder = run_folder(o.model) if not isinstance(o.model, nn.Module) else None
    if folder is None:
        raise UserError(f"Protocol slots looks at a trained method, which '{o.model}' is not; give a run.")
    method = load_method(folder)
    slots.groups(getattr(method, "host", method))
    return [method, *(seeded(o.seed + k, partial(fresh_method, folder)) for k in range(twins))]


def _dtype(net: nn.Module) -> torch.dtype:
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)


def _feature_map(net: Any, pixels: Tensor) -> Tensor:
    found: Tensor = net.forward_dense(pixels.to(_dtype(net)))
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


# --- passes ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def _fit(groups: Sequence[Group], side: Side, numbering: Numbering, seed: int, device: torch.device) -> int:
    """Draw from the training pictures once for all networks, and fit every protocol; the pictures read."""
    nets, forward = _joined(groups)
    with dense.still(nets, device):
        drawn, read = dense.draw(side, nets, forward, numbering, seed)
    if not all(bool(d.pixels.isfinite().all()) for d in drawn):
        raise UserError(
            f"The features of '{side.source.name}' are not finite; the training diverged: evaluate an earlier run, or "
            "train with a lower rate."
        )
    start = 0
    for group in groups:
        own = drawn[start : start + len(group.nets)]
        start += len(group.nets)
        group.jobs = [_started([p.fit for p in group.protocols], d, seed, device) for d in own]
    return read


def _started(fits: Sequence[Callable[..., Any]], drawn: dense.Drawn, seed: int, device: torch.device) -> list[Job]:
    with torch.enable_grad():  # the probe is fitted by gradients
        return [dense.start_job(fit, drawn, seed, device) for fit in fits]


@torch.no_grad()
def _count(groups: Sequence[Group], side: Side, numbering: Numbering, device: torch.device) -> int:
    nets, forward = _joined(groups)
    with dense.still(nets, device):
        return dense.count(side, nets, forward, numbering, [jobs for g in groups for jobs in g.jobs])


def _joined(groups: Sequence[Group]) -> tuple[list[nn.Module], Forward]:
    """The networks of all groups, and what gives the map of each."""
    own = {id(net): group.forward for group in groups for net in group.nets}
    return [net for group in groups for net in group.nets], lambda net, pixels: own[id(net)](net, pixels)


# --- data -----------------------------------------------------------------------------------------------------
def sides_of(o: EvaluateOptions) -> tuple[Data, Data | None, np.ndarray, np.ndarray]:
    """Training pictures, test pictures (None where a fifth of the former is held out), and the rows of both."""
    kind = modality_of(o.model)
    if kind.UNIT != "pictures":
        raise UserError(f"Masks are of pictures, and '{o.model}' takes {kind.UNIT}; ask for knn or linear.")
    channels = channels_of(o.model, o.channels, o.pretrained)
    train = _open(o.data, o, channels, o.split)
    rows = held = np.arange(len(train))
    test = None
    if o.test_data is not None:
        test = _open(o.test_data, o, train.channels, None)
        held = np.arange(len(test))
    else:
        order = epoch_permutation(o.seed, 0, len(train), "held out")
        count = round(HELD_OUT * len(train)) or 1
        if len(train) < 2:
            name = train.source.name
            raise UserError(f"'{name}' has one picture with a mask, so none can be held out; give --test-data.")
        rows, held = np.sort(order[count:]), np.sort(order[:count])
    if len(rows) > dense.PICTURES:
        rows = np.sort(rows[epoch_permutation(o.seed, 0, len(rows), "dense pictures")[: dense.PICTURES]])
    return train, test, rows, held


def _open(value: Any, o: EvaluateOptions, channels: int | None, split: str | None) -> Data:
    if isinstance(value, Data):
        value, channels = value.source, value.channels
    source = open_masked(value, split=split, image_column=o.image_column, mask_column=o.mask_column)
    return Data(source, channels=channels, workers=o.workers, max_bad=o.max_bad, cache_bytes=0)


def data_id(train: MaskedSource, test: MaskedSource | None, o: Any) -> str:
    """What tells the pixels of an evaluation from those of another: names, sides, ignored values; 12 digits."""
    digest = hashlib.blake2b(digest_size=6)
    for source in (train, test):
        for i in range(0 if source is None else len(source)):
            assert source is not None
            digest.update(f"mask/{os.path.basename(source.path(i))}\n".encode())
        digest.update(b"\0")
    held = f"{HELD_OUT} of seed {o.seed}" if test is None else ""
    digest.update(f"{sorted(o.ignored)} {held}".encode())
    return digest.hexdigest()


def _notes(train: Side, test: Side, held_out: bool, new: int) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if held_out:
        total = len(train.rows) + len(test.rows)
        notes["split"] = f"{len(test.rows)} of {total} pictures held out for testing"
    else:
        names = {train.source.path(int(i)) for i in train.rows}
        shared = sum(test.source.path(int(i)) in names for i in test.rows)
        if shared:
            notes["warning"] = f"{shared} of the {len(test.rows)} test pictures are training pictures too"
    if len(train.data) > len(train.rows) and not held_out:
        notes["drawn_pictures"] = f"{len(train.rows)} of {len(train.data)} training pictures"
    if new:
        notes["new_classes"] = f"{new} classes of the test masks are in no training mask; they count as missed"
    return notes
