"""Metrics of pictures with captions and of sentences: recorded numbers, scipy's, limits, ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from eyespot.metrics.image_text import (
    average_ranks,
    class_weight,
    first_ranks,
    median_rank,
    pearson,
    recall,
    retrieval_metrics,
    spearman,
)
from eyespot.metrics.retrieval import ranking


def five_each(n, captions):
    return (torch.arange(captions) % n)[None] == torch.arange(n)[:, None]


def both_ranks(scores, relevant):
    return first_ranks(scores, relevant), first_ranks(scores.T, relevant.T)


@pytest.mark.golden
def test_recalls_agree_with_the_recorded_numbers(golden):
    arrays, p = golden("grounded_sentences__recall")
    image, caption = (torch.from_numpy(arrays[k]) for k in ("images", "captions"))
    to_text, to_image = both_ranks(image @ caption.T, five_each(p["n"], len(caption)))
    for name, ranks in (("c2i", to_image), ("i2c", to_text)):
        np.testing.assert_allclose([recall(ranks, k) for k in (1, 5, 10)], arrays[f"{name}_recall"], rtol=1e-5)
        assert median_rank(ranks) == float(arrays[f"{name}_median"])
        assert float(ranks.double().mean()) == pytest.approx(float(arrays[f"{name}_mean"]))


@pytest.mark.golden
def test_classes_agree_with_the_recorded_numbers(golden):
    arrays, p = golden("clip__zeroshot_ensemble")
    text = torch.from_numpy(arrays["text_embeddings"])
    weights = torch.stack([class_weight(text[k]) for k in range(p["classes"])])
    np.testing.assert_allclose(weights.T, arrays["classifier"], rtol=1e-5, atol=1e-5)
    image = F.normalize(torch.from_numpy(arrays["image_embeddings"]), dim=1)
    np.testing.assert_array_equal((image @ weights.T).argmax(1), arrays["predictions"])


def test_one_prompt_several_times_is_one_prompt():
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_weight(x.expand(4, -1)), F.normalize(x, dim=1)[0])
    torch.testing.assert_close(class_weight(torch.cat([x, 3 * x])), class_weight(x))
    torch.testing.assert_close(class_weight(torch.cat([x, 3 * x]), unit=False), 2 * x[0])


def test_perfect_vectors_find_all_and_constant_ones_nothing():
    relevant = five_each(8, 40)
    perfect = retrieval_metrics(*both_ranks(relevant.double(), relevant))
    assert [perfect[f"{d}_R@{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)] == [100.0] * 6
    assert perfect["rsum"] == 600 and perfect["image_to_text_median_rank"] == 1
    constant = retrieval_metrics(*both_ranks(torch.zeros(8, 40), relevant))
    assert constant["rsum"] < 110 and constant["text_to_image_R@5"] == 0


@given(st.integers(0, 50))
def test_recall_grows_with_k_and_a_hit_is_any_caption(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, relevant = torch.randn(6, 30, generator=generator), five_each(6, 30)
    found = retrieval_metrics(*both_ranks(scores, relevant))
    assert found["image_to_text_R@1"] <= found["image_to_text_R@5"] <= found["image_to_text_R@10"]
    best = [
        1 + min((row > row[k]).sum().item() for k in range(30) if own[k])
        for row, own in zip(scores, relevant, strict=True)
    ]
    assert first_ranks(scores, relevant).tolist() == best
    assert ranking(scores, relevant).first.tolist() == best
    assert first_ranks(scores, relevant & False).tolist() == [31] * 6


numbers = st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=20)


@given(numbers, st.integers(0, 20))
def test_correlations_are_scipys(values, seed):
    x = torch.tensor(values)
    y = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(values)).astype(np.float32))
    np.testing.assert_allclose(average_ranks(x), stats.rankdata(x.numpy()))
    if x.std() == 0 or y.std() == 0:
        assert spearman(x, y) == pearson(x, y) == 0
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-12)
        assert pearson(x, y) == pytest.approx(
            stats.pearsonr(x.double().numpy(), y.double().numpy()).statistic, abs=1e-9
        )
