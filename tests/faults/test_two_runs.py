"""Two runs into one folder: the second is refused with one sentence, and a lock never outlives its run."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from arena import at, busy, command, die, final, same, words

from eyespot import cli
from eyespot.data import workers
from eyespot.errors import UserError
from eyespot.lock import hold, is_held
from eyespot.runs import LOCK, RunFolder
from eyespot.train import fit


def say(pipe):
    os.write(pipe, b".")


@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["again", "resume"])
def test_a_second_run_into_the_folder_is_refused_and_the_first_goes_on(pictures, whole, tmp_path, capsys, more):
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out)
    (heard, at_step), (waits, go_on) = os.pipe(), os.pipe()

    def pause(*_):
        say(at_step)
        os.read(waits, 1)

    status = []
    first = threading.Thread(target=lambda: status.append(command(argv, log, busy, at(fit, "training_step", 4, pause))))
    first.start()
    os.read(heard, 1)
    before = sorted(p.name for p in out.iterdir())
    try:
        assert cli.main([*argv, *more]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"eyespot: --out '{out}' is being written by another run; wait until that ends, or choose another folder.\n"
        )
        assert sorted(p.name for p in out.iterdir()) == before
    finally:
        say(go_on)
        first.join()
    assert status == [0], log.read_text()
    assert same(final(out), whole)
    for end in (heard, at_step, waits, go_on):
        os.close(end)


def test_a_lock_dies_with_its_run_though_workers_live_on(pictures, whole, tmp_path):
    """The workers of a killed run notice some seconds later; the run is resumed at once."""
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out)
    alive = tmp_path / "alive"

    def with_workers(*_):
        import multiprocessing

        alive.write_text(" ".join(str(c.pid) for c in multiprocessing.active_children()))
        die()

    strike = at(workers, "_unpack", 4, with_workers)
    assert command([*argv, "--cache", "0", "--workers", "2"], log, busy, strike) == -signal.SIGKILL
    orphans = [int(pid) for pid in alive.read_text().split()]
    for pid in orphans:
        os.kill(pid, signal.SIGSTOP)  # none of them may end before the test has looked
    try:
        assert not is_held(out / LOCK)
        assert command([*argv, "--resume"], log, busy) == 0, log.read_text()
    finally:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert same(final(out), whole)


def test_whoever_comes_second_to_a_new_folder_is_refused(tmp_path):
    """Both found it empty; the data was indexed meanwhile."""
    first, second, third = (RunFolder(tmp_path / "run") for _ in range(3))
    assert not first.start(False) and not second.start(False)
    with contextlib.ExitStack() as stack:
        first.claim(stack, False)
        first.claim(stack, False)  # once is enough
        assert not first.start(False), "it is its own"
        with pytest.raises(UserError, match="is being written by another run"):
            second.claim(stack, False)
        with pytest.raises(UserError, match="is being written by another run"):
            third.start(True)
        (tmp_path / "run" / "config.json").write_text("{}")
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="already holds a run; add --resume"):
        second.claim(stack, False)
    with contextlib.ExitStack() as stack:
        third.claim(stack, True)
    assert not is_held(tmp_path / "run" / LOCK)


def test_only_what_a_run_had_begun_is_removed(tmp_path):
    begun = [".checkpoint.pt.123.part", ".backbone.safetensors.9.part", "prepare/ae/.checkpoint.pt.123.part"]
    others = [".embeddings.parquet.123.part", ".mine.part", "checkpoint.pt", "evaluations/.a.json.1.part"]
    for name in begun + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with contextlib.ExitStack() as stack:
        RunFolder(tmp_path).claim(stack, True)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted([LOCK, *others])


HOLDER = """
import sys
from pathlib import Path
from eyespot.lock import hold
with hold(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_of_one_process(tmp_path):
    file = tmp_path / LOCK
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        assert is_held(file)
        with hold(file) as held:
            assert not held
        other.kill()
    assert not is_held(file)
    with hold(file) as held, hold(file) as again:
        assert held and not again, "nor does another thread of the same process get it"
        assert is_held(file)
    assert not is_held(file) and not is_held(tmp_path / "none")


def test_where_the_file_system_has_no_locks_runs_go_on(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with hold(tmp_path / LOCK) as held:
        assert held
