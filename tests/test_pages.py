"""The code of the documentation runs: a method in a bare PyTorch loop and inside Lightning; the script for SLURM."""

import re
import subprocess

import pytest
import torch

from eyespot.errors import Stopped


def blocks(page, language):
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def code(root):
    return blocks(root / "docs" / "own-loop.md", "python")


def run(parts):
    """The blocks one after the other, as a reader would type them in; what they leave."""
    names = {"__name__": "own_loop"}
    for block in parts:
        exec(compile(block, "docs/own-loop.md", "exec"), names)
    return names


def test_bare_loop(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(code) == 2
    torch.manual_seed(0)
    left = run(code[:1])
    assert left["step"] == 7 and bool(left["loss"].isfinite())
    assert left["features"].shape == (64, 128)
    teacher, student = left["method"].teacher.module[0], left["method"].backbone
    assert not torch.equal(teacher.net.conv.weight, student.net.conv.weight), "the teacher follows, it is no copy"
    assert torch.equal(left["same"].net.conv.weight, student.net.conv.weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(code, tmp_path, monkeypatch):
    pytest.importorskip("lightning", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    left = run(code)
    assert left["trainer"].global_step == 8
    assert float(left["trainer"].callback_metrics["nt_xent"]) > 0
    assert left["method"].progress == 7 / 8


def test_script_for_slurm(root):
    (script,) = blocks(root / "docs" / "many-machines.md", "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert f'"$status" -eq {Stopped.STATUS}' in script
