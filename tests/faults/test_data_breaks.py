"""Data that breaks while a run uses it: a worker that is killed, files that vanish or change."""

import io
import multiprocessing
import os
import pickle
import shutil
import signal
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from arena import at, busy, command, draw, final, same, words

from eyespot.data import Data, open_source, workers
from eyespot.data.webdataset import TarSource
from eyespot.errors import UserError
from eyespot.runs import RunFolder
from eyespot.train import fit


def kill_a_worker(*_):
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def sentence(log):
    """The last line, which is the only error."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("eyespot:")]
    assert len(lines) == 1 and "Traceback" not in log.read_text(), log.read_text()
    return lines[0]


def test_a_worker_that_is_killed_loses_no_step(pictures, whole, tmp_path):
    """The run ends in the loader, between two steps, and what it has learned is in the checkpoint, though none was
    due yet."""
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out, "--cache", "0", "--workers", "2")
    assert command(argv, log, at(workers, "_unpack", 3, kill_a_worker)) == 2, log.read_text()
    said = sentence(log)
    assert "was killed" in said and "--workers 0" in said and "--resume" in said
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] >= 3
    assert command([*argv, "--resume", "--workers", "0"], log, busy) == 0, log.read_text()
    assert same(final(out), whole)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no such signal on this system")
def test_a_dead_worker_raises_nowhere_else_and_handlers_are_as_before(pictures):
    before = signal.getsignal(signal.SIGCHLD)
    stream = Data(open_source(pictures), cache_bytes=0, workers=2).stream([[k, k + 1] for k in range(22)])
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before
    kill_a_worker()
    with pytest.raises(UserError, match="was killed"):
        list(stream)
    assert signal.getsignal(signal.SIGCHLD) == before


class Loader:
    """Stands for torch's."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *args, **more):
        return self

    def __iter__(self):
        raise self.error
        yield


DEATHS = [
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
    ConnectionResetError(104, "Connection reset by peer"),
    FileNotFoundError(2, "No such file or directory"),
    EOFError(),
]
OTHERS = [kind(f"Caught {kind.__name__} in DataLoader worker process 0.") for kind in (RuntimeError, FileNotFoundError)]


@pytest.mark.parametrize("error", DEATHS + OTHERS, ids=str)
def test_a_death_is_told_from_other_errors(monkeypatch, error):
    """Also where the connection breaks before torch has seen that the worker is gone."""
    monkeypatch.setattr(workers, "DataLoader", Loader(error))
    with pytest.raises(type(error) if error in OTHERS else UserError) as told:
        list(workers.decode_ahead(lambda request: {}, {}, iter([]), 2))
    assert (told.value is error) == (error in OTHERS)


@pytest.fixture
def own(tmp_path):
    """Pictures that may be spoiled, and a place for what is said."""
    return draw(tmp_path / "pictures", 40), tmp_path / "run", tmp_path / "log"


UNCACHED = ("--cache", "0")


def test_one_picture_that_vanishes_is_left_out_and_listed(own):
    folder, out, log = own
    gone = folder / "even" / "06.png"
    strike = at(RunFolder, "append_metrics", 1, lambda *_: gone.unlink())
    assert command(words(folder, out, *UNCACHED), log, strike) == 0, log.read_text()
    assert (out / "bad_files.txt").read_text() == f"{gone}\tno such file or directory\n"
    assert "skipped  1 unreadable file" in log.read_text()


def test_pictures_that_become_others_are_taken_as_they_are(own):
    """Of another size and form; the run goes on."""
    folder, out, log = own
    other = draw(folder.parent / "other", 1) / "even" / "00.png"

    def change(*_):
        from PIL import Image

        Image.open(other).resize((33, 21)).save(folder / "odd" / "05.png")
        (folder / "odd" / "07.png").write_bytes(other.read_bytes()[:100])

    strike = at(RunFolder, "append_metrics", 1, change)
    assert command(words(folder, out, *UNCACHED), log, strike) == 0, log.read_text()
    assert [line.split("\t")[0] for line in (out / "bad_files.txt").read_text().splitlines()] == [
        str(folder / "odd" / "07.png")
    ]


def test_a_folder_that_vanishes_ends_the_run_with_its_checkpoint(own):
    folder, out, log = own
    kept = folder.parent / "kept"
    strike = at(RunFolder, "append_metrics", 4, lambda *_: os.rename(folder / "odd", kept))
    argv = words(folder, out, *UNCACHED)
    assert command(argv, log, strike) == 2, log.read_text()
    assert "cannot be read, more than the 5% that are allowed" in sentence(log)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    os.rename(kept, folder / "odd")
    assert command([*argv, "--resume"], log) == 0, log.read_text()


def tar_of(folder, path, n=40):
    with tarfile.open(path, "w") as tar:
        for picture in sorted(folder.rglob("*.png"))[:n]:
            tar.add(picture, picture.name)
    return path


def test_a_tar_that_is_replaced_by_a_shorter_one_ends_the_run(own):
    folder, out, log = own
    tar, shorter = tar_of(folder, folder.parent / "a.tar"), tar_of(folder, folder.parent / "b.tmp", 10)
    forget = at(RunFolder, "append_metrics", 4, lambda *_: (os.replace(shorter, tar), forgotten()))
    argv = words(tar, out, *UNCACHED)
    assert command(argv, log, forget) == 2, log.read_text()
    assert "its tar has changed since the run began" in sentence(log)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    assert command([*argv, "--resume"], log) == 2, log.read_text()
    assert "has 10 pictures now but had 40 when the run was started" in sentence(log)


def forgotten():
    """As if so many other tars had been read since that this one is opened again."""
    real = TarSource.raw

    def raw(self, i):
        self._reader.cache_clear()
        return real(self, i)

    TarSource.raw = raw


def test_a_tar_that_is_cut_off_in_its_place_is_told(own):
    folder, _, _ = own
    tar = tar_of(folder, folder.parent / "a.tar")
    data = Data(open_source(tar), cache_bytes=0, workers=0)
    assert len(data.batch([0])["index"]) == 1
    os.truncate(tar, tar.stat().st_size // 3)
    with pytest.raises(UserError, match="since the run began"):
        data.batch(range(40))


def parquet_of(folder, path, n=40):
    rows = [{"bytes": p.read_bytes(), "path": p.name} for p in sorted(folder.rglob("*.png"))[:n]]
    pq.write_table(pa.table({"image": rows, "label": list(range(n))}), path)
    return path


def test_a_parquet_file_that_is_replaced_after_it_was_read_changes_nothing(own):
    folder, out, log = own
    file, shorter = parquet_of(folder, folder.parent / "a.parquet"), parquet_of(folder, folder.parent / "b", 10)
    strike = at(fit, "training_step", 3, lambda *_: os.replace(shorter, file))
    assert command(words(file, out, *UNCACHED), log, strike) == 0, log.read_text()
    assert (out / "bad_files.txt").read_text() == ""


@pytest.mark.parametrize("memory", [None, 0], ids=["read", "mapped"])
@pytest.mark.parametrize("how", ["shorter", "other", "gone"])
def test_a_parquet_file_that_changes_before_it_is_read_is_told(own, monkeypatch, how, memory):
    folder, _, _ = own
    monkeypatch.setenv("EYESPOT_CACHE", str(folder.parent / "cache"))
    file = parquet_of(folder, folder.parent / "a.parquet")
    source = open_source(file)
    source.memory = source.memory if memory is None else memory
    if how == "gone":
        file.unlink()
    else:
        shutil.rmtree(folder / "even")
        parquet_of(folder, file, 10 if how == "shorter" else 20)
    with pytest.raises(UserError, match=r"a\.parquet has changed since it was opened; start again"):
        Data(source)


def test_a_process_that_opens_the_parquet_file_anew_sees_the_change_too(own):
    folder, _, _ = own
    file = parquet_of(folder, folder.parent / "a.parquet")
    data = Data(open_source(file), cache_bytes=0)
    sent = pickle.load(io.BytesIO(pickle.dumps(data)))  # as to a worker that is not forked
    assert Path(file).is_file() and len(sent.batch([39])["index"]) == 1
    sent = pickle.load(io.BytesIO(pickle.dumps(data)))
    parquet_of(folder, file, 10)
    with pytest.raises(UserError, match="has changed since it was opened"):
        sent.batch([39])
