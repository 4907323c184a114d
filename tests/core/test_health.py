"""`eyespot doctor`: what it finds and what it advises."""

import json

import pytest

from eyespot import health
from eyespot.cli import main


@pytest.fixture
def healthy():
    return {
        "versions": {"torch": "1"},
        "devices": ["cuda:0 card", "cpu"],
        "threads": {"torch": 8, "usable_cores": 8},
        "disk_free_mb": 100_000,
        "memory_free_mb": 100_000,
        "shared_memory_free_mb": None,
    }


def test_it_tells_what_is_there(tmp_path):
    found = health.doctor(tmp_path / "not" / "yet")
    assert found["versions"]["torch"] and found["versions"]["eyespot"]
    assert found["devices"][-1] == "cpu" and found["threads"]["torch"] >= 1
    assert found["disk_free_mb"] > 0 and found["memory_free_mb"] > 0
    json.dumps(found)


def test_nothing_to_advise_on_a_healthy_machine(healthy):
    assert health.advice(healthy) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"versions": {"torch": None}}, "torch is not installed"),
        ({"devices": ["cpu"]}, "no GPU"),
        ({"threads": {"torch": 1, "usable_cores": 8}}, "1 of 8 cores"),
        ({"disk_free_mb": 500}, "disk free is 500 MB: free some"),
        ({"memory_free_mb": 500}, "smaller --batch-size"),
        ({"shared_memory_free_mb": 64}, "/dev/shm"),
    ],
)
def test_what_is_wrong_gets_a_remedy(healthy, change, sentence):
    (said,) = health.advice(healthy | change)
    assert sentence in said


def test_extras_name_what_is_missing(monkeypatch):
    wanted = ["torch>=2", "not-there>=1; extra == 'video'", 'numpy; extra == "video"', "ruff; extra == 'dev'"]
    wanted += ["numpy; extra == 'complete'", "eyespot[video]; extra == 'all'"]
    monkeypatch.setattr(health, "requires", lambda name: wanted)
    assert health.extras() == {"complete": [], "video": ["not-there"]}


def test_on_the_command_line(capsys):
    assert main(["doctor"]) == 0
    assert "devices" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"versions", "devices", "threads", "extras", "advice"}
