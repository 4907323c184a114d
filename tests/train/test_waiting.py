"""The advice to a run that waits for its data: told once, when it lasts, and kept in the verdict."""

import json
import sys
from pathlib import Path

import pytest

from eyespot.runs import RunFolder
from eyespot.train import fit as engine
from eyespot.train.plan import Plan
from eyespot.train.verdict import judge
from eyespot.train.waiting import DataWait
from eyespot.train.watch import RunProbe

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, ToyData


def hear(windows, helps=("more workers (--workers 8)", "tars")) -> list[str]:
    waiting = DataWait(lambda: list(helps))
    return [said for wait, seconds in windows if (said := waiting.hear(wait, seconds)) is not None]


def test_told_once_when_it_lasts():
    said = hear([(5, 5)] + [(4.3, 10)] * 20)
    assert said == ["waiting for data 43% of the time; faster with more workers (--workers 8), or tars"]


@pytest.mark.parametrize(
    "windows",
    [
        [(100, 100)],  # the first one: workers start, a small set is decoded
        [(5, 5)] + [(1.9, 10)] * 20,
        [(0, 10)] + [(9, 10)] * 2,  # not for long enough
        [(0, 10), (9, 10), (0, 10), (0, 10), (0, 10), (0, 10)],  # it passed
    ],
)
def test_not_told(windows):
    assert hear(windows) == []


def test_long_and_short_windows():
    assert len(hear([(0, 1)] + [(0.05, 0.1)] * 301)) == 1 and hear([(0, 1)] + [(0.05, 0.1)] * 290) == []
    assert len(hear([(0, 1), (50, 100)])) == 1
    assert len(hear([(0, 1)] + [(0, 100)] * 3 + [(30, 40)])) == 1  # the last half minute counts


def test_no_advice_without_a_remedy():
    assert hear([(0, 1), (50, 100)], helps=()) == []


class Probe:
    def __init__(self):
        self.records = []

    def record(self, record):
        self.records.append(record)

    def __call__(self, method, step, steps):
        return {"state": "learning", "reason": ""}


def test_a_run_tells_and_logs_it(tmp_path, monkeypatch):
    fetch = engine.fetch
    monkeypatch.setattr(engine, "fetch", lambda *given: ((where, batch, 1e3) for where, batch, _ in fetch(*given)))
    monkeypatch.setattr(engine, "remedies", lambda data: ["tars"])
    monkeypatch.setattr("eyespot.train.waiting.SECONDS", 1e-9)
    plan = Plan(Toy.recipe, 1e-2, 8, 5.0, 8, None, log_every=1, checkpoint_seconds=1e9)
    heard, folder = [], RunFolder(tmp_path)
    probe = Probe()
    engine.fit(Toy(), ToyData(), plan, folder, listener=heard.append, probe=probe)
    notes = [r["text"] for r in heard if r["kind"] == "note"]
    assert len(notes) == 1 and notes[0].startswith("waiting for data ") and notes[0].endswith("faster with tars")
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["advice"] for r in logged if "advice" in r] == notes
    assert [r.get("advice") for r in probe.records] == [r.get("advice") for r in logged]


def records(n: int, **more) -> list[dict]:
    return [{"step": 10 * k, "loss": 5.0 - k / n, "terms": {"a": 5.0 - k / n}, **more} for k in range(1, n + 1)]


def test_the_verdict_has_the_share():
    verdict = judge(records(40, data_wait=0.43), steps=400, final=True)
    assert verdict["state"] == "learning" and verdict["numbers"]["data_wait"] == 0.43
    assert "data_wait" not in judge(records(40), steps=400, final=True)["numbers"]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_verdict_keeps_the_advice(tmp_path, resumed):
    probe = RunProbe.__new__(RunProbe)
    probe.folder, probe.steps, probe.floor, probe.plateaus, probe.probes = RunFolder(tmp_path), 400, {}, {}, []
    probe.history, probe.advice = None, ""
    whole = records(40)
    whole[3]["advice"] = "waiting for data 43% of the time; faster with tars"
    if resumed:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in whole[:30]))
    for record in whole[30 if resumed else 0 :]:
        probe.record(record)
    verdict = probe._judge(final=True)
    assert verdict["state"] == "learning" and verdict["remedy"] == whole[3]["advice"]
    assert json.loads((tmp_path / "verdict.json").read_text())["remedy"] == verdict["remedy"]
