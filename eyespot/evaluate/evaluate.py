"""`eyespot.evaluate`: a model under fixed protocols, beside the same network with random weights.

Features are computed in evaluation mode on the clean view (shorter side resized, central crop), pooled, float32, once
for all protocols. Whatever a protocol chooses, it chooses on training samples. Without test data a fifth of every class
is held out. Results of a run are kept in it, see `eyespot.evaluate.records`.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.evaluate import protocols, purity, records, retrieval
from eyespot.evaluate.features import Features, is_embeddings
from eyespot.evaluate.measured import Measured, Outcome
from eyespot.evaluate.samples import Samples, read_samples
from eyespot.nets.backbones import DESCRIPTION
from eyespot.options import EvaluateOptions
from eyespot.runs import read_json
from eyespot.train.fit import silent
from eyespot.train.launch import resolve_device


def evaluate(
    model: Any,
    data: Any = None,
    test_data: Any = None,
    protocol: str | Sequence[str] = "knn",
    *,
    floor_seeds: int = 1,
    **options: Any,
) -> Any:
    """Measure a model under one protocol or several.

    Args:
        model: run folder, run, name of a backbone (`pretrained=True` for its published weights), `Backbone` or other
            module, or a Parquet file of saved embeddings; then `data` and `test_data` are such files too, or pictures
            whose paths are in it (`data` may be left out: the file itself).
        data: pictures to learn from, with labels or masks as the protocol needs: whatever `pretrain` takes as data, or
            a `Data`.
        test_data: pictures to measure on; None holds out a fifth of every class of `data` (a fifth of its pictures
            where they have masks).
        protocol: "knn", "linear", "low_shot", "few_shot", "svm", "retrieval", "purity", "recalls", "finetune",
            "zero_shot" (labels), "pixel_linear", "patch_knn", "segmentation", "slots", "scenes" (masks), "image_text"
            (captions), "sts" (sentences), "pose" (poses) or "representation" (none); several as "knn,linear" or a list.
        floor_seeds: random networks over which the floor is averaged, with seeds seed, seed + 1, ...
        options: the options of `eyespot evaluate`, with their defaults, in `eyespot.options.EvaluateOptions`.

    Returns:
        {"protocol", "version", "top1", "top5" (or the protocol's metrics, in percent), "floor": {the same} or None,
        "n_train", "n_test", "classes", "seconds", "run", "config"}: plain values that JSON can hold. For several
        protocols a list of them, in the order asked for.

    Raises:
        UserError: no labels or masks, test classes that were not in the training data, an unknown protocol, ...
    """
    saved = is_embeddings(model)
    data = model if data is None and saved else data
    o = build(EvaluateOptions, model, data=data, test_data=test_data, protocol=protocol, **options)
    if floor_seeds < 1:
        raise UserError(f"floor_seeds cannot be {floor_seeds}; give 1 or more, or floor=False.")
    device = resolve_device(o.device)
    found = {m.protocol: m.result() for m in _measured(o, floor_seeds, device)}
    results = [found[name] for name in o.protocols]
    folder = _run_folder(model)
    if folder is not None:
        for result in results:
            _keep(folder, result)
    return results[0] if len(results) == 1 else results


def _measured(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> list[Measured]:
    """What every protocol found, kind by kind: those of one kind share their pass over the pictures."""
    kinds = (protocols.FEATURES, protocols.PICTURES, protocols.MASKED, protocols.UNLABELLED)
    features, pictures, masked, unlabelled = ([n for n in o.protocols if n in kind] for kind in kinds)
    found = []
    if features or pictures:
        samples = read_samples(o, floor_seeds, device, features=bool(features), pictures=bool(pictures))
        if features:
            _check_finite(samples.train, samples.test)
        found += [_labelled(name, samples, o, device) for name in (*features, *pictures)]
    if masked:
        from eyespot.evaluate.masked import measure

        found += measure(o, [protocols.MASKED[name] for name in masked], floor_seeds, device)
    return found + [protocols.UNLABELLED[name].measure(o, floor_seeds, device) for name in unlabelled]


def _labelled(name: str, samples: Samples, o: EvaluateOptions, device: torch.device) -> Measured:
    """One protocol against labels, on the model and on its random twins."""
    started = time.perf_counter()
    bad = (0, 0)
    if name in protocols.FEATURES:
        started -= samples.seconds  # the feature pass, though several protocols share it
        outcomes = _on_features(name, samples, o.seed, device)
    else:
        outcomes, bad = _on_pictures(name, samples, o, device)
    config = copy.deepcopy(samples.config)
    if name == purity.NAME and (made := _pseudo_labels(o.model, samples)) is not None:
        config["pseudo_labels"] = made
    return Measured(
        protocol=name,
        version=protocols.ALL[name].VERSION,
        outcomes=outcomes,
        config=config,
        n_train=len(samples.train) - bad[0],
        n_test=len(samples.test) - bad[1],
        classes=int(samples.labels.unique().numel()),
        seconds=time.perf_counter() - started,
        bad=samples.train.bad + samples.test.bad + sum(bad),
        seed=o.seed,
    )


def _on_features(name: str, s: Samples, seed: int, device: torch.device) -> list[Outcome]:
    run = protocols.FEATURES[name].run
    more = {"same": s.same} if name == retrieval.NAME else {}
    return [
        run(train, s.labels, test, s.test_labels, s.classes, seed=seed, device=device, **more)
        for train, test in zip(s.train.vectors, s.test.vectors, strict=True)
    ]


def _on_pictures(
    name: str, s: Samples, o: EvaluateOptions, device: torch.device
) -> tuple[list[Outcome], tuple[int, int]]:
    """What the protocol gives for every network, and how many training and test pictures could not be read."""
    train, test = s.pictures()
    outcomes = []
    for k, net in enumerate(s.nets):
        who = "random weights" if k else s.config["run"]
        text = f"{name}: {who} on {len(train)} pictures, measured on {len(test)}"
        (o.listener or silent)({"kind": "note", "text": text})
        outcome = protocols.PICTURES[name].run(
            train,
            s.labels,
            test,
            s.test_labels,
            s.classes,
            net=net,
            image_size=s.config["image_size"],
            epochs=o.epochs,
            seed=o.seed,
            device=device,
            listener=o.listener or silent,
        )
        outcomes.append(outcome)
    return outcomes, (len(train.bad), len(test.bad))


def _check_finite(*sides: Features) -> None:
    for side in sides:
        bad = max(_not_finite(vectors) for vectors in side.vectors)
        if bad:
            raise UserError(
                f"The features of {bad} of the {len(side)} samples of '{side.name}' are not finite; the training "
                "diverged: evaluate an earlier run, or train with a lower rate."
            )


def _not_finite(vectors: Tensor) -> int:
    return int((~vectors.isfinite().all(1)).sum())


def _pseudo_labels(model: Any, samples: Samples) -> dict[str, Any] | None:
    """How pure the clusters are that a run prepared for its training, where the training side is the run's data."""
    folder = _run_folder(model)
    path = None if folder is None else folder / "prepared.safetensors"
    if path is None or not path.is_file() or not samples.data:
        return None
    clusters = load_file(path).get("cluster")
    data = samples.data[0]
    same = str(read_json(path.with_name("config.json")).get("data")) == data.source.name
    if clusters is None or not same or data.labels is None or len(clusters) != len(data):
        return None
    known = torch.from_numpy(data.labels >= 0)
    found, labels = clusters[known], torch.from_numpy(data.labels)[known]
    return {"clusters": int(found.unique().numel()), "samples": len(found), **purity.agreement(found, labels)}


# --- results kept in the run ----------------------------------------------------------------------------------
def _run_folder(model: Any) -> Path | None:
    """The folder of the run that was measured; None for a backbone, a module or embeddings."""
    path = getattr(model, "path", model)
    if not isinstance(path, str | os.PathLike):
        return None
    folder = Path(path)
    return folder if all((folder / name).is_file() for name in ("config.json", DESCRIPTION)) else None


def _keep(folder: Path, result: dict[str, Any]) -> None:
    """Keep a result in its run; where that cannot be written the result says so, and is not lost."""
    settings = {key: result["config"].get(key) for key in protocols.settings(result["protocol"])}
    try:
        records.keep(folder, result, settings)
    except OSError as error:
        result["config"]["not_kept"] = f"'{folder}' cannot be written ({error.strerror})"
