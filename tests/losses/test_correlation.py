"""Losses on correlation and covariance against recorded numbers, slow loops and the values they take in known cases."""

import pytest
import torch

from eyespot.losses.correlation import barlow, covariance, cross_correlation, off_diagonal, vicreg


def slow_barlow(z1, z2, redundancy, eps=1e-5):
    n, d = z1.shape
    invariance = repeats = 0.0
    for i in range(d):
        for j in range(d):
            a, b = z1[:, i].tolist(), z2[:, j].tolist()
            ma, mb = sum(a) / n, sum(b) / n
            va = sum((x - ma) ** 2 for x in a) / n + eps
            vb = sum((x - mb) ** 2 for x in b) / n + eps
            c = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True)) / n / (va * vb) ** 0.5
            if i == j:
                invariance += (1 - c) ** 2
            else:
                repeats += c**2
    return invariance, redundancy * repeats


@pytest.mark.golden
def test_golden(golden):
    arrays, _ = golden("joint_embedding_bases__losses")
    loss = sum(barlow(torch.from_numpy(arrays["z1"]), torch.from_numpy(arrays["z2"]), 0.005))
    assert loss.item() == pytest.approx(arrays["loss_barlow"].item(), rel=1e-4)


def test_is_the_slow_loop():
    z1, z2 = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    terms = [t.item() for t in barlow(z1, z2, 0.01)]
    assert terms == pytest.approx(slow_barlow(z1, z2, 0.01), rel=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_off_diagonal(d):
    c = torch.arange(d * d).view(d, d)
    assert off_diagonal(c).tolist() == [int(c[i, j]) for i in range(d) for j in range(d) if i != j]


def test_equal_white_embeddings_cost_nothing():
    z = torch.linalg.qr(torch.randn(64, 6, dtype=torch.float64))[0]
    z = torch.linalg.qr(z - z.mean(0))[0] * 100  # centred columns, uncorrelated, much larger than eps
    assert sum(barlow(z, z)).item() == pytest.approx(0, abs=1e-8)


def test_constant_embeddings_cost_one_a_dimension():
    invariance, redundancy = barlow(torch.ones(8, 5), torch.ones(8, 5))
    assert invariance.item() == pytest.approx(5) and redundancy.item() == pytest.approx(0)


def test_the_order_of_samples_does_not_matter():
    z1, z2, order = torch.randn(9, 4), torch.randn(9, 4), torch.randperm(9)
    torch.testing.assert_close(cross_correlation(z1, z2), cross_correlation(z1[order], z2[order]))


def test_gradients_are_finite_with_equal_rows():
    z = torch.ones(6, 4, requires_grad=True)
    sum(barlow(z, z)).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def slow_vicreg(z1, z2, eps=1e-4):
    n, d = z1.shape
    invariance = sum((float(a) - float(b)) ** 2 for a, b in zip(z1.flatten(), z2.flatten(), strict=True)) / (n * d)
    variance = repeats = 0.0
    for z in (z1, z2):
        columns = [[x - sum(c) / n for x in c] for c in z.T.tolist()]
        for i in range(d):
            for j in range(d):
                c = sum(a * b for a, b in zip(columns[i], columns[j], strict=True)) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - (c + eps) ** 0.5) / d
                else:
                    repeats += c**2 / d
    return invariance, variance, repeats


@pytest.mark.golden
def test_vicreg_golden(golden):
    arrays, _ = golden("joint_embedding_bases__losses")
    invariance, variance, repeats = vicreg(torch.from_numpy(arrays["z1"]), torch.from_numpy(arrays["z2"]))
    assert invariance.item() == pytest.approx(arrays["loss_vicreg_inv"].item(), rel=1e-4)
    assert variance.item() == pytest.approx(arrays["loss_vicreg_var"].item(), rel=1e-4)
    assert repeats.item() == pytest.approx(arrays["loss_vicreg_cov"].item(), rel=1e-4)
    total = 25 * invariance + 25 * variance + repeats
    assert total.item() == pytest.approx(arrays["loss_vicreg"].item(), rel=1e-4)


def test_vicreg_is_the_slow_loop():
    z1, z2 = 0.7 * torch.randn(6, 4, dtype=torch.float64), 1.2 * torch.randn(6, 4, dtype=torch.float64)
    assert [t.item() for t in vicreg(z1, z2, 0.01)] == pytest.approx(slow_vicreg(z1, z2, 0.01), rel=1e-10)


def test_covariance_is_unbiased():
    z = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(covariance(z), torch.cov(z.T))


def test_vicreg_of_constant_embeddings():
    z = torch.full((8, 5), 3.0, requires_grad=True)
    invariance, variance, repeats = vicreg(z, z)
    assert (invariance.item(), repeats.item()) == (0, 0)
    assert variance.item() == pytest.approx(2 * (1 - 1e-4**0.5))
    assert (25 * invariance + 25 * variance + repeats).item() == pytest.approx(49.5)
    (invariance + variance + repeats).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_vicreg_of_equal_wide_uncorrelated_embeddings_is_zero():
    z = torch.linalg.qr(torch.randn(64, 6, dtype=torch.float64))[0]
    z = torch.linalg.qr(z - z.mean(0))[0] * 20  # centred columns with deviation 20 / sqrt(63), above the margin of 1
    assert [t.item() for t in vicreg(z, z)] == pytest.approx([0, 0, 0], abs=1e-20)
