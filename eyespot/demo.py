"""`eyespot demo`: the main job from end to end with the public functions, on rendered scenes or on an own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import eyespot
from eyespot.data.sources import open_source
from eyespot.options import DemoOptions
from eyespot.runs import Run, RunFolder


@dataclass
class Demo:
    """What the demo leaves."""

    run: Run
    picture: Path
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    """One result a protocol; empty when the pictures have no labels."""


def demo(options: DemoOptions, listener: Callable[[Mapping[str, Any]], None]) -> Demo:
    """Pictures, pre-training, evaluation beside random features, nearest neighbours before and after.

    Args:
        listener: called with progress records, see `eyespot.terminal.progress`.

    Raises:
        UserError: as the functions it calls.
    """
    folder = Path(options.out)
    data, test_data = options.data, options.test_data
    if data is None:
        data, test_data = scenes(folder / "data", options.seed, listener)
    run = eyespot.pretrain(
        options.method,
        data=data,
        out=free(folder / "run"),
        backbone=options.backbone,
        image_size=options.image_size,
        minutes=options.minutes,
        seed=options.seed,
        listener=listener,
    )
    return Demo(run, neighbours(run, data, test_data, options), evaluations(run, data, test_data, listener))


def scenes(folder: Path, seed: int, listener: Callable[[Mapping[str, Any]], None]) -> tuple[Path, Path]:
    """The rendered scenes as class folders of PNG files, made where they are not all there: (train, test)."""
    from eyespot.data.scenes import SPLITS, write_scenes

    for split, count in SPLITS.items():
        if sum(1 for _ in (folder / split).glob("*/*.png")) < count:
            listener({"kind": "note", "text": f"rendering {count} scenes into {folder / split}"})
            write_scenes(folder, seed=seed, split=split)
    return folder / "train", folder / "test"


def free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that holds no run: none is overwritten."""
    count, found = 1, path
    while RunFolder(found).holds_run():
        count += 1
        found = path.with_name(f"{path.name}-{count}")
    return found


def evaluations(
    run: Run, data: Any, test_data: Any, listener: Callable[[Mapping[str, Any]], None]
) -> list[Mapping[str, Any]]:
    """kNN and linear probe, when there are labels."""
    if open_source(data).labels is None:
        listener({"kind": "note", "text": "the pictures have no labels, so there is no accuracy to measure"})
        return []
    given = {} if test_data is None else {"test_data": test_data}
    return list(eyespot.evaluate(run, data=data, protocol=("knn", "linear"), **given))


def neighbours(run: Run, data: Any, test_data: Any, options: DemoOptions) -> Path:
    """The picture of nearest neighbours before and after training."""
    from eyespot.evaluate.neighbours import draw_neighbours

    return draw_neighbours(run, data if test_data is None else test_data, seed=options.seed)
