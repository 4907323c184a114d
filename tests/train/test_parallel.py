"""A run that is stopped and goes on gives the same weights on one process and on two, whole or sharded."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))
import runs_in_parts
from bench import stripes
from processes import run_processes, srun
from runs_in_parts import CASES, OTHER, STOP, Signalled, run, stopped

from eyespot.errors import Stopped, UserError
from eyespot.nets.backbones import backbone
from eyespot.nets.teacher import Teacher
from eyespot.train.checkpoint import load_checkpoint
from eyespot.train.parallel import blocks, shard


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs on one process that are stopped, then everything on two, in one job that SLURM seems to have started."""
    root = tmp_path_factory.mktemp("parts")
    for name in CASES:
        assert stopped(name, root / f"{name}-one", Signalled(stripes(), STOP)) == STOP
    run_processes(Path(runs_in_parts.__file__), [str(root)], 2, root, launcher=srun, status=Stopped.STATUS)
    return root


@pytest.fixture(scope="module")
def expected():
    """Weights of runs that were never stopped."""
    return {name: run(name).state_dict() for name in CASES}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        error = float((state[key].double() - value.double()).abs().max()) if value.numel() else 0.0
        assert error < 1e-8, f"{key} differs by {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("how", OTHER)
@pytest.mark.parametrize("name", CASES)
def test_stopped_on_one_goes_on_on_two(results, expected, name, how):
    assert_same(torch.load(results / f"{name}-from-one-{how}.pt", weights_only=True), expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("how", OTHER)
@pytest.mark.parametrize("name", CASES)
def test_stopped_on_two_goes_on_on_one(results, expected, name, how):
    folder = results / f"{name}-two-{how}"
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == STOP
    assert_same(run(name, folder, resume=True).state_dict(), expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("how", OTHER)
@pytest.mark.parametrize("name", CASES)
def test_stopped_on_two_goes_on_the_other_way(results, expected, name, how):
    assert_same(torch.load(results / f"{name}-from-{how}-{OTHER[how]}.pt", weights_only=True), expected[name])


@pytest.mark.slow
def test_both_processes_end_with_the_step_that_they_agreed_on(results):
    """The job's last run: the signal came to the second process at step 2; steps 1, 3, 6 are logged."""
    assert load_checkpoint(results / "last" / "checkpoint.pt")["step"] == 3


def test_stopped_on_one_equals_never_stopped_to_the_bit(tmp_path, expected):
    stopped("mae", tmp_path / "run", Signalled(stripes(), 4))
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    state = run("mae", tmp_path / "run", resume=True).state_dict()
    assert all(torch.equal(state[k], v) for k, v in expected["mae"].items())


# --- units -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("vit_nano", "Block", 3),
        ("resnet14", "BasicBlock", 6),
        ("resnet18", "BasicBlock", 8),
        ("torchvision/resnet18", "Sequential", 4),  # its stages
        ("convnext_atto", "ConvNeXtStage", 4),
        ("torchvision/vit_b_16", "EncoderBlock", 12),
    ],
)
def test_repeated_blocks_are_units(name, kind, count):
    net = backbone(name, image_size=32)
    found = blocks(nn.Sequential(net, nn.Linear(2, 2)))
    assert [type(b).__name__ for b in found] == [kind] * count
    held = [p for b in found for p in b.parameters()]
    assert len(held) == len(set(held)), "no parameter is in two units"
    assert sum(p.numel() for p in held) > 0.5 * sum(p.numel() for p in net.parameters())


def test_what_is_called_by_its_methods_is_no_unit():
    net = backbone("resnet8", image_size=16)
    twice = nn.ModuleList([net, backbone("resnet8", image_size=16)])
    assert {type(b).__name__ for b in blocks(twice)} == {"BasicBlock"}
    assert len(blocks(nn.ModuleDict({"student": net, "teacher": Teacher(nn.Sequential(net, nn.Linear(2, 2)))}))) == 6


def test_a_parameter_that_cannot_be_cut_is_one_sentence():
    from toy import Toy

    method = Toy()
    method.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"parameter scale is a single number.*--parallel ddp"):
        shard(method, torch.device("cpu"))
