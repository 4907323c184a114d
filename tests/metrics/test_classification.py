"""Top-k accuracy with ties and missing numbers."""

import pytest
import torch

from eyespot.metrics.classification import top_k_accuracy, true_ranks


def test_ranks_agree_with_sorting():
    scores = torch.randint(0, 4, (200, 9), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(1))
    order = scores.sort(dim=1, descending=True, stable=True).indices
    expected = (order == labels[:, None]).int().argmax(1)
    assert torch.equal(true_ranks(scores, labels), expected)
    for k in (1, 3, 5):
        assert top_k_accuracy(scores, labels, k) == pytest.approx(100 * (expected < k).double().mean().item())


def test_a_score_that_is_not_a_number_is_never_right():
    scores = torch.tensor([[float("nan")] * 3, [0.0, 1.0, float("nan")]])
    assert top_k_accuracy(scores, torch.tensor([0, 1]), 1) == 50.0


def test_wrong_shapes():
    with pytest.raises(ValueError, match="labels"):
        true_ranks(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError):
        top_k_accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
