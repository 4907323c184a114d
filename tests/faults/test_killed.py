"""Killed at any moment, a run that is resumed ends with the same weights, to the bit."""

import io
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from arena import STEPS, at, busy, command, die, final, left, same, words

from eyespot.data import workers
from eyespot.data.folder import FileSource
from eyespot.data.loader import Data
from eyespot.evaluate import embed, features
from eyespot.nets import backbones
from eyespot.runs import RunFolder, read_metrics
from eyespot.train import checkpoint, fit, pretrain, step
from eyespot.train.probe import LiveProbe
from eyespot.train.watch import RunProbe


def half_a_checkpoint(state, stream):
    whole = io.BytesIO()
    torch.save(state, whole)
    stream.write(whole.getvalue()[: whole.tell() // 2])
    stream.flush()
    die()


def half_a_line(folder, record):
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(record)[:20])
    die()


def half_a_net(tensors, path, about):
    Path(path).write_bytes(b"\0" * 1000)
    die()


FROM_WORKERS = ("--cache", "0", "--workers", "2")
MOMENTS = {
    "a picture is looked at": at(FileSource, "shape", 3),
    "a picture is decoded": at(FileSource, "load", 5),
    "a batch is made": at(Data, "_batch", 4),
    "a batch comes from a worker": at(workers, "_unpack", 5),
    "config.json is put in its place": at(os, "replace", 1, about="/config.json"),
    "config.json gets the plan": at(os, "replace", 2, about="/config.json"),
    "the first step begins": at(fit, "training_step", 1),
    "the gradient is there": at(step, "_backward", 3, after=True),
    "the optimizer begins": at(step, "_update", 5),
    "the optimizer is done": at(step, "_update", 6, after=True),
    "a checkpoint is begun": at(checkpoint.torch, "save", 1),
    "half a checkpoint is written": at(checkpoint.torch, "save", 3, half_a_checkpoint),
    "a checkpoint is put in its place": at(os, "replace", 4, about="/checkpoint.pt"),
    "a checkpoint is in its place": at(os, "replace", 5, after=True, about="/checkpoint.pt"),
    "the last checkpoint is written": at(checkpoint.torch, "save", STEPS, half_a_checkpoint),
    "a step is logged": at(RunFolder, "append_metrics", 4),
    "half a line is logged": at(RunFolder, "append_metrics", 5, half_a_line),
    "the run is measured": at(LiveProbe, "__call__", 2),
    "a verdict is put in its place": at(os, "replace", 4, about="/verdict.json"),
    "the last verdict is made": at(RunProbe, "finish", 1),
    "half the trained net is written": at(backbones, "save_file", 1, half_a_net),
    "the trained net is described": at(os, "replace", 1, about="/backbone.json"),
    "the run has ended": at(pretrain.Training, "finish", 1, after=True),
}


def resumes(argv, out, log, whole):
    assert command([*argv, "--resume"], log, busy) == 0, log.read_text()
    assert same(final(out), whole)
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert left(out) == []
    assert json.loads((out / "verdict.json").read_text())["state"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_to_the_bit(pictures, whole, tmp_path, moment):
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out, *(FROM_WORKERS if "worker" in moment else ()))
    assert command(argv, log, busy, MOMENTS[moment]) == -signal.SIGKILL, log.read_text()
    resumes(argv, out, log, whole)


def test_killed_again_while_it_resumes(pictures, whole, tmp_path):
    """In the middle of cutting the log, and of writing the first checkpoint after it."""
    out, log = tmp_path / "run", tmp_path / "log"
    argv = words(pictures, out)
    assert command(argv, log, busy, MOMENTS["half a line is logged"]) == -signal.SIGKILL
    for strike in (
        at(os, "replace", 1, about="/metrics.jsonl"),
        at(fit, "load_checkpoint", 1),
        at(checkpoint.torch, "save", 1, half_a_checkpoint),
    ):
        assert command([*argv, "--resume"], log, busy, strike) == -signal.SIGKILL, log.read_text()
    resumes(argv, out, log, whole)


@pytest.mark.parametrize(
    "strike", [at(features, "_forward", 1), at(os, "replace", 1, about=".json")], ids=["features", "result"]
)
def test_an_evaluation_that_is_killed_leaves_the_run_as_it_was(whole_run, pictures, whole, tmp_path, strike):
    out, log = tmp_path / "run", tmp_path / "log"
    out.mkdir()
    for file in ("config.json", "backbone.json", "backbone.safetensors"):
        (out / file).write_bytes((whole_run / file).read_bytes())
    argv = ["evaluate", str(out), "--data", str(pictures), "--protocol", "knn", "--json"]
    assert command(argv, log, strike) == -signal.SIGKILL
    assert not list(out.glob("evaluations/*.json"))
    assert command(argv, log) == 0, log.read_text()
    (kept,) = out.glob("evaluations/*.json")
    result = json.loads(kept.read_text())["result"]
    assert result["n_train"] + result["n_test"] == 24
    assert (out / "backbone.safetensors").read_bytes() == whole["file"]


def test_embeddings_that_were_there_stay_when_the_next_ones_are_killed(whole_run, pictures, tmp_path):
    out, log = tmp_path / "vectors.parquet", tmp_path / "log"
    argv = ["embed", str(whole_run), "--data", str(pictures), "--out", str(out)]
    assert command(argv, log) == 0, log.read_text()
    before = out.read_bytes()
    assert command(argv, log, at(embed, "_record", 1, after=True)) == -signal.SIGKILL
    assert out.read_bytes() == before
