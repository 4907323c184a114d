"""One process and two give the same gradient and the same weights, for every method: with the whole net on each process
(DDP) and with a part of it on each (FSDP2)."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import COMPOSITIONS, names
from processes import run_processes

pytestmark = pytest.mark.xdist_group("one is two")  # one worker: the jobs below are started once
JOB = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both jobs, all methods: processes are started once, because importing costs more than training."""
    folder = tmp_path_factory.mktemp("processes")
    for world in (1, 2):
        run_processes(JOB, [str(folder), *names(), *COMPOSITIONS], world, folder, timeout=1800)
    return folder


def read(results, how, precision, name):
    return torch.load(results / f"{how}-{precision}" / f"{name}.pt", weights_only=True)


def gradient_error(one, two):
    """Largest relative difference of a parameter's gradient."""
    assert one.keys() == two.keys() and one
    scale = max(float(g.norm()) for g in one.values())
    assert scale > 0
    errors = {k: float((g - two[k]).norm()) / max(float(g.norm()), 1e-6 * scale) for k, g in one.items()}
    return max((error, key) for key, error in errors.items())


def weight_error(one, two):
    """Largest difference of a number in the state; two processes count batches of a norm once each."""
    assert one.keys() == two.keys()
    errors = {k: (w.double() - two[k].double()).abs().max() for k, w in one.items() if w.numel()}
    return max((float(error), key) for key, error in errors.items())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", [*names(), *COMPOSITIONS])
def test_one_process_equals_two(results, name, how):
    one, two = read(results, "one", "float64", name), read(results, how, "float64", name)
    error, key = gradient_error(one["gradient"], two["gradient"])
    assert error < 1e-10, f"gradient of {key} differs by {error:.1e}"
    error, key = weight_error(one["weights"], two["weights"])
    assert error < 1e-8, f"{key} differs by {error:.1e} after 20 steps"


def whole_error(one, two):
    """Relative difference of all numbers as one vector."""
    pairs = [(one[k].double().flatten(), two[k].double().flatten()) for k in one if one[k].is_floating_point()]
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float((a - b).norm() / a.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*names(), *COMPOSITIONS])
def test_one_process_equals_two_in_single_precision(results, name):
    one, two = read(results, "one", "float32", name), read(results, "ddp", "float32", name)
    for what in ("gradient", "weights"):
        error = whole_error(one[what], two[what])
        assert error < 1e-4, f"the {what} differ by {error:.1e}; with another seed an input may be further from a kink"
