"""What protocols share that need a whole method, not its main network alone: pictures are compared with words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.errors import UserError
from eyespot.evaluate.dense import still
from eyespot.evaluate.measured import Measured, Outcome
from eyespot.evaluate.models import run_folder, seeded
from eyespot.methods.method import Method
from eyespot.options import EvaluateOptions
from eyespot.train.build import fresh_method, load_method

TEXTS = 256
"""Texts embedded at a time."""


@dataclass(frozen=True)
class Whole:
    """A method of pictures and text, and the same with random weights.

    Attributes:
        name: the run's folder, or the kind of method.
        methods: the trained one, then its random twins.
        floor: what a result's config says about the twins.
    """

    name: str
    methods: list[Any]
    floor: dict[str, Any]

    @property
    def method(self) -> Any:
        return self.methods[0]


def open_whole(o: EvaluateOptions, floor_seeds: int, protocol: str) -> Whole:
    """The method that the options name.

    Raises:
        UserError: it is no run, or the run's method knows no text.
    """
    if isinstance(o.model, Method):
        found = Whole(type(o.model).__name__, [o.model], {"weights": "none: give the run's folder for a random one"})
    else:
        found = _of_run(o, floor_seeds, protocol)
    method = found.method
    if not callable(getattr(method, "text_features", None)):
        raise UserError(
            f"{protocol} compares with text, which {type(method).__name__} does not know; give a run of a method that "
            "learns from captions, such as clip."
        )
    return found


def _of_run(o: EvaluateOptions, floor_seeds: int, protocol: str) -> Whole:
    folder = run_folder(o.model)
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"{protocol} needs a whole method, and '{o.model}' is a network alone; give a run of clip.")
    methods = [load_method(folder)]
    if not o.floor:
        return Whole(str(folder), methods, {"weights": "not asked for"})
    seeds = list(range(o.seed, o.seed + floor_seeds))
    methods += [random_method(folder, seed) for seed in seeds]
    return Whole(str(folder), methods, {"weights": "random, as initialised", "seeds": seeds})


def random_method(folder: Path, seed: int) -> Method:
    """The method of a run as it was before training, with other random weights and the same words."""
    return seeded(seed, lambda: fresh_method(folder))


@torch.no_grad()
def text_features(method: Any, texts: Sequence[str]) -> Tensor:
    """Features [n, E] of texts, on CPU; equal texts are looked at once."""
    unique = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    words = list(unique)
    parts = [method.text_features(words[a : a + TEXTS]).cpu() for a in range(0, len(words), TEXTS)]
    return torch.cat(parts)[[unique[text] for text in texts]]


@torch.no_grad()
def picture_features(
    methods: Sequence[Any], data: BatchData, rows: np.ndarray, size: int, batch: int, device: torch.device
) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Batches of readable samples, and the features [B, E] that each method gives their pictures, on CPU."""
    clean = modality.get("image").clean
    for part in data.stream([rows[a : a + batch] for a in range(0, len(rows), batch)], replace=False):
        if not len(part["index"]):
            continue
        pixels = clean(part, size, device=device)
        yield part, [method.image_features(_as_weights(method, pixels)).cpu() for method in methods]


def _as_weights(method: Any, pixels: Any) -> Tensor:
    weight = next(method.parameters())
    return pixels.to(weight.device, weight.dtype)


def on_each(methods: Sequence[Any], device: torch.device, outcome: Callable[[Any], Outcome]) -> list[Outcome]:
    """The outcome of each method, in evaluation mode on the device."""
    with still(list(methods), device), torch.no_grad():
        return [outcome(method) for method in methods]


def measured(
    whole: Whole, protocol: str, version: int, outcomes: list[Outcome], o: EvaluateOptions, **found: Any
) -> Measured:
    """The result of a protocol.

    Args:
        found: "config", "n_test", "classes", "seconds", "bad".
    """
    backbone = whole.method.backbone
    config = {
        "run": whole.name,
        "backbone": backbone.name,
        "weights": "trained",
        "features": "those that the method compares, evaluation mode",
        "image_size": o.image_size or backbone.image_size,
        **found.pop("config"),
        "floor": whole.floor,
    }
    if o.name is not None:
        config["name"] = o.name
    return Measured(
        protocol=protocol, version=version, outcomes=outcomes, config=config, n_train=0, seed=o.seed, **found
    )
