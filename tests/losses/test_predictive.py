"""Predictive losses against recorded numbers and the values they take in known cases."""

import pytest
import torch

from eyespot.losses.predictive import byol, negative_cosine


@pytest.mark.golden
def test_golden(golden):
    arrays, _ = golden("joint_embedding_bases__losses")
    z1, z2 = torch.from_numpy(arrays["z1"]), torch.from_numpy(arrays["z2"])
    assert byol(z1, z2).item() == pytest.approx(arrays["loss_byol_one_direction"].item(), rel=1e-4)
    assert negative_cosine(z1, z2).item() == pytest.approx(arrays["loss_simsiam_one_direction"].item(), rel=1e-4)


def test_byol_is_the_squared_distance_of_unit_vectors():
    p, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    slow = sum((a / a.norm() - b / b.norm()).square().sum() for a, b in zip(p, z, strict=True)) / 5
    torch.testing.assert_close(byol(p, z), slow)


def test_negative_cosine_is_the_slow_loop():
    p, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    slow = -sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(p, z, strict=True)) / 5
    assert negative_cosine(p, z).item() == pytest.approx(slow, rel=1e-10)
    torch.testing.assert_close(byol(p, z), 2 + 2 * negative_cosine(p, z))


def test_limits():
    p = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert byol(p, p).item() == pytest.approx(0, abs=1e-6)
    assert byol(p, -p).item() == pytest.approx(4)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1)
    assert negative_cosine(p, -p).item() == pytest.approx(1)
    assert negative_cosine(p, p.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert byol(p, p.flip(0)).item() == pytest.approx(2)


def test_the_mean_of_two_halves_is_the_whole():
    p, z = torch.randn(6, 3), torch.randn(6, 3)
    torch.testing.assert_close((byol(p[:3], z[:3]) + byol(p[3:], z[3:])) / 2, byol(p, z))


def test_only_the_prediction_gets_a_finite_gradient():
    p, z = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    byol(p, z).backward()
    assert p.grad is not None and torch.isfinite(p.grad).all()
    assert z.grad is None
