"""Chamfer distances: recorded numbers, a slow loop, limits and gradients."""

import math

import pytest
import torch

from eyespot.losses.points import chamfer_l1, chamfer_l2


@pytest.mark.golden
def test_chamfer_agrees_with_the_recorded_numbers(golden):
    arrays, _ = golden("point_bases__fps_knn_chamfer")
    a, b = (torch.from_numpy(arrays[k]) for k in ("points", "points_b"))
    torch.testing.assert_close(chamfer_l2(a, b), torch.tensor(float(arrays["chamfer_l2"])), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chamfer_l1(a, b), torch.tensor(float(arrays["chamfer_l1"])), rtol=1e-5, atol=1e-5)


def test_against_a_loop_for_sets_of_different_sizes():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64) for n in (5, 8))
    for k in range(2):
        there = [min(math.dist(p, q) for q in b[k].tolist()) for p in a[k].tolist()]
        back = [min(math.dist(p, q) for q in a[k].tolist()) for p in b[k].tolist()]
        squared = sum(d * d for d in there) / 5 + sum(d * d for d in back) / 8
        assert float(chamfer_l2(a, b)[k]) == pytest.approx(squared)
        assert float(chamfer_l1(a, b)[k]) == pytest.approx((sum(there) / 5 + sum(back) / 8) / 2)


def test_limits():
    a = torch.randn(3, 9, 3, generator=torch.Generator().manual_seed(1))
    for distance in (chamfer_l1, chamfer_l2):
        assert float(distance(a, a[:, torch.randperm(9)]).abs().max()) == 0
        b = a.flip(0) + 0.1
        torch.testing.assert_close(distance(a, b), distance(b, a))
    v = torch.tensor([[3.0, 4.0, 0.0]])
    assert float(chamfer_l2(v, torch.zeros(1, 3))) == 2 * 25 and float(chamfer_l1(v, torch.zeros(1, 3))) == 5


@pytest.mark.parametrize("distance", [chamfer_l1, chamfer_l2])
def test_the_gradient_is_finite_where_sets_touch(distance):
    a = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    distance(a, a.detach().clone()).sum().backward()
    assert a.grad is not None and float(a.grad.abs().max()) == 0
    far = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    other = far.detach().flip(0) + 0.3
    assert torch.autograd.gradcheck(lambda x: distance(x, other), (far,))
