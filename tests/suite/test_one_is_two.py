"""One process and two give the same gradient and the same weights, for every method."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import names
from processes import run_processes

JOB = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both jobs, all methods: processes are started once, because importing costs more than training."""
    folder = tmp_path_factory.mktemp("processes")
    for word, world in (("one", 1), ("two", 2)):
        (folder / word).mkdir()
        run_processes(JOB, [str(folder / word), *names()], world, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_one_process_equals_two(results, name):
    one, two = (torch.load(results / k / f"{name}.pt", weights_only=True) for k in ("one", "two"))
    assert one["gradient"].keys() == two["gradient"].keys() and one["gradient"]
    scale = max(float(g.norm()) for g in one["gradient"].values())
    assert scale > 0
    for key, gradient in one["gradient"].items():
        error = float((gradient - two["gradient"][key]).norm()) / max(float(gradient.norm()), 1e-6 * scale)
        assert error < 1e-10, f"gradient of {key} differs by {error:.1e}"
    for key, weight in one["weights"].items():
        # two processes count batches of a norm once each
        error = float((weight.double() - two["weights"][key].double()).abs().max()) if weight.numel() else 0.0
        assert error < 1e-8, f"{key} differs by {error:.1e} after 20 steps"
