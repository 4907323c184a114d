"""Gathering, means and batch norm: two processes give what one gives, with ragged rows too."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from eyespot.process import SyncBatchNorm, gather, global_mean, synchronise_batch_norm

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import run_processes


def test_alone_everything_is_the_identity():
    x = torch.randn(4, 3)
    assert gather(x) is x
    assert torch.equal(global_mean(x[:, 0]), x[:, 0].mean())
    mask = torch.tensor([True, False, True, False])
    assert torch.allclose(global_mean(torch.tensor([1.0, float("inf"), 3.0, float("nan")]), mask), torch.tensor(2.0))


def test_synchronised_batch_norm_equals_torchs_on_one_process():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)))
    sync = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)))
    sync.load_state_dict(plain.state_dict())
    synchronise_batch_norm(sync)
    assert isinstance(sync[1], SyncBatchNorm) and isinstance(sync[2][0], SyncBatchNorm)
    x = torch.randn(7, 5)
    assert torch.equal(plain(x), sync(x))
    assert plain.state_dict().keys() == sync.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), sync.state_dict().values(), strict=True))
    assert torch.equal(plain.eval()(x), sync.eval()(x))


def test_timms_norm_with_activation_keeps_its_activation():
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    net = nn.Sequential(BatchNormAct2d(3))
    x = torch.randn(4, 3, 2, 2)
    expected = net(x)
    assert torch.equal(synchronise_batch_norm(net)(x), expected)
    assert (expected >= 0).all()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    script = Path(__file__).parent / "process_job.py"
    for world in (1, 2):
        run_processes(script, [str(tmp_path / f"{world}.pt")], world, tmp_path)
    one, two = (torch.load(tmp_path / f"{w}.pt", weights_only=True) for w in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-10, atol=1e-12), name
