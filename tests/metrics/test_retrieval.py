"""Ranks and average precision: recorded numbers, scikit-learn, a slow version with ties."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from eyespot.metrics.retrieval import ranking


@pytest.mark.golden
def test_recorded_numbers(golden):
    """Re-identification: gallery pictures of the same person by the same camera are ignored."""
    arrays, _ = golden("protocols__rates_and_rankings")
    query, gallery = (torch.from_numpy(arrays[k]).double() for k in ("reid_query", "reid_gallery"))
    persons, found = (torch.from_numpy(arrays[k]) for k in ("reid_q_pid", "reid_g_pid"))
    cameras, theirs = (torch.from_numpy(arrays[k]) for k in ("reid_q_cam", "reid_g_cam"))
    scores = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T
    same = persons[:, None] == found
    result = ranking(scores, same, same & (cameras[:, None] == theirs))
    valid = result.first <= len(found)
    ranks = np.arange(1, len(arrays["reid_cmc"]) + 1)
    cmc = (result.first[valid, None] <= torch.from_numpy(ranks)).double().mean(0)
    np.testing.assert_allclose(cmc.numpy(), arrays["reid_cmc"], atol=1e-5)
    assert float(result.precision[valid].mean()) == pytest.approx(float(arrays["reid_mAP"]), abs=1e-5)


def slow(scores, relevant, ignored):
    """(first rank, average precision) of one query; of equal scores the irrelevant come first."""
    order = sorted((i for i in range(len(scores)) if not ignored[i]), key=lambda i: (-scores[i], relevant[i]))
    hits, precisions, first = 0, [], len(scores) + 1
    for rank, i in enumerate(order, 1):
        if relevant[i]:
            hits += 1
            first = min(first, rank)
            precisions.append(hits / rank)
    return first, np.mean(precisions) if precisions else float("nan")


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_agrees_with_a_loop_also_where_scores_are_equal(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (30, 17), generator=generator).double()
    relevant = torch.rand(30, 17, generator=generator) < 0.2
    ignored = torch.rand(30, 17, generator=generator) < 0.3
    for skip in (ignored, None):
        result = ranking(scores, relevant, skip)
        mask = torch.zeros_like(relevant) if skip is None else skip
        expected = [slow(*(x.tolist() for x in row)) for row in zip(scores, relevant, mask, strict=True)]
        assert result.first.tolist() == [first for first, _ in expected]
        np.testing.assert_allclose(result.precision.numpy(), [p for _, p in expected], rtol=1e-12)


def test_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(20, 40, generator=generator, dtype=torch.float64)
    relevant = torch.rand(20, 40, generator=generator) < 0.3
    expected = [average_precision_score(r, s) for r, s in zip(relevant.numpy(), scores.numpy(), strict=True)]
    np.testing.assert_allclose(ranking(scores, relevant).precision.numpy(), expected, rtol=1e-12)


def test_constant_scores_earn_nothing():
    relevant = torch.tensor([[True, False, False, True]])
    result = ranking(torch.zeros(1, 4), relevant)
    assert result.first.tolist() == [3]
    assert result.precision.item() == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_a_query_without_relevant_items():
    result = ranking(torch.rand(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert result.first.tolist() == [4] and result.precision.isnan().all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[Q, n\]"):
        ranking(torch.rand(2, 3), torch.ones(3, dtype=torch.bool))
