"""The verdict on small networks that really learn, stall, collapse and diverge."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eyespot.train.verdict import LiveProbe, judge


def stripes(n, seed):
    """Pictures of stripes across or down in any colours, and which it is."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 2
    line = (torch.arange(12) // 2 % 2).float()
    pattern = torch.where(kind[:, None, None] == 0, line[:, None], line[None, :].expand(12, 12))
    a, b = torch.rand(2, n, 3, 1, 1, generator=generator)
    pictures = a + (b - a) * pattern[:, None]
    return (pictures + 0.05 * torch.randn(n, 3, 12, 12, generator=generator)).clamp(0, 1), kind


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 16),
    )


def recoloured(x, generator):
    scale, shift = torch.rand(2, len(x), 3, 1, 1, generator=generator)
    return (x * (0.5 + scale) + 0.4 * (shift - 0.5)).clamp(0, 1)


def contrast(net, head, x, y, generator):
    z = F.normalize(torch.cat([head(net(recoloured(x, generator))) for _ in range(2)]), dim=1)
    similar = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    return F.cross_entropy(similar, torch.arange(len(z)).roll(len(x)))


def attract(net, head, x, y, generator):
    """Views are pulled together and nothing holds them apart."""
    first, second = (head(net(recoloured(x, generator))) for _ in range(2))
    return (first - second).square().sum(1).mean()


def classify(net, head, x, y, generator):
    return F.cross_entropy(head(net(x))[:, :2], y)


def chance(net, head, x, y, generator):
    return F.cross_entropy(head(net(x))[:, :2], torch.randint(0, 2, y.shape, generator=generator))


def train(loss_of, lr, steps=80, labelled=True, momentum=0.9, optimizer=None, projected=False):
    """A run as the engine makes it: records, probes, floor."""
    net = network()
    head = nn.Linear(16, 8)
    x, y = stripes(96, 0)
    probe = LiveProbe(x, y if labelled else None)
    projection = head if projected else None
    probe.set_floor(net, projection)
    parameters = [*net.parameters(), *head.parameters()]
    solver = optimizer(parameters, lr=lr) if optimizer else torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    generator = torch.Generator().manual_seed(1)
    records, probes = [], []
    for step in range(1, steps + 1):
        rows = torch.randint(0, 96, (48,), generator=generator)
        loss = loss_of(net, head, x[rows], y[rows], generator)
        records.append({"step": step, "loss": loss.item(), "terms": {"term": loss.item()}})
        if not math.isfinite(records[-1]["loss"]):
            break
        solver.zero_grad()
        loss.backward()
        solver.step()
        if step % 20 == 0:
            probes.append({"step": step, **probe(net, projection)})
    return records, probes, probe.floor


ADAM = torch.optim.Adam


@pytest.mark.parametrize("labelled", [True, False])
def test_networks_that_learn(labelled):
    for loss_of, plateau in ((contrast, math.log(95)), (classify, math.log(2))):
        records, probes, floor = train(loss_of, 3e-3, 150, labelled, optimizer=ADAM)
        for stop in range(1, len(records)):
            seen = [p for p in probes if p["step"] <= stop]
            verdict = judge(records[:stop], {"term": plateau}, seen, floor, steps=150)
            assert verdict["state"] in ("starting", "learning"), (loss_of.__name__, stop, verdict)
        verdict = judge(records, {"term": plateau}, probes, floor, final=True)
        assert verdict["state"] == "learning", (loss_of.__name__, verdict)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_that_collapses(labelled):
    verdict = judge(*_given(train(attract, 1e-2, 200, labelled, optimizer=ADAM, projected=True)), final=True)
    assert verdict["state"] == "collapsed", verdict


def test_networks_that_stall():
    for loss_of, lr, plateau in ((contrast, 0.0, math.log(95)), (chance, 1e-3, math.log(2)), (classify, 1e-7, None)):
        records, probes, floor = train(loss_of, lr)
        plateaus = {} if plateau is None else {"term": plateau}
        verdict = judge(records, plateaus, probes, floor, final=True)
        assert verdict["state"] == "stalled", (loss_of.__name__, verdict)


def test_networks_that_diverge():
    for lr in (30.0, 1e4):
        records, probes, floor = train(classify, lr)
        verdict = judge(records, {"term": math.log(2)}, probes, floor, final=True)
        assert verdict["state"] in ("unstable", "collapsed"), (lr, verdict)
    records, probes, floor = train(attract, 1e3)
    assert judge(records, {}, probes, floor)["state"] == "unstable"


def _given(run):
    records, probes, floor = run
    return records, {}, probes, floor
