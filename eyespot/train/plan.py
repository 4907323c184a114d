"""What a run does, resolved: every number the loop needs, as plain values that config.json stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from eyespot.data.loader import occurrence_keys
from eyespot.draws import Draws, epoch_permutation
from eyespot.errors import UserError
from eyespot.methods.method import Method, Recipe


@dataclass(frozen=True)
class Plan:
    """Numbers of one run.

    `batch_size` is the global batch of one optimizer step, over all processes and accumulated parts. `steps` is None
    until a budget in minutes has been measured.
    """

    recipe: Recipe
    lr: float
    batch_size: int
    steps_per_epoch: int
    steps: int | None
    epochs: float | None
    minutes: float | None = None
    accumulate: int = 1
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    log_every: int = 10
    checkpoint_seconds: float = 20.0
    parallel: str = "ddp"
    """How several processes share the work: "ddp" or "fsdp", see `eyespot.train.parallel`."""

    def with_steps(self, steps: int) -> Plan:
        return dataclasses.replace(self, steps=steps, epochs=steps / self.steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Plan:
        fields = dict(value)
        recipe = dict(fields.pop("recipe"))
        recipe["betas"] = tuple(recipe["betas"])
        return Plan(recipe=Recipe(**recipe), **fields)


@dataclass(frozen=True)
class Batch:
    """One step's rows of this process: sample numbers and the keys of their draws, [accumulate * m] each."""

    step: int
    epoch: int
    rows: np.ndarray
    keys: np.ndarray


def epoch_rows(method: Method, n: int, epoch: int, batch_size: int, seed: int) -> np.ndarray:
    """The order of one epoch: int64 [steps, batch_size]; the method's own, or a permutation whose tail is dropped."""
    own = method.batches(n, epoch, Draws(seed, epoch, epoch, [0]))
    if own is None:
        steps = n // batch_size
        return epoch_permutation(seed, epoch, n)[: steps * batch_size].reshape(steps, batch_size)
    own = np.asarray(own, dtype=np.int64)
    if own.ndim != 2 or own.shape[1] != batch_size or len(own) == 0:
        raise UserError(
            f"{type(method).__name__}.batches gave an order of shape {own.shape}; it must be [steps, {batch_size}]."
        )
    return own


def schedule_batches(
    method: Method, n: int, plan: Plan, start: int, stop: int, rank: int, world: int
) -> Iterator[Batch]:
    """The batches of steps start..stop of one process. Part a of a step is rows a*world*m .. (a+1)*world*m of the
    global batch, and each process takes its m of them, so that gathering restores the global order."""
    m = plan.batch_size // (world * plan.accumulate)
    epoch, rows = -1, np.empty((0, 0), np.int64)
    for step in range(start, stop):
        if step // plan.steps_per_epoch != epoch:
            epoch = step // plan.steps_per_epoch
            rows = epoch_rows(method, n, epoch, plan.batch_size, plan.seed)
        whole = rows[(step % plan.steps_per_epoch) % len(rows)]
        shape = (plan.accumulate, world, m)
        mine = whole.reshape(shape)[:, rank].reshape(-1)
        keys = occurrence_keys(whole).reshape(shape)[:, rank].reshape(-1)
        yield Batch(step, epoch, mine, keys)
