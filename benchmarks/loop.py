"""What the loop costs over a bare PyTorch loop that does the same step.

    python benchmarks/loop.py --json benchmarks/results/loop.json

Both sides train the same method on the same batches, views included; they alternate within one process, and the ratio
is taken pair by pair, so that a drifting machine cancels out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eyespot.data.batches import Request
from eyespot.data.loader import Data
from eyespot.data.scenes import SceneDataset
from eyespot.data.sources import open_source
from eyespot.draws import Draws, epoch_permutation
from eyespot.methods.catalog import load
from eyespot.nets.backbones import backbone
from eyespot.runs import RunFolder
from eyespot.train.fit import fit
from eyespot.train.optimizers import build_optimizer
from eyespot.train.plan import Plan
from eyespot.train.pretrain import RunProbe

BATCH, SIZE = 256, 32


def method_of(name: str):
    torch.manual_seed(0)
    return load(name)(backbone("resnet8", image_size=SIZE)).train()


def bare(name: str, data: Data, steps: int) -> float:
    """The step as one would write it: a batch, its views, the loss, backward, the optimizer."""
    method = method_of(name)
    optimizer = build_optimizer(method, method.recipe, 1e-3)
    rows = [epoch_permutation(0, e, len(data))[: len(data) // BATCH * BATCH].reshape(-1, BATCH) for e in range(9)]
    batches = iter(data.stream(Request(r, r) for r in np.concatenate(rows)[:steps]))
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        views = method.views(batch, Draws(0, 0, step, batch["key"]))
        loss = sum(method(views).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step()
        if step % 10 == 0:
            loss.item()
    return time.perf_counter() - started


def ours(name: str, data: Data, steps: int, folder: Path) -> float:
    """The same steps through `fit`, with run folder, checkpoints, metrics and the verdict."""
    method = method_of(name)
    per_epoch = len(data) // BATCH
    plan = Plan(replace(method.recipe, warmup_epochs=0), 1e-3, BATCH, per_epoch, steps, steps / per_epoch)
    run = RunFolder(folder)
    run.make()
    probe = RunProbe(method, data, SIZE, torch.device("cpu"), run)
    started = time.perf_counter()
    fit(method, data, plan, run, probe=probe)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = Data(open_source(SceneDataset(4096, seed=0, size=SIZE)))
    data.fill()
    bare(options.method, data, 5)
    ratios = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            times = {}
            for side in ("bare", "ours") if pair % 2 else ("ours", "bare"):
                if side == "bare":
                    times[side] = bare(options.method, data, options.steps)
                else:
                    times[side] = ours(options.method, data, options.steps, Path(folder) / "run")
        ratios.append(times["ours"] / times["bare"])
        print(f"pair {pair + 1}: ours / bare = {ratios[-1]:.3f}")
    result = {
        "what": f"seconds of fit over seconds of a bare loop, {options.method}, resnet8, {SIZE} px, batch {BATCH}",
        "steps": options.steps,
        "ratios": ratios,
        "median": statistics.median(ratios),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "command": f"python benchmarks/loop.py --method {options.method} --steps {options.steps}",
    }
    print(f"median {result['median']:.3f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
