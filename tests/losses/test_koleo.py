"""KoLeo: recorded numbers, a slow loop, its limits."""

import math

import pytest
import torch

from eyespot.losses.koleo import koleo


@pytest.mark.golden
def test_golden(golden):
    arrays, _ = golden("masked_bases__losses")
    loss = koleo(torch.from_numpy(arrays["koleo_x"]))
    torch.testing.assert_close(loss, torch.from_numpy(arrays["koleo"]), rtol=1e-4, atol=1e-4)


def test_is_the_slow_loop():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    unit = [row / row.norm() for row in x]
    logs = [math.log(min(float((a - b).norm()) for j, b in enumerate(unit) if j != i)) for i, a in enumerate(unit)]
    assert koleo(x).item() == pytest.approx(-sum(logs) / 7, abs=1e-6)


@pytest.mark.parametrize("width", [2, 5])
def test_equal_rows_end_at_eps(width):
    expected = -math.log((1 + math.sqrt(width)) * 1e-8)
    assert koleo(torch.ones(3, width)).item() == pytest.approx(expected, rel=1e-4)
    assert width != 5 or expected == pytest.approx(17.25, abs=0.01)


def test_opposite_rows_are_as_far_as_it_goes():
    assert koleo(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-math.log(2))
    assert koleo(torch.eye(4)).item() == pytest.approx(-math.log(math.sqrt(2)))


def test_one_row_has_no_neighbour():
    x = torch.randn(1, 4, requires_grad=True)
    koleo(x).backward()
    assert koleo(x) == 0 and x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("rows", [torch.ones(4, 3), torch.zeros(4, 3), torch.eye(3)])
def test_the_gradient_is_finite(rows):
    x = rows.clone().requires_grad_()
    koleo(x).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_a_step_down_moves_neighbours_apart():
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(koleo(x), x)
    moved = (x - 0.01 * gradient).detach()
    assert koleo(moved) < koleo(x)
    assert moved[0, 1] > 0.1 and moved[1, 1] < -0.1
