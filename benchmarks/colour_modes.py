"""Does the fast colour mode cost accuracy? SimCLR with linear and with exact colours, the same seeds, beside the floor.

    python benchmarks/colour_modes.py --data cifar10/train.parquet --json benchmarks/results/colour_modes.json

kNN by a split of the data that the probe never tunes on. The linear mode is the default only while its mean stays
within the spread of the exact one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

import eyespot

MODES = ("exact", "linear")


def train(data: str, mode: str, seed: int, epochs: float, out: Path) -> dict[str, float]:
    """One run and its kNN accuracy in percent."""
    started = time.perf_counter()
    run = eyespot.pretrain(
        "simclr",
        data=data,
        out=out,
        backbone="resnet8",
        image_size=32,
        epochs=epochs,
        seed=seed,
        set_={"color": mode},
    )
    minutes = (time.perf_counter() - started) / 60
    result = eyespot.evaluate(run, data=data, protocol="knn")
    return {"knn": result["top1"], "floor": result["floor"]["top1"], "minutes": round(minutes, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for mode in MODES:
                out = Path(folder) / f"{mode}{seed}"
                results[mode].append(train(options.data, mode, seed, options.epochs, out))
                print(f"seed {seed} {mode:6}", results[mode][-1], flush=True)
    means = {mode: statistics.mean(r["knn"] for r in results[mode]) for mode in MODES}
    spread = statistics.stdev(r["knn"] for r in results["exact"])
    record = {
        "what": "kNN top-1 in percent of SimCLR, resnet8, 32 px, with exact and with linear colours",
        "data": Path(options.data).parent.name,
        "epochs": options.epochs,
        "seeds": list(range(options.seeds)),
        "runs": results,
        "mean": means,
        "spread_of_exact": spread,
        "linear_within_spread": abs(means["linear"] - means["exact"]) <= spread,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "command": f"python benchmarks/colour_modes.py --seeds {options.seeds} --epochs {options.epochs} --data ...",
    }
    print(json.dumps({k: record[k] for k in ("mean", "spread_of_exact", "linear_within_spread")}))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
