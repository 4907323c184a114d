"""The moving-average teacher."""

import copy
import math

import pytest
import torch
from torch import nn

from eyespot.errors import UserError
from eyespot.nets.backbones import backbone
from eyespot.nets.heads import mlp
from eyespot.nets.teacher import Teacher, cosine_momentum
from eyespot.process import synchronise_batch_norm


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def perturb(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))


def test_parameters_follow_and_buffers_do_not():
    net = student()
    teacher = Teacher(net)
    old = copy.deepcopy(teacher.module)
    perturb(net)
    net(torch.rand(8, 3, dtype=torch.float64))  # moves the student's running statistics
    teacher.update(net, 0.9)
    for mine, before, theirs in zip(teacher.module.parameters(), old.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * before + 0.1 * theirs)
    for mine, before in zip(teacher.module.buffers(), old.buffers(), strict=True):
        torch.testing.assert_close(mine, before)
    teacher.update(net, 0.0)
    torch.testing.assert_close(list(teacher.module.parameters()), list(net.parameters()))


def test_statistics_come_from_its_own_passes():
    teacher = Teacher(student()).train()
    x = torch.rand(16, 3, dtype=torch.float64) + 5
    teacher(x)
    hidden = teacher.module[0](x)
    torch.testing.assert_close(teacher.module[1].running_mean, 0.1 * hidden.mean(0))
    assert teacher.module[1].training


def test_no_gradient_no_dropout_and_part_of_the_state():
    net = student()
    teacher = Teacher(net).train()
    x = torch.rand(8, 3, dtype=torch.float64)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in net.parameters()) and net[2].p == 0.5
    torch.testing.assert_close(teacher(x), teacher(x))
    other = Teacher(student())
    perturb(other.module)
    other.load_state_dict(teacher.state_dict())
    torch.testing.assert_close(other.eval()(x), teacher.eval()(x))


def test_whole_backbones_and_drop_path():
    net = backbone("vit_nano", image_size=32, drop_path=0.5).train()
    teacher = Teacher(nn.ModuleDict({"backbone": net, "head": mlp(64, 8)})).train()
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher.module["backbone"](x), teacher.module["backbone"](x))
        assert (net(x) - net(x)).abs().max() > 1e-4


def test_still_follows_after_batch_norm_is_replaced():
    net = nn.ModuleDict({"student": student()})
    net["teacher"] = Teacher(net["student"])
    synchronise_batch_norm(net)
    perturb(net["student"])
    net["teacher"].update(net["student"], 0.0)
    torch.testing.assert_close(list(net["teacher"].module.parameters()), list(net["student"].parameters()))


def test_mistakes():
    teacher = Teacher(student())
    with pytest.raises(UserError, match=r"momentum is 1.5"):
        teacher.update(student(), 1.5)
    with pytest.raises(UserError, match="Teacher and student differ in"):
        teacher.update(nn.Linear(3, 4), 0.5)


def test_cosine_momentum():
    assert cosine_momentum(0.99, 1.0, 0.0) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 1.0, 1.0) == pytest.approx(1.0)
    assert cosine_momentum(0.99, 1.0, 0.5) == pytest.approx(0.995)
    assert cosine_momentum(0.9, 1.0, 0.25) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)
    assert cosine_momentum(0.9, 1.0, 2.0) == 1.0
