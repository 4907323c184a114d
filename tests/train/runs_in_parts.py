"""Runs that are stopped by a signal and go on, on one process and on two: what test_parallel.py and its job share.

python runs_in_parts.py FOLDER      (the job, on two gloo processes; ends by the signal it is sent)
"""

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))
from bench import make, plan_of, stripes

from eyespot.errors import Stopped, UserError
from eyespot.nets.backbones import Backbone, evaluating
from eyespot.process import all_max, is_main, rank, synchronise_batch_norm, world_size
from eyespot.runs import RunFolder
from eyespot.train import fit as loop
from eyespot.train.launch import processes

STEPS, STOP = 12, 6
CASES = {
    # a teacher, batch norm, two parts a step, and norms over whole parameters and over all of them
    "byol": {"accumulate": 2, "optimizer": "lars", "clip": 1.0, "weight_decay": 1e-2},
    "mae": {"accumulate": 1, "optimizer": "adamw", "clip": None, "weight_decay": 1e-2},
}
OTHER = {"ddp": "fsdp", "fsdp": "ddp"}


class Signalled:
    """The data; with the batch of one step a signal comes to one process."""

    def __init__(self, data, step, number=signal.SIGUSR1, process=0):
        self.data, self.step, self.number, self.process = data, step, number, process

    def __len__(self):
        return len(self.data)

    def stream(self, requests):
        for step, batch in enumerate(self.data.stream(requests), 1):
            if step == self.step and rank() == self.process:
                signal.raise_signal(self.number)
            yield batch


class Watcher:
    """A probe that measures as the real one does: on the main process, by parts of the method."""

    def __init__(self):
        self.seen = []

    def record(self, record):
        pass

    def __call__(self, method, step, steps):
        assert type(method.backbone).__mro__[1] in (Backbone, torch.nn.Module)
        with torch.no_grad(), evaluating(method):
            out = method.embed(torch.full((2, 3, 16, 16), 0.3, dtype=torch.float64))
        self.seen.append((step, float(out.norm())))
        return {"state": "learning", "reason": "", "remedy": "", "numbers": {}}


def run(name, folder=None, data=None, parallel="ddp", resume=False, probe=None, **changes):
    """A run of one case; the method that it trained."""
    case = dict(CASES[name])
    pictures = stripes()
    method = make(name, pictures)
    if world_size() > 1:
        synchronise_batch_norm(method)
    accumulate = case.pop("accumulate")
    plan = plan_of(method, pictures, precision="float64", steps=STEPS, accumulate=accumulate, parallel=parallel)
    plan = replace(plan, recipe=replace(plan.recipe, **case), **changes)
    if folder is not None:
        folder = RunFolder(folder)
        if is_main():
            folder.make()
    loop.fit(method, data or pictures, plan, folder, resume=resume, probe=probe)
    return method


def stopped(name, folder, data, **options):
    """A run that is stopped; steps done."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        run(name, folder, data, **options)
    except Stopped as stop:
        assert before == {n: signal.getsignal(n) for n in before}, "handlers are put back"
        return stop.step
    raise AssertionError("the run was not stopped")


def copied(folder, name):
    """The folder once more: each run that goes on needs its own."""
    target = folder.with_name(name)
    if is_main():
        shutil.copytree(folder, target)
    all_max(0)
    return target


def keep(method, path):
    assert not any(type(p) is not torch.nn.Parameter for p in method.parameters()), "the method is whole afterwards"
    if is_main():
        torch.save(method.state_dict(), path)


def refused(data):
    """A method that looks at the weights of a block on its own: the sentence."""
    method = make("simclr", data)

    class Looks(type(method)):
        def loss(self, encoded, draws=None):
            weight = self.backbone.net.blocks[0].conv1.weight
            return {name: term + weight.square().mean() for name, term in super().loss(encoded, draws).items()}

    method.__class__ = Looks
    try:
        loop.fit(method, data, plan_of(method, data, parallel="fsdp", steps=2))
    except UserError as error:
        return str(error)
    raise AssertionError("the method was not refused")


def job(root):
    data = stripes()
    assert "Looks uses weights of a block outside" in refused(data)
    for name in CASES:
        measured = []
        for how in OTHER:
            # from one process to two
            folder = copied(root / f"{name}-one", f"{name}-one-{how}")
            keep(run(name, folder, parallel=how, resume=True), root / f"{name}-from-one-{how}.pt")
            # the signal comes to one process only, a step before the next logged one
            folder, probe = root / f"{name}-two-{how}", Watcher()
            late = Signalled(data, STOP - 1, process=1)
            assert stopped(name, folder, late, parallel=how, probe=probe) == STOP
            assert [step for step, _ in probe.seen] == ([0, 1, 3, 6] if is_main() else [])
            measured.append(probe.seen)
            # and on, the other way
            folder = copied(folder, f"{name}-two-{how}-{OTHER[how]}")
            keep(run(name, folder, parallel=OTHER[how], resume=True), root / f"{name}-from-{how}-{OTHER[how]}.pt")
        assert all(abs(a - b) < 1e-10 for (_, a), (_, b) in zip(*measured, strict=True)), measured
    # a budget in time is measured and leaves no trace
    timed = run("mae", parallel="fsdp", steps=None, epochs=None, minutes=0.001)
    assert int(timed.info.epochs * 8) == all_max(int(timed.info.epochs * 8))[0]
    run("mae", root / "last", Signalled(data, 2, process=1), parallel="fsdp")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes(torch.device("cpu")):
        # short runs log every step; here processes agree at every third one
        loop.log_interval = lambda plan: 3
        loop.side_work = lambda *a: True  # every probe and checkpoint that could be due
        job(Path(sys.argv[1]))
