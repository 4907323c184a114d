"""The live measurement of a network in training."""

import numpy as np
import pytest
import torch
from torch import nn

from eyespot.evaluate import knn
from eyespot.metrics.representation import effective_rank, mean_cosine, spread
from eyespot.nets.backbones import backbone
from eyespot.train.probe import LiveProbe, leave_one_out, probe_rows, projection_head


def pixels(n=24, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_numbers_are_those_of_the_features():
    net = backbone("resnet8", image_size=16).eval()
    x = pixels()
    numbers = LiveProbe(x, batch_size=7)(net)
    with torch.no_grad():
        features = net(x)
    expected = {
        "effective_rank": effective_rank(features),
        "spread": spread(features),
        "mean_cosine": mean_cosine(features),
    }
    assert numbers == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-3)


def test_training_is_not_disturbed():
    net = nn.Sequential(backbone("resnet8", image_size=16), nn.Dropout(0.5)).train()
    net[0].net.eval()  # a frozen part keeps its mode too
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    head = nn.Sequential(nn.Linear(net[0].embed_dim, 8), nn.BatchNorm1d(8)).train()
    random = torch.get_rng_state()
    probe = LiveProbe(pixels(), torch.arange(24) % 3)
    probe.set_floor(net, head)
    probe(net, head)
    assert [m.training for m in net.modules()] == modes and head.training and head[1].num_batches_tracked == 0
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.grad is not None for p in net.parameters())


def test_neighbours_leave_the_picture_itself_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    x[5] = x[4]
    labels = torch.randint(0, 3, (60,), generator=generator)
    hits = leave_one_out(x, labels, 3)
    for i in range(60):
        rest = torch.arange(60) != i
        votes = knn.classify(x[rest], labels[rest], x[i : i + 1], 3)
        assert bool(hits[i]) == (votes.argmax().item() == labels[i].item())


def test_floor_and_error_of_the_difference():
    labels = torch.arange(24) % 3
    probe = LiveProbe(pixels(), labels)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten())
    floor = probe.set_floor(net)
    assert probe.floor == floor and "knn_error" not in floor
    assert floor["knn"] == floor["knn_calibrated"]  # there is no batch norm
    assert probe(net)["knn_error"] == 0.0
    perfect = lambda x: nn.functional.one_hot(labels, 3).float()  # noqa: E731
    numbers = probe(perfect)
    right = floor["knn"] / 100
    assert numbers["knn"] == 100.0
    assert numbers["knn_error"] == pytest.approx(100 * (right * (1 - right) / 23) ** 0.5)


def test_the_floor_has_batch_statistics_of_the_pictures():
    probe = LiveProbe(pixels(), torch.arange(24) % 2, batch_size=12)
    net = backbone("resnet8", image_size=16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    floor = probe.set_floor(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert floor["mean_cosine"] < probe(net)["mean_cosine"]
    assert floor["knn"] == probe(net)["knn"]
    for _ in range(40):  # what training does to a network that learns nothing
        net.train()
        net(pixels())
    assert probe(net)["mean_cosine"] == pytest.approx(floor["mean_cosine"], abs=0.02)


def test_double_precision_and_features_that_are_not_finite():
    net = backbone("resnet8", image_size=16).double()
    assert LiveProbe(pixels())(net)["effective_rank"] > 1
    numbers = LiveProbe(pixels(), torch.arange(24) % 2)(lambda x: x.flatten(1) * float("nan"))
    assert np.isnan(numbers["mean_cosine"]) and "knn" not in numbers


def test_rows_of_a_probe():
    labels = np.repeat(np.arange(100), 20)
    rows, known = probe_rows(labels, len(labels), 512, 0)
    assert known and len(rows) == 512 and len(np.unique(labels[rows])) == 32
    assert np.array_equal(rows, probe_rows(labels, len(labels), 512, 0)[0])
    rows, known = probe_rows(None, 30, 512, 0)
    assert not known and rows.tolist() == list(range(30))
    partly = np.where(np.arange(400) < 200, -1, np.arange(400) % 2)
    rows, known = probe_rows(partly, 400, 64, 0)
    assert known and (partly[rows] >= 0).all()
    assert not probe_rows(np.full(40, 3), 40, 16, 0)[1]  # one class tells nothing
    with pytest.raises(ValueError, match="two samples"):
        LiveProbe(pixels(1))


def test_head_of_a_method():
    method = nn.Module()
    assert projection_head(method, 8) is None
    method.projector = nn.Sequential(nn.Conv2d(8, 4, 1))
    assert projection_head(method, 8) is None
    method.projector = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    assert projection_head(method, 8) is method.projector
    assert projection_head(method, 16) is None
