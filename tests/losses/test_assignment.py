"""Sinkhorn codes and the swapped prediction against recorded numbers, slow loops and known cases."""

import math

import pytest
import torch

from eyespot.losses.assignment import sinkhorn, swapped_prediction


def slow_sinkhorn(scores, epsilon, iterations):
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    n, k = len(q), len(q[0])
    for _ in range(iterations):
        for j in range(k):
            total = sum(row[j] for row in q)
            for row in q:
                row[j] /= total
        for i in range(n):
            total = sum(q[i])
            q[i] = [x / total for x in q[i]]
    return torch.tensor(q, dtype=torch.float64)


def slow_swapped(scores, codes, temperature):
    pairs = []
    for g, code in enumerate(codes.tolist()):
        for v, score in enumerate(scores.tolist()):
            if g == v:
                continue
            total = 0.0
            for q, s in zip(code, score, strict=True):
                below = sum(math.exp(x / temperature) for x in s)
                total -= sum(a * math.log(math.exp(x / temperature) / below) for a, x in zip(q, s, strict=True))
            pairs.append(total / len(code))
    return sum(pairs) / len(pairs)


@pytest.fixture
def scores():
    return torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


@pytest.mark.golden
def test_golden(golden):
    arrays, params = golden("joint_embedding_bases__losses")
    s1, s2 = torch.from_numpy(arrays["s1"]), torch.from_numpy(arrays["s2"])
    codes = torch.stack([sinkhorn(s, params["swav_eps"], params["swav_iters"]) for s in (s1, s2)])
    for code, name in zip(codes, ("sinkhorn1", "sinkhorn2"), strict=True):
        torch.testing.assert_close(code, torch.from_numpy(arrays[name]), rtol=1e-4, atol=1e-7)
    loss = swapped_prediction(torch.stack([s1, s2]), codes, 0.1)
    assert loss.item() == pytest.approx(arrays["loss_swav"].item(), rel=1e-4)


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_slow_loop(scores, iterations):
    torch.testing.assert_close(sinkhorn(scores[0], 0.1, iterations), slow_sinkhorn(scores[0], 0.1, iterations))


def test_rows_are_exact_after_any_number_of_scalings_and_columns_after_many(scores):
    codes = sinkhorn(scores[0], 0.1, 1)
    torch.testing.assert_close(codes.sum(1), torch.ones(6).double())
    assert (codes.sum(0) - 6 / 5).abs().max() > 1e-2
    codes = sinkhorn(scores[0], 0.1, 300)
    torch.testing.assert_close(codes.sum(1), torch.ones(6).double())
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 6 / 5).double())


def test_equal_scores_are_shared_out_evenly():
    torch.testing.assert_close(sinkhorn(torch.ones(6, 4)), torch.full((6, 4), 0.25))


def test_a_prototype_that_all_prefer_gets_no_more_than_its_share():
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    codes = sinkhorn(scores, 0.02, 100)
    torch.testing.assert_close(codes.argmax(1), torch.tensor([0, 0, 1, 1]))


def test_large_scores_do_not_overflow():
    codes = sinkhorn(torch.tensor([[400.0, -400.0], [-400.0, 400.0]]), 0.05)
    torch.testing.assert_close(codes, torch.eye(2))


@pytest.mark.parametrize("coded", [1, 2])
def test_swapped_prediction_is_the_slow_loop(scores, coded):
    codes = torch.stack([sinkhorn(s) for s in scores[:coded]])
    loss = swapped_prediction(scores, codes, 0.1)
    assert loss.item() == pytest.approx(slow_swapped(scores, codes, 0.1), rel=1e-10)


@pytest.mark.parametrize("prototypes", [2, 30])
def test_equal_scores_give_log_k(prototypes):
    same = torch.ones(3, 4, prototypes)
    codes = torch.eye(prototypes)[torch.arange(4) % prototypes].expand(2, -1, -1)
    assert swapped_prediction(same, codes).item() == pytest.approx(math.log(prototypes), rel=1e-5)


def test_the_mean_of_two_halves_is_the_whole(scores):
    codes = torch.stack([sinkhorn(s) for s in scores[:2]])
    halves = [swapped_prediction(scores[:, r], codes[:, r]) for r in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, swapped_prediction(scores, codes))


@pytest.mark.parametrize("value", [0.0, 1e3])
def test_only_the_scores_get_a_finite_gradient(value):
    scores = torch.full((3, 4, 5), value, requires_grad=True)
    codes = torch.stack([sinkhorn(s) for s in scores[:2]]).requires_grad_()
    swapped_prediction(scores, codes).backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert codes.grad is None
    assert not sinkhorn(scores[0]).requires_grad


def cosines(n=6, p=4):
    return torch.rand(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


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
