"""The loop: resume to the bit, accumulation, budgets, orders, and what happens when a loss breaks."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eyespot.errors import NonFiniteLoss, UserError
from eyespot.methods.method import Recipe
from eyespot.runs import RunFolder
from eyespot.train.checkpoint import load_checkpoint
from eyespot.train.fit import build_engine, fetch, fit
from eyespot.train.optimizers import parameter_groups
from eyespot.train.plan import Order, Plan, schedule_batches
from eyespot.train.schedules import lr_factor, peak_lr, weight_decay_at
from eyespot.train.step import training_step

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, ToyData


def plan_of(steps=12, **changes):
    base = Plan(Toy.recipe, 1e-2, batch_size=8, steps_per_epoch=5, steps=steps, epochs=None, log_every=1)
    return replace(base, **changes)


def state(method):
    return {k: v.clone() for k, v in method.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lars"])
def test_resume_after_any_step_gives_the_same_bits(tmp_path, optimizer):
    recipe = replace(Toy.recipe, optimizer=optimizer, clip=1.0, weight_decay=1e-2, weight_decay_end=1e-3)
    whole = Toy(dropout=0.5)
    fit(whole, ToyData(), plan_of(recipe=recipe))
    for stop in (1, 5, 7):
        folder = RunFolder(tmp_path / str(stop))
        folder.make()
        # stopped: the schedule is that of the whole run, only the data ends early
        first = Toy(dropout=0.5)
        with pytest.raises(KeyboardInterrupt):
            fit(first, _Interrupted(stop), plan_of(recipe=recipe, checkpoint_seconds=0.0), folder)
        second = Toy(dropout=0.5)
        fit(second, ToyData(), plan_of(recipe=recipe), folder, resume=True)
        assert equal(state(whole), state(second))


class _Interrupted(ToyData):
    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def stream(self, batches):
        for step, batch in enumerate(super().stream(batches)):
            if step == self.stop:
                raise KeyboardInterrupt
            yield batch


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_fit import Toy, ToyData, plan_of, fit, RunFolder
folder = RunFolder(sys.argv[2])
folder.make()
heard = lambda record: print(record["step"], flush=True)
fit(Toy(dropout=0.3), ToyData(), plan_of(300, checkpoint_seconds=0.0), folder, listener=heard)
"""


@pytest.mark.parametrize("lines", [1, 17])
def test_kill_9_and_resume(tmp_path, lines):
    """A process killed in the middle of training goes on to the same weights to the bit."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    folder = RunFolder(tmp_path / "run")
    checkpoint = folder / "checkpoint.pt"
    assert not checkpoint.exists() or load_checkpoint(checkpoint)["step"] < 300
    resumed, whole = Toy(dropout=0.3), Toy(dropout=0.3)
    fit(resumed, ToyData(), plan_of(300), folder, resume=True)
    fit(whole, ToyData(), plan_of(300))
    assert equal(state(whole), state(resumed))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301)), "every step is logged once"


def test_accumulation_of_a_mean_equals_the_whole_batch():
    """For a loss that is a mean over samples, two halves give the gradient of the whole."""

    class Mean(Toy):
        def forward(self, views, draws=None):
            out = self.backbone[5](self.backbone[0](views["clean"]).flatten(1))
            self.pending = self.centre
            return {"mean": out.square().mean()}

    results = []
    for accumulate in (1, 2, 4):
        method = Mean()
        fit(method, ToyData(), plan_of(6, accumulate=accumulate, precision="float64"))
        results.append(state(method))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.allclose(value, other[name], rtol=1e-9, atol=1e-12), name


def test_non_finite_loss_names_term_step_samples_and_keeps_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"'agree' is not finite at step 7 \(samples \d+.*--clip"):
        fit(Toy(poison_step=7), ToyData(), plan_of(12, checkpoint_seconds=0.0), folder)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["step"] == 7
    assert all(bool(v.isfinite().all()) for v in saved["method"].values())


def test_minutes_fix_the_number_of_steps_and_leave_no_trace():
    heard = []
    timed = Toy()
    plan = fit(timed, ToyData(), plan_of(steps=None, minutes=0.005), on_plan=heard.append)
    assert plan.steps is not None and plan.steps >= 1 and heard == [plan]
    known = Toy()
    fit(known, ToyData(), plan_of(plan.steps))
    assert equal(state(timed), state(known))


def test_the_callers_generator_is_not_disturbed():
    torch.manual_seed(3)
    expected = torch.rand(4)
    method = Toy(dropout=0.5)
    torch.manual_seed(3)
    fit(method, ToyData(), plan_of(2))
    assert torch.equal(torch.rand(4), expected)


def test_damaged_checkpoint_is_one_sentence(tmp_path):
    folder = RunFolder(tmp_path)
    fit(Toy(), ToyData(), plan_of(2), folder)
    raw = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        fit(Toy(), ToyData(), plan_of(2), folder, resume=True)


def test_checkpoint_of_another_method_is_one_sentence(tmp_path):
    folder = RunFolder(tmp_path)
    fit(Toy(), ToyData(), plan_of(2), folder)

    class Other(Toy):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match="does not fit this run"):
        fit(Other(), ToyData(), plan_of(2), folder, resume=True)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_process_gets_its_part_of_the_same_global_batch(world, accumulate):
    plan = plan_of(11, accumulate=accumulate)
    parts = [list(schedule_batches(Toy(), 43, plan, 0, 11, r, world)) for r in range(world)]
    for step in range(11):
        whole = Order(Toy(), 43, plan).step(step)[1]
        m = 8 // (world * accumulate)
        seen = [parts[r][step].rows.reshape(accumulate, m) for r in range(world)]
        assert np.array_equal(np.stack(seen, 1).reshape(-1), whole)
    tail = list(schedule_batches(Toy(), 43, plan, 4, 11, 0, world))
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(tail, parts[0][4:], strict=True))


def test_a_wrong_own_order_is_refused():
    class Wrong(Toy):
        def batches(self, n, epoch, draws):
            return np.zeros((3, 5), np.int64)

    with pytest.raises(UserError, match="must be"):
        fit(Wrong(), ToyData(), plan_of(2))


def test_schedules():
    recipe = Recipe(lr=0.5, lr_rule="linear", lr_batch=256, min_lr=0.1, weight_decay=0.04, weight_decay_end=0.4)
    assert peak_lr(recipe, 512) == 1.0
    assert peak_lr(replace(recipe, lr_rule="sqrt"), 1024) == 1.0
    assert peak_lr(replace(recipe, lr_rule="none"), 1024) == 0.5
    factors = [lr_factor(recipe, s, 100, 10, 10) for s in range(100)]
    assert factors[:10] == sorted(factors[:10]) and factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and abs(factors[-1] - 0.1) < 1e-3
    assert lr_factor(replace(recipe, schedule="step"), 90, 100, 0, 10) == 0.01
    restarts = replace(recipe, schedule="restarts")
    assert lr_factor(restarts, 1000, 5000, 0, 10) == lr_factor(restarts, 3000, 5000, 0, 10) == 1.0
    assert abs(weight_decay_at(recipe, 0.0) - 0.04) < 1e-12 and abs(weight_decay_at(recipe, 1.0) - 0.4) < 1e-12
    with pytest.raises(UserError, match="cosine"):
        lr_factor(replace(recipe, schedule="cosin"), 1, 10, 0, 10)


def test_norms_and_biases_are_not_decayed():
    groups = parameter_groups(Toy(), Recipe(weight_decay=0.1))
    assert sum(len(g["params"]) for g in groups) == 6
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.0) == (parameter.dim() <= 1)


def test_a_group_may_keep_the_peak_rate():
    class Two(Toy):
        def param_groups(self):
            named = list(self.named_parameters())
            return [{"params": named[:2], "lr_scale": 0.5}, {"params": named[2:], "lr_scale": 2.0, "scheduled": False}]

    recipe, seen = Recipe(optimizer="sgd", warmup_epochs=1), []
    method = Two()
    engine = build_engine(method, plan_of(10, recipe=recipe, lr=0.1), 1)
    for where, batch, _ in fetch(ToyData(), schedule_batches(method, len(ToyData()), engine.plan, 0, 10, 0, 1), engine):
        lr = training_step(engine, batch, where).lr
        rates = {group["lr_scale"]: group["lr"] for group in engine.optimizer.param_groups}
        assert rates == {0.5: 0.5 * lr, 2.0: pytest.approx(0.2)}
        seen.append(lr)
    assert min(seen) < 0.01 < 0.05 < max(seen)


def test_a_replay_hears_the_errors_of_its_rows():
    class Replay(ToyData):
        def __init__(self):
            super().__init__()
            self.heard = []

        def feedback(self, rows, watch):
            self.heard.append((rows.tolist(), watch["row_error"].shape))

    class Errors(Toy):
        def forward(self, views, draws=None):
            terms = super().forward(views, draws)
            self.watch = {"row_error": views["clean"].flatten(1).mean(1)}
            return terms

    data = Replay()
    fit(Errors(), data, plan_of(3))
    assert [shape for _, shape in data.heard] == [(8,)] * 3
    assert data.heard[0][0] == Order(Toy(), 40, plan_of(3)).step(0)[1].tolist()


def test_dropout_differs_from_step_to_step_and_comes_back_with_the_step():
    class Drops(Toy):
        def __init__(self):
            super().__init__(dropout=0.5)
            self.masks = []

        def forward(self, views, draws=None):
            self.masks.append(self.backbone[4](torch.ones(8, 16)))
            return super().forward(views, draws)

    first, again = Drops(), Drops()
    fit(first, ToyData(), plan_of(3))
    fit(again, ToyData(), plan_of(3))
    assert not torch.equal(first.masks[0], first.masks[1]) and not torch.equal(first.masks[1], first.masks[2])
    assert all(torch.equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))
