"""One optimizer step: views, loss terms, gradient, update. The loop and the budget measurement share it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eyespot.data.batches import REPEAT
from eyespot.draws import Draws, mix
from eyespot.errors import NonFiniteLoss
from eyespot.methods.method import Method, total
from eyespot.process import rank
from eyespot.train.optimizers import set_rates
from eyespot.train.parallel import Sharded, Whole, whole_tensor
from eyespot.train.plan import Batch, Plan
from eyespot.train.schedules import lr_factor, warmup_steps, weight_decay_at

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass
class Engine:
    """What a step works on. `method` is what is trained: where weights are sharded, `parallel`'s copy."""

    parallel: Whole | Sharded
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # type: ignore[name-defined]
    plan: Plan
    pending: tuple[dict[str, Tensor], int, Any, float] | None = None
    """Terms not yet looked at: on an accelerator the check waits for the next step instead of for the device."""

    def flush(self) -> None:
        """Look at the pending terms."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            check_finite(*pending)

    @property
    def method(self) -> Method:
        return self.parallel.method

    @property
    def device(self) -> torch.device:
        return torch.device(self.plan.device)


@dataclass
class StepResult:
    terms: dict[str, Tensor]
    """Detached loss terms, the mean over the accumulated parts."""
    lr: float
    grad_norm: Tensor | None
    compute_seconds: float


def on_device(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Tensors of a nested value on the device; floating ones in `dtype` when given."""
    if isinstance(value, Tensor):
        change = dtype if dtype is not None and value.is_floating_point() else None
        return value.to(device, change, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: on_device(v, device, dtype) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(v, device, dtype) for v in value)
    return value


def part(batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Rows start..stop of every field."""
    return {k: v[start:stop] if isinstance(v, (Tensor, list)) else v for k, v in batch.items()}


def autocast(plan: Plan) -> contextlib.AbstractContextManager[Any]:
    if plan.precision in ("bfloat16", "float16"):
        return torch.autocast(torch.device(plan.device).type, DTYPES[plan.precision])
    return contextlib.nullcontext()


def check_finite(terms: Mapping[str, Tensor], step: int, keys: Any, lr: float) -> None:
    """Raise when a term is not finite, with the term, the step, the samples and the remedy."""
    bad = [name for name, value in terms.items() if not bool(torch.isfinite(value).all())]
    if bad:
        samples = [int(k) % REPEAT for k in keys]
        shown = ", ".join(map(str, samples[:8])) + (f" ... ({len(samples)} in all)" if len(samples) > 8 else "")
        raise NonFiniteLoss(
            f"Loss term '{bad[0]}' is not finite at step {step} (samples {shown}); the last good checkpoint stays: "
            f"lower the rate (it was {lr:.3g}), clip the gradient (--clip 1), or use --precision float32, and --resume."
        )


def training_step(engine: Engine, batch: dict[str, Any], where: Batch) -> StepResult:
    """One optimizer step on this process's rows of a global batch."""
    plan, method = engine.plan, engine.method
    assert plan.steps is not None
    started = time.perf_counter()
    warmup = warmup_steps(plan.recipe, plan.steps, plan.steps_per_epoch)
    lr = plan.lr * lr_factor(plan.recipe, where.step, plan.steps, warmup, plan.steps_per_epoch)
    method.progress = min(1.0, where.step / plan.steps)
    set_rates(engine.optimizer, lr, weight_decay_at(plan.recipe, method.progress), plan.lr)
    # dropout and drop-path: a function of (seed, step, process), so that resume repeats them
    torch.manual_seed(mix(mix(plan.seed) + where.step * 4096 + rank()) >> 1)
    sums: dict[str, Tensor] = {}
    m = len(where.rows) // plan.accumulate
    for a in range(plan.accumulate):
        keys = where.keys[a * m : (a + 1) * m]
        draws = Draws(plan.seed, where.epoch, where.step * plan.accumulate + a, keys, engine.device)
        last = a == plan.accumulate - 1
        terms = _backward(engine, part(batch, a * m, (a + 1) * m), draws, where, lr, last)
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / plan.accumulate
    norm = _update(engine)
    return StepResult(sums, lr, norm, time.perf_counter() - started)


def _backward(
    engine: Engine, batch: dict[str, Any], draws: Draws, where: Batch, lr: float, last: bool
) -> dict[str, Tensor]:
    plan = engine.plan
    dtype = DTYPES["float64"] if plan.precision == "float64" else None
    with torch.no_grad():
        views = engine.method.views(on_device(batch, engine.device), draws)
    views = on_device(views, engine.device, dtype)
    with engine.parallel.averaging(last):
        with autocast(plan):
            terms = engine.parallel.model(views, draws)
            loss = total(terms) / plan.accumulate
        detached = {k: v.detach() for k, v in terms.items()}
        engine.flush()
        engine.pending = (detached, where.step, draws.index, lr)
        if engine.device.type == "cpu":
            engine.flush()
        engine.scaler.scale(loss).backward()
    return detached


def _update(engine: Engine) -> Tensor | None:
    plan, norm = engine.plan, None
    engine.method.before_step()
    if plan.recipe.clip is not None:
        engine.scaler.unscale_(engine.optimizer)
        parameters = [p for g in engine.optimizer.param_groups for p in g["params"]]
        norm = whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, plan.recipe.clip))
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.method.after_step()
    return norm
