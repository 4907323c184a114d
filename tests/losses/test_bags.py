"""Bags of regions: cases by hand and limits; slow loops are in tests/methods/test_cmd.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from eyespot.losses.bags import divergence, entropy, equal_weights, log_bag, log_distribution, top_weights
from eyespot.nets.attention import GatedAttention


def test_a_case_by_hand():
    """Places that say (1, 0) and (0, 1) are the bag (1/2, 1/2), whatever the mean of their logits says."""
    log_p = log_distribution(torch.tensor([[30.0, 0.0], [0.0, 60.0]]), 1.0)
    bag = log_bag(log_p, equal_weights(log_p))
    assert bag.exp().tolist() == pytest.approx([0.5, 0.5])
    quarter = torch.tensor([0.25, 0.75]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(bag, quarter).item() == pytest.approx(expected)
    assert entropy(bag).item() == pytest.approx(math.log(2))
    tilted = log_bag(log_p, torch.tensor([0.25, 0.75]).log())
    assert tilted.exp().tolist() == pytest.approx([0.25, 0.75])


def test_attention_without_a_score_is_the_mean():
    gate, tokens = GatedAttention(5, 3), torch.randn(2, 6, 5)
    torch.testing.assert_close(gate(tokens).exp().sum(-1), torch.ones(2))
    nn.init.zeros_(gate.score.weight)
    torch.testing.assert_close(gate(tokens), torch.full((2, 6), -math.log(6)))


def test_the_surest_share_has_at_least_one_token():
    log_p = log_distribution(torch.eye(9) * torch.arange(1.0, 10.0)[:, None], 1.0)
    assert top_weights(log_p, 0.0).exp().tolist() == [0.0] * 8 + [1.0]
    assert top_weights(log_p, 0.2).exp().tolist() == [0.0] * 7 + [0.5] * 2
    assert top_weights(log_p, 1.0).exp().tolist() == pytest.approx([1 / 9] * 9)


def test_agreement_is_never_negative_and_has_its_limits():
    log_p = log_distribution(torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(0)), 0.2)
    q = log_distribution(torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(1)), 0.2)
    assert divergence(log_p, q).item() > 0
    assert divergence(log_p, log_p).item() == 0
    uniform = torch.full_like(q, -math.log(9))
    assert divergence(log_p, uniform).item() == pytest.approx(math.log(9) - entropy(log_p).mean().item(), rel=1e-5)
