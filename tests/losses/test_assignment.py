"""Sinkhorn: what the codes must satisfy, a slow version, and the same whatever the split."""

import math

import pytest
import torch

from eyespot.losses.assignment import sinkhorn


def slow(scores, epsilon, iterations):
    """Rows are prototypes, columns samples, as in the paper's listing."""
    q = [[math.exp(row[p] / epsilon) for row in scores.tolist()] for p in range(scores.shape[1])]
    for _ in range(iterations):
        q = [[v / sum(row) / len(q) for v in row] for row in q]
        sums = [sum(row[i] for row in q) for i in range(len(scores))]
        q = [[v / sums[i] / len(scores) for i, v in enumerate(row)] for row in q]
    return torch.tensor(q, dtype=torch.float64).T * len(scores)


def cosines(n=6, p=4):
    return torch.rand(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_is_the_slow_loop(iterations):
    torch.testing.assert_close(sinkhorn(cosines(), 0.1, iterations), slow(cosines(), 0.1, iterations))


def test_rows_sum_to_one_and_many_rounds_use_prototypes_equally():
    codes = sinkhorn(cosines(), 0.2, 200)
    torch.testing.assert_close(codes.sum(1), torch.ones(6).double())
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 1.5).double())


def test_equal_scores_give_equal_codes():
    torch.testing.assert_close(sinkhorn(torch.ones(5, 8)), torch.full((5, 8), 1 / 8))


def test_one_sample_a_prototype_is_the_hard_assignment():
    torch.testing.assert_close(sinkhorn(torch.eye(4), 0.05), torch.eye(4), atol=1e-6, rtol=0)


def test_low_temperatures_and_empty_batches_stay_finite():
    assert sinkhorn(cosines().float(), 0.01).isfinite().all()
    assert sinkhorn(torch.empty(0, 4)).shape == (0, 4)


def test_parts_of_unequal_size_that_add_up_their_totals_are_the_whole():
    """Two parts in lockstep, as two processes are."""
    parts, totals = list(cosines().split([4, 2])), {}

    def across(part, other):
        count = iter(range(9))

        def add(total):
            step = next(count)
            totals[part, step] = total
            return total + other_totals[step]

        other_totals = other
        return add

    # the other part's totals are found by running both in turn, one round more each time
    known = {0: [], 1: []}
    for rounds in range(1, 4):
        for part in (0, 1):
            fill = known[1 - part] + [torch.zeros(4).double()] * (rounds - len(known[1 - part]))
            sinkhorn(parts[part], 0.1, rounds, across(part, fill))
        for part in (0, 1):
            known[part] = [totals[part, r] for r in range(rounds)]
    made = [sinkhorn(parts[p], 0.1, 3, across(p, known[1 - p])) for p in (0, 1)]
    torch.testing.assert_close(torch.cat(made), sinkhorn(cosines(), 0.1, 3))


def test_no_gradient_flows():
    scores = torch.rand(3, 4, requires_grad=True)
    assert not sinkhorn(scores).requires_grad
