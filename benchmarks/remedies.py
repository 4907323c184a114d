"""Do the remedies of the verdict work? Runs that are broken on purpose, and the same runs with the remedy applied.

    python benchmarks/remedies.py --data cifar10/train.parquet --json benchmarks/results/remedies.json

Every case says what breaks it, the verdict it should get, and the words of the remedy that are applied. A case whose
verdict is another one, or that is not *learning* with the remedy, is recorded as such.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import eyespot
from eyespot.errors import NonFiniteLoss


@dataclass(frozen=True)
class Case:
    """A method, the options that break it, the verdict it should get, and the options that mend it."""

    method: str
    state: str
    broken: Mapping[str, Any]
    remedy: str
    mended: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "rate too low": Case("simclr", "stalled", {"lr": 1e-7}, "the recipe's rate"),
    "rate far too high": Case(
        "mae",
        "unstable",
        {"backbone": "vit_micro", "lr": 100.0, "optimizer": "sgd", "clip": 1e6},
        "lower the rate and clip the gradient",
        {"backbone": "vit_micro", "lr": 0.1, "optimizer": "sgd", "clip": 1.0},
    ),
    "rate too high": Case(
        "mae",
        "collapsed",
        {"backbone": "vit_micro", "lr": 1.0, "clip": 1e6},
        "lower the rate",
        {"backbone": "vit_micro", "lr": 1e-3, "clip": 1e6},
    ),
    "centre never moves": Case(
        "dino", "collapsed", {"set_": {"centre_momentum": 1.0}}, "keep the defences at their defaults"
    ),
}


def verdict(case: Case, options: Mapping[str, Any], data: str, seed: int, out: Path) -> dict[str, Any]:
    """The last verdict on a short run."""
    fixed = {"backbone": "resnet8", "image_size": 32, "batch_size": 64, "epochs": 8.0, "workers": 0}
    with contextlib.suppress(NonFiniteLoss):  # the verdict says it
        eyespot.pretrain(case.method, data=data, out=out, seed=seed, **(fixed | dict(options)))
    found = json.loads((out / "verdict.json").read_text())
    return {key: found[key] for key in ("state", "reason", "remedy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a Parquet file of labelled pictures")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        part = str(Path(folder) / "part.parquet")
        pq.write_table(pq.read_table(options.data).slice(0, options.pictures), part)
        for name, case in CASES.items():
            runs = []
            for seed in range(options.seeds):
                out = Path(folder) / f"{name}-{seed}".replace(" ", "-")
                before = verdict(case, case.broken, part, seed, out / "broken")
                after = verdict(case, case.mended, part, seed, out / "mended")
                runs.append({"seed": seed, "broken": before, "mended": after})
                print(f"{name}, seed {seed}: {before['state']} -> {after['state']}", flush=True)
            results[name] = {
                "method": case.method,
                "broken_by": dict(case.broken),
                "remedy": case.remedy,
                "told": sum(r["broken"]["state"] == case.state for r in runs),
                "worked": sum(r["mended"]["state"] == "learning" for r in runs),
                "runs": runs,
            }
    record = {
        "what": "Verdicts on runs broken on purpose, and with the remedy applied; counts of seeds",
        "pictures": options.pictures,
        "seeds": list(range(options.seeds)),
        "cases": results,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "command": "python benchmarks/remedies.py --data cifar10/train.parquet",
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
