"""Batch norms whose running statistics stay."""

import pytest
import torch
from torch import nn

from eyespot.nets.norms import frozen_statistics, has_batch_norm


def test_running_statistics_stay_but_the_batch_is_normalised():
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=0.3)).double()
    x = torch.rand(8, 3, dtype=torch.float64) + 4
    with pytest.raises(KeyError), frozen_statistics(net):
        torch.testing.assert_close(net(x).mean(0), torch.zeros(3, dtype=torch.float64))
        raise KeyError
    assert net[0].running_mean.abs().sum() == 0 and net[1].running_mean.abs().sum() == 0
    assert (net[0].momentum, net[1].momentum) == (None, 0.3), "also after an error"


def test_which_nets_have_them():
    assert has_batch_norm(nn.Sequential(nn.BatchNorm2d(2)))
    assert not has_batch_norm(nn.Sequential(nn.LayerNorm(2), nn.BatchNorm2d(2, track_running_stats=False)))
