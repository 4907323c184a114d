"""The loop: batches in, weights out, resumable to the bit, alone or under torchrun.

Read it from top to bottom; `fit` is the whole story.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from eyespot.data.advice import remedies
from eyespot.data.batches import Request
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import Method
from eyespot.process import all_max, all_mean, barrier, broadcast_object, is_main, rank, world_size
from eyespot.runs import RunFolder
from eyespot.train.checkpoint import load_checkpoint, save_checkpoint
from eyespot.train.optimizers import build_optimizer
from eyespot.train.parallel import Sharded, Whole
from eyespot.train.plan import Batch, Plan, schedule_batches
from eyespot.train.signals import StopRequest, listening, stop
from eyespot.train.step import DTYPES, Engine, StepResult, training_step
from eyespot.train.waiting import DataWait

Listener = Callable[[dict[str, Any]], None]

MEASURED = 12  # steps that fix a budget in minutes; the first third warms up


class Probe(Protocol):
    """What gives the verdict while a run goes on."""

    def record(self, record: dict[str, Any]) -> None: ...

    def __call__(self, method: Method, step: int, steps: int | None) -> dict[str, Any]: ...


def silent(record: dict[str, Any]) -> None:
    """A listener that ignores what it hears."""


def fit(
    method: Method,
    data: Any,
    plan: Plan,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    listener: Listener = silent,
    probe: Probe | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Plan:
    """Train `method` on `data` as `plan` says.

    Args:
        method: trained in place; on several processes its batch norms must already be synchronised.
        data: `eyespot.data.loader.Data`, or anything with `__len__` and `stream`; a replay's `feedback(rows, watch)`
            hears after every step what the method watched, such as the error of each row.
        plan: what to do; `steps` may be None when `minutes` is given.
        folder: where checkpoint and metrics go; None keeps nothing.
        resume: continue from the folder's checkpoint when there is one.
        listener: called with a record of every logged step.
        probe: hears every logged record on the main process, and gives the verdict so far now and then.
        on_plan: called once with the plan whose steps are fixed.

    Returns:
        The plan with its number of steps.

    Raises:
        NonFiniteLoss: a loss term is not finite.
        Stopped, KeyboardInterrupt: a signal asked to stop; the step was ended and the checkpoint written.
    """
    me, world = rank(), world_size()
    with torch.random.fork_rng(devices=_cuda_devices(plan)):
        engine = build_engine(method, plan, world)
        if plan.steps is None:
            plan = measure_budget(engine, data, me, world)
            engine.plan = plan
        info = dataclasses.replace(method.info, epochs=plan.epochs or method.info.epochs)
        method.info = engine.method.info = info
        if on_plan is not None:
            on_plan(plan)
        start = restore(engine, folder) if resume and folder is not None else 0
        with listening() as request:
            loop = Loop(engine, folder, listener, probe, request)
            loop.run(data, start, me, world)
        engine.parallel.finish()
        method.finished(loop.step)
        method.eval()
    return plan


def build_engine(method: Method, plan: Plan, world: int) -> Engine:
    """Method on its device, optimizer, loss scaler, and how several processes share the work."""
    device = torch.device(plan.device)
    method.to(device, DTYPES["float64"] if plan.precision == "float64" else None).train()
    for guide in method.guides.values():
        guide.to(device, DTYPES["float64"] if plan.precision == "float64" else None).eval().requires_grad_(False)
    parallel = Sharded(method, device) if world > 1 and plan.parallel == "fsdp" else Whole(method, device, world)
    optimizer = build_optimizer(parallel.method, plan.recipe, plan.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")  # type: ignore[attr-defined]
    return Engine(parallel, optimizer, scaler, plan)


@dataclasses.dataclass
class Due:
    """What is to be done after a step, the same on every process."""

    stop: int = 0
    """Number of the signal that asked for it."""
    probe: int = 0
    save: int = 0


class Loop:
    """Steps start..plan.steps with their bookkeeping: logging, verdict, checkpoints, stopping."""

    def __init__(
        self,
        engine: Engine,
        folder: RunFolder | None,
        listener: Listener,
        probe: Probe | None,
        request: StopRequest,
    ):
        main = is_main()
        self.engine, self.request, self.keeps = engine, request, folder is not None
        self.folder, self.listener, self.probe = (folder, listener, probe) if main else (None, silent, None)
        self.step = 0
        self.every = log_interval(engine.plan)
        self.verdict: dict[str, Any] | None = None
        now = time.perf_counter()
        self.window_start = self.last_save = self.last_probe = now
        self.window_wait = self.window_side = 0.0
        self.window_images = self.window_steps = 0
        self.save_cost = self.probe_cost = 0.0
        self.waiting = DataWait(list)

    def run(self, data: Any, start: int, me: int, world: int) -> None:
        plan = self.engine.plan
        assert plan.steps is not None
        self.step = start
        if start < plan.steps:
            self._probe()
        self.waiting = DataWait(lambda: remedies(data))
        feedback = getattr(data, "feedback", None)  # a replay learns the errors of its rows
        self.window_start = time.perf_counter()
        wheres = schedule_batches(self.engine.method, len(data), plan, start, plan.steps, me, world)
        for where, batch, wait in self._fetched(data, wheres, world):
            result = training_step(self.engine, batch, where)
            self.step = where.step + 1
            if feedback is not None:
                feedback(where.rows, self.engine.method.watch)
            self.window_wait += wait
            self.window_images += len(where.rows) * world
            self.window_steps += 1
            logged = self.step % self.every == 0 or self.step in (1, plan.steps)
            record = self._record(result) if logged else None
            due = self._due(logged, world)
            if due.probe:
                self.engine.parallel.gather()
                self._probe()
            if record is not None:
                self._tell(record)
            if self.step == plan.steps:
                break
            if due.save or due.stop:
                self._save()
            if due.stop:
                barrier()  # a launcher may end all processes when the first one is gone
                stop(due.stop, self.step)
        if start < plan.steps:
            self._save()

    def _fetched(self, data: Any, wheres: Iterator[Batch], world: int) -> Iterator[tuple[Batch, dict[str, Any], float]]:
        """As `fetch`; where the data breaks, what was learned so far is kept."""
        try:
            yield from fetch(data, wheres, self.engine)
        except UserError:
            if world == 1 and self.step > 0:
                self._save()
            raise

    def _due(self, logged: bool, world: int) -> Due:
        """What this process wants done now. Several agree at the logged steps, where they wait for each other anyway;
        between them the main process may still save what it holds alone."""
        now, plan = time.perf_counter(), self.engine.plan
        due = Due(stop=self.request.number)
        if self.probe is not None and logged:
            due.probe = int(side_work(now, self.last_probe, 10.0, self.probe_cost))
        if self.folder is not None:
            due.save = int(side_work(now, self.last_save, plan.checkpoint_seconds, self.save_cost))
        if world == 1:
            return due
        if logged:
            return Due(*all_max(due.stop, due.probe, due.save))
        return Due(save=due.save if not self.engine.parallel.sharded else 0)

    def _record(self, result: StepResult) -> dict[str, Any]:
        """What is logged of this step, also given to metrics.jsonl and to the probe."""
        plan = self.engine.plan
        values = {name: float(all_mean(value)) for name, value in result.terms.items()}
        seconds = self._seconds()
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / plan.steps_per_epoch, 4),
            "loss": sum(values.values()),
            "terms": values,
            "images_per_s": round(self.window_images / seconds, 1),
            "data_wait": round(self.window_wait / seconds, 4),
            "lr": result.lr,
        }
        record |= {name: float(value) for name, value in self.engine.method.watch.items() if value.numel() == 1}
        if result.grad_norm is not None:
            record["grad_norm"] = float(result.grad_norm)
        advice = self.waiting.hear(self.window_wait, seconds)
        if advice is not None:
            record["advice"] = advice
            self.listener({"kind": "note", "text": advice})
        if self.folder is not None:
            self.folder.append_metrics(record)
        if self.probe is not None:
            self.probe.record(record)
        return record

    def _seconds(self) -> float:
        """Time since the last logged step, without side work."""
        return max(1e-9, time.perf_counter() - self.window_start - self.window_side)

    def _tell(self, record: dict[str, Any]) -> None:
        """The record to the listener, and a new window."""
        plan = self.engine.plan
        assert plan.steps is not None
        left = (plan.steps - self.step) * self._seconds() / self.window_steps
        shown = {"steps": plan.steps, "epochs": plan.epochs, "seconds_left": round(left, 1), "verdict": self.verdict}
        self.listener({"kind": "step", **record, **shown})
        self.window_start, self.window_wait, self.window_side = time.perf_counter(), 0.0, 0.0
        self.window_images = self.window_steps = 0

    def _probe(self) -> None:
        if self.probe is None:
            return
        started = time.perf_counter()
        with self.engine.parallel.inspected() as method:
            self.verdict = self.probe(method, self.step, self.engine.plan.steps)
        self.last_probe = time.perf_counter()
        self.probe_cost = self.last_probe - started
        self.window_side += self.probe_cost

    def _save(self) -> None:
        """One whole checkpoint by the main process; where weights are sharded all take part."""
        engine = self.engine
        if not self.keeps or (self.folder is None and not engine.parallel.sharded):
            return
        started = time.perf_counter()
        engine.flush()
        if not engine.parallel.finite():
            return  # the next loss names what went wrong; the last good checkpoint stays
        state = {
            "step": self.step,
            "method": engine.parallel.gather().state_dict(),
            "optimizer": engine.parallel.optimizer_state(engine.optimizer),
            "scaler": engine.scaler.state_dict(),
            "steps": engine.plan.steps,
        }
        if self.folder is not None:
            save_checkpoint(self.folder / "checkpoint.pt", state)
        self.last_save = time.perf_counter()
        self.save_cost = self.last_save - started
        self.window_side += self.save_cost


def log_interval(plan: Plan) -> int:
    """Steps between two records; a short run needs a log to be judged by."""
    return min(plan.log_every, max(1, (plan.steps or 0) // 50))


def side_work(now: float, last: float, least: float, cost: float) -> bool:
    """Whether side work is due: at most every `least` seconds and at a cost of at most 2 % of the time; always for 0
    seconds."""
    return least <= 0 or now - last > max(least, 50 * cost)


def fetch(data: Any, wheres: Iterator[Batch], engine: Engine) -> Iterator[tuple[Batch, dict[str, Any], float]]:
    """(where, batch, seconds waited for the data) in order."""
    ahead: list[Batch] = []

    def requests() -> Iterator[Request]:
        for where in wheres:
            ahead.append(where)
            draws = Draws(engine.plan.seed, where.epoch, where.step, where.keys)
            yield Request(where.rows, where.keys, plans_of(engine.method, data, where.rows, draws))

    stream = iter(data.stream(requests()))
    while True:
        started = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        yield ahead.pop(0), batch, time.perf_counter() - started


def plans_of(method: Method, data: Any, rows: Any, draws: Draws) -> list[dict[str, Any] | None] | None:
    """What the method wants decoded of each of the samples `rows`, when it says so."""
    if getattr(type(getattr(method, "host", method)), "read", None) is Method.read:
        return None
    samples = enumerate(rows.tolist())
    return [method.read({"index": i, "source": data.source}, draws.rows(k, k + 1)) for k, i in samples]


def restore(engine: Engine, folder: RunFolder) -> int:
    """Load the folder's checkpoint into the engine; the step to go on with (0 when there is none)."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        if rank() == 0:
            folder.cut_metrics(0)
        return 0
    state = load_checkpoint(path, "cpu" if engine.parallel.sharded else engine.device)
    try:
        engine.parallel.load(engine.optimizer, state["method"], state["optimizer"])
        engine.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"Checkpoint '{path}' does not fit this run ({str(error).splitlines()[0][:160]}); "
            "resume with the options the run was started with."
        ) from error
    step = int(state["step"])
    if rank() == 0:
        folder.cut_metrics(step)
    return step


def measure_budget(engine: Engine, data: Any, me: int, world: int) -> Plan:
    """Fix the number of steps of a budget in minutes from a few real steps, which are then undone."""
    plan = engine.plan
    assert plan.minutes is not None
    method, optimizer = engine.method, engine.optimizer
    if hasattr(data, "fill"):
        data.fill()  # decoding a small set into memory happens once and is no measure of a step
    before = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    engine.plan = plan.with_steps(1_000_000)
    wheres = schedule_batches(method, len(data), engine.plan, 0, MEASURED, me, world)
    seconds, started = [], time.perf_counter()
    for where, batch, wait in fetch(data, wheres, engine):
        result = training_step(engine, batch, where)
        seconds.append(wait + result.compute_seconds)
        enough = len(seconds) >= 2 and time.perf_counter() - started > 0.05 * 60 * plan.minutes
        if all_max(int(enough))[0]:  # all processes stop at the same step
            break
    method.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    steady = sorted(seconds[len(seconds) // 3 :])
    each = steady[len(steady) // 2]
    spent = time.perf_counter() - started
    # 3 %: verdicts, checkpoints, the end
    steps = max(1, int((plan.minutes * 60 * 0.97 - spent) / each))
    return plan.with_steps(int(broadcast_object(steps)))


def _cuda_devices(plan: Plan) -> list[int]:
    device = torch.device(plan.device)
    return [device.index or 0] if device.type == "cuda" else []
