"""`eyespot.estimate`: what a run will take, measured on a few of its real steps; nothing is left behind."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from eyespot.data.batches import occurrence_keys
from eyespot.declare import build
from eyespot.draws import epoch_permutation
from eyespot.methods import catalog
from eyespot.methods.method import Method
from eyespot.options import EstimateOptions
from eyespot.runs import RunFolder
from eyespot.train.fit import build_engine, fetch
from eyespot.train.launch import resolve_device
from eyespot.train.plan import Batch, Plan
from eyespot.train.pretrain import Training
from eyespot.train.resolve import make_plan
from eyespot.train.step import Engine, training_step

STEPS = 8
"""Measured steps; the first third warms up."""
MEASURED_STEPS = 1_000_000
"""Length of the pretended run, so that its warm-up is not over within the measured steps."""


def estimate(method: str, /, **options: Any) -> dict[str, Any]:
    """Time, memory and disk of `eyespot.pretrain` with the same options.

    Args:
        method: name of a method.
        options: as for `eyespot.pretrain`; `out` is only looked at for its free disk space.

    Returns:
        {"steps", "seconds_per_step", "images_per_s", "minutes", "memory_mb", "memory_of", "disk_mb", "disk_free_mb",
        "parameters", "prepares", "device", "batch_size"}. `minutes` leaves out a preparation stage ("prepares").
        `memory_mb` is the peak of this process (on CPU) or of the device.

    Raises:
        UserError: as `eyespot.pretrain`.
    """
    chosen = build(EstimateOptions, method, **options)
    device = resolve_device(chosen.device)
    cls = catalog.load(str(chosen.method), "method")
    with tempfile.TemporaryDirectory() as folder:
        training = Training(cls, chosen, "method", "eyespot estimate", RunFolder(folder), device, None)
        data, choices, net = training.assemble()
        drawn = _without_own_order(net)
        plan = make_plan(net, choices, chosen, data, device)
        with torch.random.fork_rng(devices=[]):
            engine = build_engine(net, plan.with_steps(MEASURED_STEPS), 1)
            seconds = _seconds_per_step(engine, data)
    return _report(engine, plan, seconds, drawn, Path(chosen.out or "."))


def _without_own_order(method: Method) -> bool:
    """Whether the method has a stage before training. Its own order needs what that stage finds: take a plain one."""
    prepares = type(getattr(method, "host", method)).prepare is not Method.prepare
    if prepares:
        method.batches = lambda n, epoch, draws: None  # type: ignore[method-assign]
    return prepares


def _seconds_per_step(engine: Engine, data: Any) -> float:
    plan = engine.plan
    if hasattr(data, "fill"):
        data.fill()
    order = epoch_permutation(plan.seed, 0, len(data))
    rows = [order.take(range(i * plan.batch_size, (i + 1) * plan.batch_size), mode="wrap") for i in range(STEPS)]
    wheres = iter([Batch(i, 0, r, occurrence_keys(r)) for i, r in enumerate(rows)])
    taken, last = [], time.perf_counter()
    for where, batch, _ in fetch(data, wheres, engine):
        training_step(engine, batch, where)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        now = time.perf_counter()
        taken.append(now - last)
        last = now
    return statistics.median(taken[len(taken) // 3 :])


def _report(engine: Engine, plan: Plan, seconds: float, prepares: bool, out: Path) -> dict[str, Any]:
    steps = plan.steps if plan.steps is not None else max(1, int((plan.minutes or 0) * 60 * 0.97 / seconds))
    memory, memory_of = _peak_memory(engine.device)
    weights = sum(t.nbytes for t in engine.method.state_dict().values())
    moments = sum(t.nbytes for s in engine.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    place = next(p for p in [out, *out.absolute().parents] if p.exists())
    return {
        "steps": steps,
        "epochs": round(steps / plan.steps_per_epoch, 2),
        "seconds_per_step": round(seconds, 4),
        "images_per_s": round(plan.batch_size / seconds, 1),
        "minutes": round(steps * seconds / 60, 1),
        "memory_mb": round(memory / 2**20),
        "memory_of": memory_of,
        # the new checkpoint is complete before the old one goes
        "disk_mb": round(2 * (weights + moments) / 2**20 + 1),
        "disk_free_mb": round(shutil.disk_usage(place).free / 2**20),
        "parameters": sum(p.numel() for p in engine.method.parameters() if p.requires_grad),
        "prepares": prepares,
        "device": plan.device,
        "batch_size": plan.batch_size,
    }


def _peak_memory(device: torch.device) -> tuple[int, str]:
    """Bytes, and of what."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), str(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0, "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
