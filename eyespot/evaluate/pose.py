"""Where the camera was, told from frozen features, version 1: median errors in metres and degrees; lower is better.

    translation, rotation    by a ridge regression from the features of the training frames to their poses
    own_translation, ...     by the model's own head, where it is a run of a method that predicts poses (mapnet); in
                             place of a floor stands the middle of the training poses, which needs no picture
    pgo_translation, ...     the same after pose-graph optimisation with exact odometry between the test frames

    minimise  mean_i |W x_i + b - (t_i, w_i)|^2 + strength |W|^2

on standardised features, t the translation and w the logarithm of the rotation's quaternion, with the strength that
does best on the last fifth of the training frames. Errors are medians over all test frames, as 7-Scenes reports them
(for scenes in folders of their own: evaluate each, and average). Without test data the last fifth of `data` is
measured: neighbouring frames look alike, so a random part would measure memory. Frames are read one by one in their
order; nothing is random but the floor's weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot import modality
from eyespot.data.batches import BatchData, Request
from eyespot.errors import UserError
from eyespot.evaluate.dense import still
from eyespot.evaluate.features import is_embeddings
from eyespot.evaluate.measured import Measured, Outcome
from eyespot.evaluate.models import channels_of, open_model, run_folder
from eyespot.evaluate.representation import data_id
from eyespot.evaluate.samples import floor_of, open_data
from eyespot.losses.poses import as_logarithms, as_quaternions, odometry, optimised_poses
from eyespot.metrics.poses import median_pose_errors
from eyespot.options import EvaluateOptions

NAME = "pose"
VERSION = 1
HELD_OUT = 0.2
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
WINDOW = 7
"""Frames that pose-graph optimisation looks at; the middle one is kept."""
COVARIANCES = (1.0, 1.0, 0.05, 0.05)
"""Absolute translation and rotation, relative translation and rotation: odometry is trusted twenty times as much."""


def ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """[D + 1, 6]: weights and, last, the intercept, of features [n, D] and targets [n, 6]."""
    mean, target = x.mean(0), y.mean(0)
    centred = x - mean
    gram = centred.T @ centred / len(x) + strength * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - target) / len(x))
    return torch.cat([weight, (target - mean @ weight)[None]])


def regressed(train: Tensor, train_poses: Tensor, test: Tensor) -> tuple[Tensor, float]:
    """Poses [m, 7] of features [m, D] by ridge regression, and the strength that was chosen."""
    mean, scale = train.double().mean(0), train.double().std(0, unbiased=False)
    x, z = ((part.double() - mean) / torch.where(scale > 1e-12, scale, 1.0) for part in (train, test))
    y = as_logarithms(train_poses.double())
    cut = max(1, round(len(x) * (1 - HELD_OUT)))
    errors = {}
    for strength in GRID:
        fitted = ridge(x[:cut], y[:cut], strength)
        errors[strength] = (
            float((x[cut:] @ fitted[:-1] + fitted[-1] - y[cut:]).square().mean()) if cut < len(x) else 0.0
        )
    best = min(GRID, key=lambda s: errors[s])
    fitted = ridge(x, y, best)
    return as_quaternions(z @ fitted[:-1] + fitted[-1]), best


def optimised(predicted: Tensor, true: Tensor, starts: np.ndarray) -> Tensor:
    """Every pose [n, 7] after optimising the window around it with the exact odometry; windows end with a sequence."""
    out = predicted.clone()
    around = [_window(i, starts) for i in range(len(predicted))]
    for length in sorted({len(rows) for rows in around} - {1}):
        middle = [i for i, rows in enumerate(around) if len(rows) == length]
        rows = torch.tensor([around[i] for i in middle])
        steps = as_quaternions(odometry(as_logarithms(true[rows].double())))
        found = optimised_poses(predicted[rows], steps, COVARIANCES)
        at = torch.tensor([around[i].index(i) for i in middle])
        out[middle] = found[torch.arange(len(middle)), at].to(out)
    return out


def _window(i: int, starts: np.ndarray) -> list[int]:
    """The frames around frame i in its sequence."""
    reach = range(max(0, i - WINDOW // 2), min(len(starts), i + WINDOW // 2 + 1))
    return [k for k in reach if starts[k] == starts[i]]


def measure(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> Measured:
    """The protocol on a model and on its random twins.

    Raises:
        UserError: saved embeddings, or fewer than eight readable frames.
    """
    if is_embeddings(o.model):
        raise UserError(f"'{o.model}' holds embeddings and no network; give a run or a backbone.")
    posed, channels = modality.get("posed"), channels_of(o.model, o.channels, o.pretrained)
    data = open_data(o.data, o, channels or 3, o.split, posed)
    test = None if o.test_data is None else open_data(o.test_data, o, channels or 3, None, posed)
    model = open_model(o.model, data, image_size=o.image_size, pretrained=o.pretrained, seed=o.seed)
    size = o.image_size or model.net.image_size
    twins, floor = floor_of(model, o, floor_seeds)
    started = time.perf_counter()
    method = _own(o.model, device)
    cut = len(data) if test is not None else round(len(data) * (1 - HELD_OUT))
    sides = [
        (data, np.arange(cut)),
        (data, np.arange(cut, len(data))) if test is None else (test, np.arange(len(test))),
    ]
    nets = [model.net, *twins]
    train, tested = (_seen(nets, method if k else None, *side, size, o, device) for k, side in enumerate(sides))
    if len(train.index) < 8 or len(tested.index) < 2:
        raise UserError(
            f"'{data.source.name}' has {len(train.index)} readable frames; the regression needs eight or more."
        )
    outcomes = [_outcome(k, train, tested, sides[1][0]) for k in range(len(nets))]
    rows = len(sides[0][1]) + len(sides[1][1])
    config: dict[str, Any] = {
        "run": model.name,
        "backbone": model.net.name,
        "weights": model.weights,
        "features": "pooled, evaluation mode, clean view",
        "embed_dim": model.net.embed_dim,
        "image_size": size,
        "channels": model.net.channels,
        "data": data.source.name,
        "test_data": None if test is None else test.source.name,
        "data_id": data_id(data.source, o.seed),
        "floor": floor,
    }
    return Measured(
        protocol=NAME,
        version=VERSION,
        outcomes=outcomes,
        config=config | ({} if o.name is None else {"name": o.name}),
        n_train=len(train.index),
        n_test=len(tested.index),
        classes=0,
        seconds=time.perf_counter() - started,
        bad=rows - len(train.index) - len(tested.index),
        seed=o.seed,
    )


class _Seen:
    """Features of frames by each network, their poses, and what a method's own head says."""

    def __init__(self, nets: int):
        self.vectors: list[list[Tensor]] = [[] for _ in range(nets)]
        self.poses: list[Tensor] = []
        self.own: list[Tensor] = []
        self.index: list[int] = []


@torch.no_grad()
def _seen(
    nets: list[Any], method: Any, data: BatchData, rows: np.ndarray, size: int, o: EvaluateOptions, device: torch.device
) -> _Seen:
    out = _Seen(len(nets))
    clean = modality.get("image").clean
    with still([*nets, *([method] if method is not None else [])], device):
        for batch in data.stream(_requests(rows, o.batch_size), replace=False):
            if not len(batch["index"]):
                continue
            pictures = clean(batch, size, device)
            for kept, net in zip(out.vectors, nets, strict=True):
                kept.append(net(modality.moved(pictures, device, torch.float32)).float().cpu())
            out.poses.append(batch["pose"][:, 0].float())
            out.index += batch["index"].tolist()
            if method is not None:
                out.own.append(method.predict_poses(_unit(batch["image"]).to(device)).float().cpu())
    return out


def _requests(rows: np.ndarray, size: int) -> Iterator[Request]:
    for a in range(0, len(rows), size):
        part = rows[a : a + size]
        yield Request(part, plans=[{"frames": 1}] * len(part))


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _own(model: Any, device: torch.device) -> Any:
    """The method of a run that predicts poses, else None."""
    if not isinstance(model, str) and not hasattr(model, "path") and not hasattr(model, "__fspath__"):
        return model if hasattr(model, "predict_poses") else None
    folder = run_folder(model)
    if folder is None or not (folder / "checkpoint.pt").exists():
        return None
    from eyespot.train.build import load_method

    method = load_method(folder)
    return method.to(device).eval() if hasattr(method, "predict_poses") else None


def _outcome(k: int, train: _Seen, tested: _Seen, data: BatchData) -> Outcome:
    """The metrics of network k, 0 is the model."""
    known, true = torch.cat(train.poses), torch.cat(tested.poses)
    found, strength = regressed(torch.cat(train.vectors[k]), known, torch.cat(tested.vectors[k]))
    metrics = median_pose_errors(found.float(), true)
    if tested.own:
        middle = as_quaternions(as_logarithms(known).mean(0, keepdim=True)).expand(len(true), -1)
        own = torch.cat(tested.own) if k == 0 else middle
        source: Any = data.source
        after = optimised(own, true, source.starts[tested.index])
        for name, poses in (("own", own), ("pgo", after)):
            metrics |= {f"{name}_{key}": value for key, value in median_pose_errors(poses, true).items()}
    return metrics, {"strength": strength, "window": WINDOW, "covariances": list(COVARIANCES)}
