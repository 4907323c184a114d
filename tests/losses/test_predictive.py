"""Predictive losses against recorded numbers and the values they take in known cases."""

import pytest
import torch

from eyespot.losses.predictive import byol, latent, negative_cosine


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


# --- I-JEPA -----------------------------------------------------------------------------------------------------
@pytest.mark.golden
def test_latent_agrees_with_the_recorded_numbers(golden):
    arrays, _ = golden("masked_bases__losses")
    loss = latent(torch.from_numpy(arrays["ij_pred"]), torch.from_numpy(arrays["ij_target"]))
    torch.testing.assert_close(loss, torch.from_numpy(arrays["ij_loss"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", ["smooth_l1", "l2"])
def test_latent_is_the_slow_loop(distance):
    torch.manual_seed(0)
    p, t = 2 * torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double()
    costs = []
    for row, wanted in zip(p.flatten(0, 1), t.flatten(0, 1), strict=True):
        mean = sum(wanted) / 5
        deviation = (sum((v - mean) ** 2 for v in wanted) / 5 + 1e-5) ** 0.5
        for a, b in zip(row, wanted, strict=True):
            d = abs(float(a - (b - mean) / deviation))
            costs.append(d * d if distance == "l2" else 0.5 * d * d if d < 1 else d - 0.5)
    assert latent(p, t, distance).item() == pytest.approx(sum(costs) / len(costs))


def test_latent_limits():
    target = torch.tensor([[3.0, 5.0]])  # normed: -1, 1
    assert latent(torch.tensor([[-1.0, 1.0]]), target).item() == pytest.approx(0, abs=1e-8)
    assert latent(torch.zeros(1, 2), target).item() == pytest.approx(0.5, abs=1e-4)
    assert latent(torch.zeros(1, 2), target, "l2").item() == pytest.approx(1.0, abs=1e-4)
    assert latent(torch.tensor([[1.0, 3.0]]), target).item() == pytest.approx(1.5, abs=1e-4)
    assert latent(torch.zeros(1, 2), torch.full((1, 2), 7.0)).item() == 0


def test_latent_teaches_the_prediction_only():
    p, t = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    latent(p, t).backward()
    assert p.grad is not None and torch.isfinite(p.grad).all()
    assert t.grad is None
