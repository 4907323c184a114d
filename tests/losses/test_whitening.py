"""Whitening against recorded numbers, a slow factorisation and known cases."""

import math

import pytest
import torch

from eyespot.losses.whitening import w_mse, whiten, whiten_blocks


def slow_whiten(z):
    """Cholesky by hand, then forward substitution for every row."""
    n, d = z.shape
    mean = [sum(c) / n for c in z.T.tolist()]
    rows = [[x - m for x, m in zip(r, mean, strict=True)] for r in z.tolist()]
    cov = [[sum(r[i] * r[j] for r in rows) / (n - 1) for j in range(d)] for i in range(d)]
    low = [[0.0] * d for _ in range(d)]
    for i in range(d):
        for j in range(i + 1):
            rest = cov[i][j] - sum(low[i][k] * low[j][k] for k in range(j))
            low[i][j] = math.sqrt(rest) if i == j else rest / low[j][j]
    out = []
    for r in rows:
        y: list[float] = []
        for i in range(d):
            y.append((r[i] - sum(low[i][k] * y[k] for k in range(i))) / low[i][i])
        out.append(y)
    return torch.tensor(out, dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.golden
def test_golden(golden):
    arrays, _ = golden("joint_embedding_bases__losses")
    z1, z2 = torch.from_numpy(arrays["z1"]), torch.from_numpy(arrays["z2"])
    torch.testing.assert_close(whiten(z1), torch.from_numpy(arrays["whitened_z1"]), rtol=1e-4, atol=1e-5)
    assert w_mse([z1, z2]).item() == pytest.approx(arrays["loss_wmse_on_given"].item(), rel=1e-4)


def test_whitening_is_the_slow_factorisation():
    z = normal(9, 4) @ normal(4, 4) + 5
    torch.testing.assert_close(whiten(z), slow_whiten(z))


def test_white_rows_have_no_mean_and_the_identity_as_covariance():
    white = whiten(normal(20, 6) @ normal(6, 6) + 3)
    torch.testing.assert_close(white.mean(0), torch.zeros(6).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6).double(), atol=1e-10, rtol=0)


def test_shrinkage_mixes_the_identity_in():
    z = 2 * whiten(normal(20, 3))  # covariance 4 I: with a share of 0.5 the root of 2.5 divides
    torch.testing.assert_close(whiten(z, 0.5), z / math.sqrt(2.5))


def test_blocks_are_whitened_apart_and_rows_keep_their_places():
    z, blocks = normal(12, 2), [torch.tensor([7, 0, 3, 4, 11]), torch.tensor([1, 2, 5, 6, 8, 9, 10])]
    white = whiten_blocks(z, blocks)
    for rows in blocks:
        torch.testing.assert_close(white[rows], whiten(z[rows]))


def test_distance_of_pairs():
    a, b, c = normal(5, 3), normal(5, 3), normal(5, 3)
    pairs = [
        sum((x / x.norm() - y / y.norm()).square().sum() for x, y in zip(*p, strict=True)) / 5
        for p in ((a, b), (a, c), (b, c))
    ]
    torch.testing.assert_close(w_mse([a, b, c]), sum(pairs) / 3)
    assert w_mse([a, a]).item() == pytest.approx(0, abs=1e-12)
    assert w_mse([a, -2 * a]).item() == pytest.approx(4)


def test_constant_rows_give_zeros_and_a_finite_gradient():
    z = torch.ones(8, 3, requires_grad=True)
    white = whiten(z, 1e-4)
    assert not white.any()
    w_mse([white, white]).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_a_covariance_without_inverse_is_not_a_number():
    """A loop then names the loss; an exception from inside would not say what to do."""
    assert whiten(torch.ones(8, 3)).isnan().all()
    repeated = torch.tensor([-2.0, 2.0, -2.0, 2.0, 0.0])[:, None].expand(5, 2)  # variance 4: the second pivot is 0
    assert whiten(repeated).isnan().all()


def test_all_views_get_the_gradient_of_finite_differences():
    z1, z2 = normal(7, 3).requires_grad_(), normal(7, 3).flip(0).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: w_mse([whiten(a, 0.01), whiten(b, 0.01)]), (z1, z2))
