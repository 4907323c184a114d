"""A clock that is set back again and again: no crash, no negative time."""

import json
import math
import time

import pytest
from arena import busy, child, final, same, words

from eyespot import cli
from eyespot.evaluate import records
from eyespot.runs import read_metrics


def set_back():
    """Every look at the time of day is an hour before the last one, and every look at the clock of the progress line a
    second. `perf_counter`, which measures everything else, cannot be set."""
    real = {name: getattr(time, name) for name in ("time", "monotonic")}
    looks = dict.fromkeys(real, 0)

    def clock(name, step):
        def now():
            looks[name] += 1
            return real[name]() - step * looks[name]

        return now

    for name, step in (("time", 3600), ("monotonic", 1)):
        setattr(time, name, clock(name, step))


def numbers(value):
    """Every number in a nested value with the keys above it."""
    if isinstance(value, dict):
        return [(f"{k}.{name}", n) for k, v in value.items() for name, n in numbers(v)]
    if isinstance(value, list):
        return [pair for v in value for pair in numbers(v)]
    return [("", value)] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clock")
    log = folder / "log"

    def work():
        busy()
        set_back()
        status = cli.main(words(pictures, folder / "run"))
        return status or cli.main(["evaluate", str(folder / "run"), "--data", str(pictures), "--json"])

    assert child(work, log) == 0, log.read_text()
    return folder


def test_the_weights_are_the_same(run, whole):
    assert same(final(run / "run"), whole)


def test_no_time_is_negative(run):
    for record in read_metrics(run / "run" / "metrics.jsonl"):
        assert 0 <= record["data_wait"] <= 1, record
        assert record["images_per_s"] > 0 and math.isfinite(record["images_per_s"]), record
    log = (run / "log").read_text().splitlines()
    shown = [word for line in log if line.endswith("tell") for word in line.split() if word[0] == "-"]
    assert any(" left" in line for line in log) and shown == []
    (result,) = (json.loads(line) for line in log if line.startswith("{"))
    assert result["seconds"] >= 0
    assert all(n >= 0 for name, n in numbers(result) if "seconds" in name)


def test_what_was_measured_is_dated_and_read(run):
    (record,) = records.read(run / "run")
    assert record.result["protocol"] == "knn"
