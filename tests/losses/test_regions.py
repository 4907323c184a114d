"""Distillation of regions: the slow loop, matching, and which pairs of crops count."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cmd_parts import random_encoded

from eyespot.losses.regions import matched_tokens, regions_across_views


def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_regions_are_the_slow_loop():
    e = random_encoded()
    target = (e["teacher_regions"] / 0.5).softmax(-1)
    pairs = []
    for g in range(2):
        crops = [(x, f) for s in ("", "local_") for x, f in zip(e[f"{s}regions"], e[f"{s}tokens"], strict=True)]
        for v, (logits, features) in enumerate(crops):
            if v == g:
                continue
            costs = []
            for b in range(3):
                others = e["teacher_tokens"][g, b].tolist()
                for row, f in zip(logits[b].tolist(), features[b].tolist(), strict=True):
                    best = max(range(len(others)), key=lambda u: cosine(f, others[u]))
                    q = softmax([x / 0.1 for x in row])
                    costs.append(-sum(p * math.log(x) for p, x in zip(target[g, b, best].tolist(), q, strict=True)))
            pairs.append(sum(costs) / len(costs))
    sizes = [[e[f"{s}{what}"] for s in ("", "local_")] for what in ("regions", "tokens")]
    found = regions_across_views(*sizes, target, e["teacher_tokens"], 0.1)
    assert found.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


def test_matching_is_many_to_one_and_by_direction_alone():
    mine, others = torch.tensor([[[[1.0, 0.1], [9.0, 0.0]]]]), torch.tensor([[[0.0, 5.0], [0.1, 0.0]]])
    assert matched_tokens(mine, others).tolist() == [[[1, 1]]]


def test_equal_tokens_are_matched_in_place():
    tokens = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    for g in range(2):
        assert matched_tokens(tokens[g : g + 1], 3 * tokens[g]).tolist() == [[list(range(6))] * 3]


@pytest.mark.parametrize("local", [0, 2, 8])
def test_there_are_two_pairs_for_each_crop_but_one(local, monkeypatch):
    """2 (V - 1) pairs, of which each counts alike: 18 for 2 + 8."""
    e = random_encoded(local=local)
    sizes = ["", "local_"] if local else [""]
    regions, tokens = ([e[f"{s}{what}"] for s in sizes] for what in ("regions", "tokens"))
    target, n, seen = e["teacher_regions"].softmax(-1), 2 + local, []

    def counted(x, others):
        seen.extend(range(len(x)))
        return matched_tokens(x, others)

    monkeypatch.setattr("eyespot.losses.regions.matched_tokens", counted)
    whole = regions_across_views(regions, tokens, target, e["teacher_tokens"])
    assert len(seen) == 2 * (n - 1) and (local < 8 or len(seen) == 18)
    # a crop is never compared with itself: with all but one pair of logits uniform only that pair differs from log K
    if local == 0:
        flat = torch.zeros_like(regions[0])
        flat[0] = regions[0][0]  # crop 0 stands in one pair of two
        alone = regions_across_views([flat], tokens, target, e["teacher_tokens"])
        match = matched_tokens(tokens[0][:1], e["teacher_tokens"][1])[0]
        wanted = target[1].gather(1, match[..., None].expand(-1, -1, 7))
        pair = -(wanted * (regions[0][0] / 0.1).log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(alone, (pair + math.log(7)) / 2)
        assert not torch.equal(whole, alone)
