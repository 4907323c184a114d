"""A full disk: what was there stays, the run stops with one sentence, and goes on when there is room."""

import errno
import io
import json
import os
import resource

import pyarrow.parquet as pq
import pytest
import torch
from arena import STEPS, at, busy, child, command, final, left, same, words
from safetensors import SafetensorError

from eyespot import cli, runs
from eyespot.data import Data, open_source
from eyespot.errors import NotWritten, UserError
from eyespot.export.export import export
from eyespot.nets import backbones
from eyespot.nets.files import disk_errors
from eyespot.runs import read_metrics, replacing, write_json
from eyespot.train import checkpoint

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*_):
    raise FULL


def full_as_safetensors_says(*_):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_inside_torch(state, stream):
    """The stream takes no more; torch raises its own error."""

    class Stream(io.RawIOBase):
        def write(self, data):
            raise FULL

    torch.save(state, Stream())


def half_a_line():
    """The disk takes the beginning of the fifth record."""
    count = [0]

    def opened(path, mode="r", **more):
        stream = open(path, mode, **more)  # noqa: SIM115
        count[0] += mode == "a"
        if count[0] == 5 and mode == "a":
            write = stream.write

            def short(text):
                write(text[:20])
                stream.flush()
                raise FULL

            stream.write = short
        return stream

    runs.open = opened


MOMENTS = {
    "config.json": at(os, "replace", 1, full, about="/config.json"),
    "metrics.jsonl": half_a_line,
    "checkpoint.pt": at(checkpoint.torch, "save", 4, full_inside_torch),
    "checkpoint.pt, put in its place": at(os, "replace", 6, full, about="/checkpoint.pt"),
    "verdict.json": at(os, "replace", 4, full, about="/verdict.json"),
    "backbone.safetensors": at(backbones, "save_file", 1, full_as_safetensors_says),
    "bad_files.txt": at(os, "replace", 1, full, about="/bad_files.txt"),
}


def sentence(log):
    """The one line that is an error."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("eyespot:")]
    assert len(lines) == 1 and "Traceback" not in log.read_text(), log.read_text()
    return lines[0]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_stops_with_one_sentence_and_goes_on_when_there_is_room(pictures, whole, tmp_path, moment):
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out)
    assert command(argv, log, busy, MOMENTS[moment]) == 2, log.read_text()
    said = sentence(log)
    assert f"{moment.split(',')[0]}' cannot be written (No space left on device)" in said
    assert "make room" in said and "--resume" in said
    assert left(out) == []
    if (out / "checkpoint.pt").exists():
        assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] >= 2, "the last good one stays"
    assert command([*argv, "--resume"], log, busy) == 0, log.read_text()
    assert same(final(out), whole)
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))


def limited(argv, log, most):
    """The command line in a process whose files may not grow above `most` bytes."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return cli.main(argv)

    return child(work, log)


def test_a_run_under_a_real_limit(pictures, whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out)
    assert limited(argv, log, 50_000) == 2, log.read_text()
    assert "checkpoint.pt' cannot be written (File too large)" in sentence(log)
    assert left(out) == [] and not (out / "checkpoint.pt").exists()
    assert command([*argv, "--resume"], log, busy) == 0, log.read_text()
    assert same(final(out), whole)


@pytest.mark.parametrize(("format", "ending"), [("torchvision", ".safetensors"), ("torchscript", ".pt")])
def test_an_export_under_a_real_limit(tmp_path, format, ending):
    out, log = tmp_path / f"net{ending}", tmp_path / "log"
    out.write_bytes(b"an earlier export")
    net = backbones.backbone("resnet18", image_size=32)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(UserError, match=r"--out '.*' cannot be written \(File too large\); make room"):
            export(net, format=format, out=out)

    assert child(work, log) == 0, log.read_text()
    assert out.read_bytes() == b"an earlier export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", out.name]


def test_workers_without_shared_memory_send_their_batches_through_the_pipe(pictures, tmp_path):
    """Their shared files may not grow to the size of a batch."""
    log = tmp_path / "log"

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        stream = Data(open_source(pictures), cache_bytes=0, workers=2).stream([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
        return [batch["image"].shape[0] for batch in stream] != [3, 3, 3]

    assert child(work, log) == 0, log.read_text()


def test_embeddings_under_a_real_limit(whole_run, pictures, tmp_path):
    out, log = tmp_path / "vectors.parquet", tmp_path / "log"
    argv = ["embed", str(whole_run), "--data", str(pictures), "--out", str(out), "--workers", "0"]
    assert command(argv, log) == 0, log.read_text()
    before = out.read_bytes()
    assert limited(argv, log, 5_000) == 2, log.read_text()
    said = sentence(log)
    assert f"--out '{out}' cannot be written" in said and "too large" in said
    assert out.read_bytes() == before and left(tmp_path) == []
    assert pq.read_table(out).num_rows == 24


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(whole_run, pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    out.mkdir()
    for file in ("config.json", "backbone.json", "backbone.safetensors"):
        (out / file).write_bytes((whole_run / file).read_bytes())
    argv = ["evaluate", str(out), "--data", str(pictures), "--protocol", "knn", "--json"]
    assert command(argv, log, at(os, "replace", 1, full, about=".json")) == 0, log.read_text()
    result = json.loads(log.read_text().splitlines()[-1])
    assert result["top1"] >= 0
    assert result["config"]["not_kept"] == f"'{out}' cannot be written (No space left on device)"


# --- the parts ---------------------------------------------------------------------------------------------------
def test_an_old_file_stays_when_a_new_one_has_no_room(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(NotWritten, match=r"a\.json' cannot be written \(No space left on device\)"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1} and left(tmp_path) == []


def test_a_file_inside_a_file_is_told_once(tmp_path):
    with pytest.raises(NotWritten) as told, replacing(tmp_path / "outer"), replacing(tmp_path / "inner"):
        full()
    assert "inner" in str(told.value) and "outer" not in str(told.value)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SafetensorError("not a dtype")])
def test_other_errors_of_the_libraries_are_not_about_the_disk(tmp_path, error):
    with pytest.raises(type(error), match=str(error)), disk_errors(tmp_path):
        raise error
