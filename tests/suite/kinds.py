"""Small data of every modality but pictures, and the methods that learn from it: what the suites run on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import SMALL

from eyespot import modality
from eyespot.declare import build
from eyespot.methods import catalog
from eyespot.options import PretrainOptions
from eyespot.runs import RunFolder
from eyespot.train.fit import plans_of
from eyespot.train.pretrain import Training

COUNT = 24
"""Samples of each made set, in two classes where they have labels."""


def sounds(folder: Path) -> None:
    """Low and high tones."""
    import soundfile

    times = np.arange(6400) / 16000
    for i in range(COUNT):
        into = folder / ("low" if i % 2 else "high")
        into.mkdir(parents=True, exist_ok=True)
        hertz = 300 + 10 * i if i % 2 else 2000 + 50 * i
        soundfile.write(into / f"{i:02d}.wav", 0.4 * np.sin(2 * np.pi * hertz * times), 16000)


@dataclass(frozen=True)
class Kind:
    """How a modality's methods are run small."""

    make: Callable[[Path], None]
    """Writes COUNT samples into a folder."""
    package: str
    """Without it nothing of this modality runs."""
    size: int
    backbone: str
    set: dict[str, Any] = field(default_factory=dict)
    labels: bool = True
    """Whether the samples have classes, so that neighbours can be counted."""


KINDS = {"audio": Kind(sounds, "soundfile", 32, "gru_micro")}
OF_METHODS: dict[str, dict[str, Any]] = {}
"""Arguments that one method needs to be small."""


def kind_of(name: str) -> str:
    """The modality of a method's data."""
    fields = frozenset(catalog.find(name).needs) - modality.COMMON
    return next((kind for kind, own in modality.FIELDS.items() if own == fields), "")


def names() -> list[str]:
    """Methods that learn from other data than pictures, and whose packages are there."""
    found = [e.name for e in catalog.entries().values() if e.kind == "method" and kind_of(e.name) in KINDS]
    return [n for n in found if importlib.util.find_spec(KINDS[kind_of(n)].package)]


def options(name: str, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of eight steps."""
    kind, entry = KINDS[kind_of(name)], catalog.find(name)
    small = {f.name: SMALL[f.name] for f in entry.fields if f.name in SMALL and "tuple" not in f.annotation}
    arguments = small | kind.set | OF_METHODS.get(name, {})
    common = {"data": data, "out": out, "image_size": kind.size, "backbone": kind.backbone, "workers": 0}
    return {**common, "batch_size": 6, "epochs": 2, "set_": arguments, "pictures": False, **changes}


def made(name: str, data: Path, out: Path) -> tuple[Any, Any]:
    """The data and the method of a run, prepared."""
    chosen = build(PretrainOptions, name, **options(name, data, out))
    folder = RunFolder(out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu")
    training = Training(catalog.load(name, "method"), chosen, "method", "eyespot pretrain", folder, device, None)
    read, choices, method = training.assemble()
    training.prepare(method, read, choices)
    return read, method


def batch_of(method: Any, data: Any, rows: Any, draws: Any) -> dict[str, Any]:
    """Samples, read as the method wants them."""
    rows = np.asarray(rows, np.int64)
    return data.batch(rows, plans=plans_of(method, data, rows, draws))
