"""`eyespot.estimate`: what a run will take, and nothing left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eyespot
from eyespot.cli import main
from eyespot.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


OPTIONS = {"backbone": "resnet8", "image_size": 16, "batch_size": 8}


def test_steps_and_time_are_those_of_the_run(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in tmp_path.rglob("*"))
    found = eyespot.estimate("simclr", data=pictures, epochs=3, **OPTIONS)
    assert sorted(p for p in tmp_path.rglob("*")) == before, "nothing is left"
    assert found["steps"] == 15 and found["epochs"] == 3 and found["batch_size"] == 8
    assert found["minutes"] == pytest.approx(15 * found["seconds_per_step"] / 60, abs=0.06)
    assert found["images_per_s"] == pytest.approx(8 / found["seconds_per_step"], rel=0.05)
    run = eyespot.pretrain("simclr", data=pictures, epochs=3, out=tmp_path / "run", **OPTIONS)
    assert run.metrics[-1]["step"] == 15
    files = sum(p.stat().st_size for p in run.path.glob("checkpoint.pt"))
    assert found["disk_mb"] >= files / 2**20
    trained = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    assert found["parameters"] == trained


def test_minutes_give_steps(pictures):
    found = eyespot.estimate("simclr", data=pictures, minutes=2, **OPTIONS)
    assert found["steps"] == pytest.approx(2 * 60 * 0.97 / found["seconds_per_step"], rel=0.05)


def test_a_method_that_prepares_says_so(pictures):
    found = eyespot.estimate("g_simclr", data=pictures, epochs=1, **OPTIONS)
    assert found["prepares"] and found["steps"] == 5


def test_mistakes_are_told_as_by_pretrain(pictures):
    with pytest.raises(UserError, match="larger than the data"):
        eyespot.estimate("simclr", data=pictures, **OPTIONS | {"batch_size": 100})


def test_on_the_command_line(pictures, capsys):
    words = ["estimate", "simclr", "--data", str(pictures), "--backbone", "resnet8", "--image-size", "16"]
    words += ["--batch-size", "8", "--epochs", "1"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    assert main(words) == 0
    assert "images/s" in capsys.readouterr().out
    assert not Path("runs").exists()
