"""Small data of every modality but pictures, and the methods that learn from it: what the suites run on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import SMALL
from clips import write_folder

from eyespot import modality
from eyespot.declare import build
from eyespot.methods import catalog
from eyespot.options import PretrainOptions
from eyespot.runs import RunFolder
from eyespot.train.fit import plans_of
from eyespot.train.pretrain import Training


def sounds(folder: Path) -> Path:
    """Low and high tones."""
    import soundfile

    times = np.arange(6400) / 16000
    for i in range(24):
        into = folder / ("low" if i % 2 else "high")
        into.mkdir(parents=True, exist_ok=True)
        hertz = 300 + 10 * i if i % 2 else 2000 + 50 * i
        soundfile.write(into / f"{i:02d}.wav", 0.4 * np.sin(2 * np.pi * hertz * times), 16000)
    return folder


def clips(folder: Path) -> Path:
    """Squares that move and that hardly do."""
    return write_folder(folder, each=12, steps=20, size=(36, 40))


def captioned(folder: Path) -> Path:
    """Dark and bright pictures with two captions each, in class folders."""
    random = np.random.default_rng(0)
    for i in range(24):
        name = "dark" if i % 2 else "bright"
        (folder / name).mkdir(parents=True, exist_ok=True)
        low = 0 if i % 2 else 128
        Image.fromarray(random.integers(low, low + 128, (24, 24, 3), np.uint8)).save(folder / name / f"{i:02d}.png")
        (folder / name / f"{i:02d}.txt").write_text(f"a {name} picture\nnumber {i} is {name}\n")
    return folder


def clouds(folder: Path) -> Path:
    """Points on spheres and in boxes."""
    random = np.random.default_rng(0)
    for i in range(24):
        name = "ball" if i % 2 else "box"
        (folder / name).mkdir(parents=True, exist_ok=True)
        points = random.normal(size=(200, 3)) if i % 2 else random.uniform(-1, 1, (200, 3))
        if i % 2:
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        np.save(folder / name / f"{i:02d}.npy", points.astype(np.float32))
    return folder


def walk(folder: Path) -> Path:
    """Frames of a camera that goes along a wall of noise, in the layout of 7-Scenes."""
    random = np.random.default_rng(0)
    wall, place = random.integers(0, 256, (32, 120, 3), np.uint8), folder / "seq-01"
    place.mkdir(parents=True, exist_ok=True)
    for i in range(24):
        Image.fromarray(wall[:, 3 * i : 3 * i + 40]).save(place / f"frame-{i:06d}.color.png")
        pose = np.eye(4)
        pose[0, 3] = 0.1 * i
        np.savetxt(place / f"frame-{i:06d}.pose.txt", pose)
    return folder


@dataclass(frozen=True)
class Kind:
    """How a modality's methods are run small."""

    make: Callable[[Path], Path]
    """Writes 24 samples into a folder."""
    packages: tuple[str, ...]
    """Without them nothing of this modality runs."""
    size: int
    backbone: str
    set: dict[str, Any] = field(default_factory=dict)
    labels: bool = True
    """Whether the samples have two classes, so that neighbours can be counted."""


KINDS = {
    "audio": Kind(sounds, ("soundfile",), 32, "gru_micro"),
    "video": Kind(clips, ("av",), 16, "r3d_10", {"frames": 4}),
    "pairs": Kind(captioned, (), 16, "resnet8", {"text_width": 16, "context": 16, "vocab": 520}),
    "points": Kind(clouds, (), 64, "points_nano", {"teacher_epochs": 0.5, "depth_size": 32}),
    "posed": Kind(walk, (), 16, "resnet8", {"spacing": 2}, labels=False),
}
OF_METHODS: dict[str, dict[str, Any]] = {"motion_appearance_statistics": {"frames": 16, "backbone": "c3d_light"}}
"""Arguments that one method needs, and its backbone."""


def kind_of(name: str) -> str:
    """The modality of a method's data."""
    fields = frozenset(catalog.find(name).needs) - modality.COMMON
    return next((kind for kind, own in modality.FIELDS.items() if own == fields), "")


def names() -> list[str]:
    """Methods that learn from other data than pictures, and whose packages are there."""
    found = [e.name for e in catalog.entries().values() if e.kind == "method" and kind_of(e.name) in KINDS]
    return [n for n in found if all(importlib.util.find_spec(p) for p in KINDS[kind_of(n)].packages)]


def options(name: str, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of eight steps."""
    kind, entry = KINDS[kind_of(name)], catalog.find(name)
    small = {f.name: SMALL[f.name] for f in entry.fields if f.name in SMALL and "tuple" not in f.annotation}
    known = {f.name for f in entry.fields}
    arguments = small | {k: v for k, v in kind.set.items() if k in known} | OF_METHODS.get(name, {})
    backbone = arguments.pop("backbone", kind.backbone)
    common = {"data": data, "out": out, "image_size": kind.size, "backbone": backbone, "workers": 0}
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
