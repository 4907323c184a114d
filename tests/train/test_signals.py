"""A signal lets the step end, writes the checkpoint and stops; everything is put back afterwards."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from eyespot.errors import Stopped
from eyespot.runs import RunFolder, read_metrics
from eyespot.train.checkpoint import load_checkpoint
from eyespot.train.fit import fit
from eyespot.train.signals import listening

sys.path.insert(0, str(Path(__file__).parent))
from test_fit import Toy, ToyData, equal, plan_of, state

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def put_back():
    """No test may leave a handler behind."""
    before = [signal.getsignal(n) for n in NUMBERS]
    yield
    assert [signal.getsignal(n) for n in NUMBERS] == before


def at(step, *numbers):
    """A listener that sends this process signals when it hears of a step."""

    def listener(record):
        if record["step"] == step:
            for number in numbers:
                signal.raise_signal(number)

    return listener


@pytest.mark.parametrize(
    ("number", "kind", "status"), [("SIGTERM", Stopped, 75), ("SIGUSR1", Stopped, 75), ("SIGINT", KeyboardInterrupt, 0)]
)
def test_the_step_ends_the_checkpoint_is_written_and_the_run_goes_on_to_the_same_bits(tmp_path, number, kind, status):
    folder = RunFolder(tmp_path)
    with pytest.raises(kind, match=f"{number} after step 6") as stop:
        fit(Toy(dropout=0.5), ToyData(), plan_of(), folder, listener=at(5, getattr(signal, number)))
    assert getattr(stop.value, "code", 0) == status
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 6
    resumed, whole = Toy(dropout=0.5), Toy(dropout=0.5)
    fit(resumed, ToyData(), plan_of(), folder, resume=True)
    fit(whole, ToyData(), plan_of())
    assert equal(state(whole), state(resumed))
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 13))


def test_a_second_interrupt_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(Toy(), ToyData(), plan_of(), RunFolder(tmp_path), listener=at(5, signal.SIGINT, signal.SIGINT))
    assert str(stop.value) == ""
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_signal_in_the_last_step_ends_the_run_as_always(tmp_path):
    fit(Toy(), ToyData(), plan_of(), RunFolder(tmp_path), listener=at(12, signal.SIGTERM))
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 12


def test_only_defaults_are_replaced_and_only_in_the_main_thread():
    def own(number, frame):
        """A handler of the program's own."""

    kept = [signal.signal(signal.SIGTERM, own), signal.signal(signal.SIGUSR1, signal.SIG_IGN)]
    try:
        with listening() as request:
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) == request.note
    finally:
        signal.signal(signal.SIGTERM, kept[0])
        signal.signal(signal.SIGUSR1, kept[1])
    done = []
    thread = threading.Thread(target=lambda: done.append(fit(Toy(), ToyData(), plan_of(2))))
    thread.start()
    thread.join()
    assert done, "a run outside the main thread goes on without handlers"


# --- the command line, through a real signal to the whole group ------------------------------------------------------
COMMAND = """
import sys
from eyespot import cli
from eyespot.terminal.progress import Progress
show = Progress.__call__
def heard(self, record):
    show(self, record)
    if record.get("step") == 3:
        print("step 3", flush=True)
        sys.stdin.readline()  # the signal is there before the line is
Progress.__call__ = heard
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    g = torch.Generator().manual_seed(0)
    for i in range(40):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{i:02d}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [("SIGUSR1", 75), ("SIGINT", 130)])
def test_the_command_line_names_the_command_that_goes_on(pictures, tmp_path, number, status):
    words = ["pretrain", "simclr", "--data", str(pictures), "--backbone", "resnet8", "--image-size", "16"]
    words += ["--epochs", "3", "--batch-size", "8", "--log-every", "1", "--device", "cpu"]
    part = [*words, "--out", str(tmp_path / "part")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", COMMAND, *part], text=True, start_new_session=True, **pipes) as run:
        deadline = threading.Timer(120, run.kill)
        deadline.start()
        assert run.stdout is not None and run.stdout.readline() == "step 3\n"
        os.killpg(run.pid, getattr(signal, number))
        _, said = run.communicate("go on\n")
        deadline.cancel()
    assert run.returncode == status, said
    sentence = said.splitlines()[-1]
    again = [*part, "--resume"]
    assert sentence == f"eyespot: Stopped by {number} after step 4; go on with: eyespot {' '.join(again)}"
    assert load_checkpoint(tmp_path / "part" / "checkpoint.pt")["step"] == 4
    from eyespot import cli

    assert cli.main(again) == 0
    assert cli.main([*words, "--out", str(tmp_path / "whole")]) == 0
    ended, whole = (load_checkpoint(tmp_path / k / "checkpoint.pt")["method"] for k in ("part", "whole"))
    assert equal(ended, whole)
