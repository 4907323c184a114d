"""What a run does, resolved: every number the loop needs, as plain values that config.json stores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from eyespot.data.batches import REPEAT, occurrence_keys
from eyespot.draws import Draws, epoch_permutation
from eyespot.errors import UserError
from eyespot.methods.method import Method, Recipe


@dataclass(frozen=True)
class Plan:
    """Numbers of one run.

    `batch_size` is the global batch of one optimizer step, over all processes and accumulated parts.
    `steps_per_epoch` is samples / batch_size, not rounded. `steps` is None until a budget in minutes has been measured.
    """

    recipe: Recipe
    lr: float
    batch_size: int
    steps_per_epoch: float
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


def own_order(method: Method, n: int, epoch: int, batch_size: int, seed: int) -> np.ndarray | None:
    """A method's own order of one epoch: int64 [steps, batch_size]; None where it has none."""
    own = method.batches(n, epoch, Draws(seed, epoch, epoch, [0]))
    if own is None:
        return None
    own = np.asarray(own, dtype=np.int64)
    if own.ndim != 2 or own.shape[1] != batch_size or len(own) == 0:
        raise UserError(
            f"{type(method).__name__}.batches gave an order of shape {own.shape}; it must be [steps, {batch_size}]."
        )
    return own


def epoch_steps(method: Method, n: int, batch_size: int, seed: int) -> float:
    """Steps of one epoch: n / batch_size, not rounded, or those of the method's own order."""
    own = own_order(method, n, 0, batch_size, seed)
    return n / batch_size if own is None else float(len(own))


def steps_of(epochs: float, per_epoch: float) -> int:
    """Steps that show every sample at least as often as the epochs say."""
    return max(1, math.ceil(epochs * per_epoch - 1e-9))


class Order:
    """Which samples the global batch of a step holds.

    Without an order of the method's own, the epochs follow one another without a gap, each a permutation of all
    samples, and batches of one size are cut from them: every sample occurs exactly once an epoch, whatever the batch
    size, and a batch at the seam ends one epoch and begins the next. In its second part keys grow by `REPEAT`, so that
    a sample that has been seen in the first of the two epochs is drawn anew.
    """

    def __init__(self, method: Method, n: int, plan: Plan):
        self.method, self.n, self.size, self.seed = method, n, plan.batch_size, plan.seed
        self.own = own_order(method, n, 0, plan.batch_size, plan.seed)
        self.kept = (-1, np.empty(0, np.int64)) if self.own is None else (0, self.own)

    def step(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(epoch in which the batch begins, sample numbers int64 [batch], keys int64 [batch])."""
        if self.own is not None:
            epoch, place = divmod(step, len(self.own))
            rows = self._epoch(epoch)
            whole = rows[place % len(rows)]
            return epoch, whole, occurrence_keys(whole)
        first, start = divmod(step * self.size, self.n)
        rows, keys = [], []
        epoch, missing = first, self.size
        while missing:
            part = self._epoch(epoch)[start : start + missing]
            rows.append(part)
            keys.append(part + (epoch - first) * REPEAT)
            epoch, start, missing = epoch + 1, 0, missing - len(part)
        return first, np.concatenate(rows), np.concatenate(keys)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of one epoch; the last one asked for is remembered."""
        if self.kept[0] != epoch:
            own = None if self.own is None else own_order(self.method, self.n, epoch, self.size, self.seed)
            self.kept = (epoch, epoch_permutation(self.seed, epoch, self.n) if own is None else own)
        return self.kept[1]


def schedule_batches(
    method: Method, n: int, plan: Plan, start: int, stop: int, rank: int, world: int
) -> Iterator[Batch]:
    """The batches of steps start..stop of one process. Part a of a step is rows a*world*m .. (a+1)*world*m of the
    global batch, and each process takes its m of them, so that gathering restores the global order."""
    shape = (plan.accumulate, world, plan.batch_size // (world * plan.accumulate))
    order = Order(method, n, plan)
    for step in range(start, stop):
        epoch, rows, keys = order.step(step)
        mine, own = (whole.reshape(shape)[:, rank].reshape(-1) for whole in (rows, keys))
        yield Batch(step, epoch, mine, own)
