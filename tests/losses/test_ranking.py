"""The ranking loss of pairs: recorded numbers, a slow version, limits, a case by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eyespot.losses.ranking import choose_negatives, rank_hinge, same_label


def unit(rows, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)


def own(pairs):
    """Labels of pairs that are strangers to each other."""
    return torch.arange(pairs).repeat_interleave(2)


@pytest.mark.golden
def test_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("transitive_invariance__rank_loss_pairs")
    features = torch.from_numpy(arrays["features"]).requires_grad_()
    related = same_label(torch.from_numpy(arrays["labels"]))
    ratios = p["hard_ratio"], p["rand_ratio"]
    chosen = choose_negatives(features.detach(), related, p["neg_num"], p["margin"], *ratios)
    assert np.array_equal(chosen.numpy(), arrays["selected"])
    loss = rank_hinge(features, chosen, p["margin"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), rel=1e-4)
    np.testing.assert_allclose(features.grad, arrays["grad"], rtol=1e-4, atol=1e-7)


def slow(features, labels, negatives, margin):
    """Loops over pairs and rows; the hardest negatives."""
    total, pairs = 0.0, len(features) // 2
    for i in range(pairs):
        x, y = features[2 * i], features[2 * i + 1]
        rows = [j for j in range(len(features)) if labels[j] not in (labels[2 * i], labels[2 * i + 1])]
        rows = [j for j in rows if margin + x @ features[j] - x @ y > 0]
        for j in sorted(rows, key=lambda j: -float(x @ features[j]))[:negatives]:
            total += max(0.0, float(margin + x @ features[j] - x @ y))
            total += max(0.0, float(margin + y @ features[j] - x @ y))
    return total / (2 * negatives * pairs)


@given(st.integers(1, 6), st.integers(1, 15), st.floats(0, 1.5), st.integers(0, 99))
def test_equals_a_slow_version(pairs, negatives, margin, seed):
    features = unit(2 * pairs, seed=seed)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, pairs)).repeat_interleave(2)
    chosen = choose_negatives(features, same_label(labels), negatives, margin)
    assert chosen.shape == (pairs, negatives)
    assert float(rank_hinge(features, chosen, margin)) == pytest.approx(slow(features, labels, negatives, margin))


def test_a_case_by_hand():
    """x = (1, 0), x+ = (0.6, 0.8), x- = (0.8, 0.6), m = 0.5: terms 0.5 + 0.8 - 0.6 and 0.5 + 0.96 - 0.6."""
    features = torch.tensor([[1, 0], [0.6, 0.8], [0.8, 0.6], [0.8, 0.6]], dtype=torch.float64)
    chosen = torch.tensor([[2], [-1]])
    assert float(rank_hinge(features, chosen, 0.5)) == pytest.approx((0.7 + 0.86) / (2 * 1 * 2))


def test_is_zero_when_pairs_are_more_alike_by_the_margin():
    features = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0).requires_grad_()
    chosen = choose_negatives(features.detach(), same_label(own(4)), 3, 0.5)
    assert bool((chosen == -1).all())
    loss = rank_hinge(features, chosen, 0.5)
    loss.backward()
    assert float(loss.detach()) == 0 and float(features.grad.abs().sum()) == 0


def test_is_the_margin_when_all_rows_coincide():
    features = F.normalize(torch.ones(8, 3, dtype=torch.float64), dim=1)
    chosen = choose_negatives(features, same_label(own(4)), 4, 0.5)
    assert float(rank_hinge(features, chosen, 0.5)) == pytest.approx(0.5)


@given(st.integers(0, 50), st.floats(0, 1))
def test_related_rows_are_never_negatives(seed, hard):
    """Also those related to the second row of a pair alone."""
    features, random = unit(12, seed=seed), np.random.default_rng(seed)
    related = torch.from_numpy(random.random((12, 12)) < 0.3)
    related = related | related.T
    noise = torch.from_numpy(random.random((6, 12)))
    for i, rows in enumerate(choose_negatives(features, related, 4, 1.0, hard, 1 - hard, noise).tolist()):
        for j in rows:
            assert j == -1 or (j // 2 != i and not related[2 * i, j] and not related[2 * i + 1, j])
        kept = [j for j in rows if j >= 0]
        assert len(set(kept)) == len(kept)


def test_a_turned_space_gives_the_same_loss():
    features = unit(12)
    turn = torch.linalg.qr(unit(5, seed=3))[0]
    losses = []
    for rows in (features, features @ turn):
        losses.append(float(rank_hinge(rows, choose_negatives(rows, same_label(own(6)), 3, 0.5), 0.5)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) and losses[0] > 0


def test_with_few_candidates_all_are_taken_and_the_divisor_stays():
    features = unit(4)
    wide = choose_negatives(features, same_label(own(2)), 9, 2.0)
    narrow = choose_negatives(features, same_label(own(2)), 2, 2.0)
    assert wide.shape == (2, 9) and [sorted(r) for r in wide[:, :2].tolist()] == [[2, 3], [0, 1]]
    assert bool((wide[:, 2:] == -1).all())
    assert float(rank_hinge(features, wide, 2.0)) == pytest.approx(2 / 9 * float(rank_hinge(features, narrow, 2.0)))


def test_random_negatives_lie_outside_the_pool_and_hard_ones_inside():
    features, noise = unit(40), torch.rand(20, 40, generator=torch.Generator().manual_seed(0))
    related = same_label(own(20))
    hardest = choose_negatives(features, related, 4, 2.0)
    easy = choose_negatives(features, related, 4, 2.0, 0.0, 1.0, noise)
    half = choose_negatives(features, related, 4, 2.0, 0.5, 0.5, noise)
    for pool, a, b in zip(hardest.tolist(), easy.tolist(), half.tolist(), strict=True):
        assert not set(pool) & set(a) and -1 not in a
        assert len(set(pool) & set(b)) == 2 and -1 not in b


def test_gradients_are_finite_and_half_precision_is_widened():
    features = unit(12).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rank_hinge(features, choose_negatives(features.detach(), same_label(own(6)), 3, 0.5), 0.5)
    assert loss.dtype == torch.float32
    loss.backward()
    assert bool(features.grad.isfinite().all())
