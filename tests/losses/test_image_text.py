"""Losses of pictures with captions: recorded numbers, slow versions, limits, symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eyespot.losses.image_text import head_diversity, hinge_pairs, sigmoid_pairs, symmetric_contrast, word_prediction


def unit(rows=6, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)


def leaf(array):
    return torch.from_numpy(np.asarray(array)).clone().requires_grad_()


@pytest.mark.golden
def test_clip_and_siglip_agree_with_the_recorded_numbers(golden):
    arrays, p = golden("clip__loss_and_gradients")
    for prefix, loss in (("", symmetric_contrast), ("siglip_", sigmoid_pairs)):
        image, text = leaf(arrays["image"]), leaf(arrays["text"])
        scale, bias = (torch.tensor(v, requires_grad=True) for v in (p["scale"], p["bias"]))
        value = loss(scale * image @ text.T + (bias if prefix else 0.0))
        value.backward()
        assert float(value.detach()) == pytest.approx(float(arrays[f"{prefix}loss"]), rel=1e-5)
        for name, tensor in (("image", image), ("text", text), ("scale", scale)):
            np.testing.assert_allclose(tensor.grad, arrays[f"{prefix}grad_{name}"], rtol=1e-4, atol=1e-5)
        if prefix:
            np.testing.assert_allclose(bias.grad, arrays["siglip_grad_bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.golden
def test_hinge_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("grounded_sentences__hinge_loss")
    image, caption = leaf(arrays["image"]), leaf(arrays["caption"])
    loss = hinge_pairs(image @ caption.T, p["margin"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), rel=1e-5)
    np.testing.assert_allclose(image.grad, arrays["grad_image"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(caption.grad, arrays["grad_caption"], rtol=1e-4, atol=1e-6)


def slow_contrast(logits, pairs):
    total, n = 0.0, len(logits)
    for matrix, belongs in ((logits, pairs), (logits.T, pairs.T)):
        for i in range(n):
            own = [j for j in range(n) if belongs[i, j]]
            for j in own:
                total -= math.log(math.exp(matrix[i, j]) / sum(math.exp(v) for v in matrix[i])) / len(own) / (2 * n)
    return total


def related(n, seed):
    words = np.random.default_rng(seed).integers(0, n, n)
    return torch.from_numpy(words[:, None] == words)


@given(st.integers(2, 7), st.integers(0, 50))
def test_contrast_with_several_pairs_equals_a_slow_version(n, seed):
    logits, pairs = 5 * unit(n, 3, seed) @ unit(n, 3, seed + 1).T, related(n, seed)
    assert float(symmetric_contrast(logits, pairs)) == pytest.approx(slow_contrast(logits, pairs), rel=1e-9)


@given(st.integers(2, 7), st.integers(0, 50))
def test_hinge_equals_a_slow_version(n, seed):
    s, pairs, total = unit(n, 3, seed) @ unit(n, 3, seed + 1).T, related(n, seed), 0.0
    for i in range(n):
        for j in range(n):
            if i != j and not pairs[i, j]:
                total += max(0, 0.3 + float(s[i, j] - s[j, j])) + max(0, 0.3 + float(s[i, j] - s[i, i]))
    assert float(hinge_pairs(s, 0.3, pairs)) == pytest.approx(total / n**2, rel=1e-9)


def test_the_diagonal_alone_is_the_usual_case():
    s, eye = 4 * unit() @ unit(seed=1).T, torch.eye(6, dtype=torch.bool)
    for loss in (symmetric_contrast, sigmoid_pairs):
        torch.testing.assert_close(loss(s), loss(s, eye))
    torch.testing.assert_close(hinge_pairs(s), hinge_pairs(s, pairs=eye))


def test_numbers_by_hand():
    eye = torch.eye(2, dtype=torch.float64)
    assert float(symmetric_contrast(eye)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(symmetric_contrast(0 * eye)) == pytest.approx(math.log(2))
    assert float(sigmoid_pairs(eye)) == pytest.approx(1.006409, abs=1e-6)
    assert float(hinge_pairs(torch.ones(2, 2))) == pytest.approx(0.2)
    assert float(hinge_pairs(eye)) == 0
    assert float(hinge_pairs(torch.ones(5, 5), 0.3)) == pytest.approx(2 * 0.3 * 4 / 5)


@pytest.mark.parametrize("loss", [symmetric_contrast, sigmoid_pairs, hinge_pairs])
def test_order_of_the_pairs_and_the_side_do_not_matter(loss):
    logits = 3 * unit() @ unit(seed=1).T
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(logits[order][:, order]), loss(logits))
    torch.testing.assert_close(loss(logits.T), loss(logits))


def test_equal_captions_no_longer_repel():
    """Two pictures with one caption: with the diagonal alone the loss cannot fall below log 2 for them."""
    image = torch.tensor([[1.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    logits, belongs = 100 * image @ image.T, torch.tensor([0, 0, 1])[:, None] == torch.tensor([0, 0, 1])
    assert float(symmetric_contrast(logits)) == pytest.approx(2 / 3 * math.log(2))
    assert float(hinge_pairs(image @ image.T, pairs=belongs)) == 0 < float(hinge_pairs(image @ image.T))
    assert float(sigmoid_pairs(logits - 50, belongs)) < 1e-10 < float(sigmoid_pairs(logits - 50))


def test_heads_that_differ_cost_nothing_and_equal_ones_do():
    a, b = torch.zeros(3, 4, dtype=torch.float64), torch.full((3, 4), 0.1, dtype=torch.float64)
    distance = float((a - b).norm())
    assert float(head_diversity([a, b])) == pytest.approx(1 - distance, abs=1e-6)
    assert float(head_diversity([a, a + 1])) == 0 == float(head_diversity([a]))
    assert float(head_diversity([a, a, a])) == pytest.approx(3, abs=1e-5)
    batch = torch.stack([a, a]), torch.stack([b, a + 1])
    assert float(head_diversity(batch)) == pytest.approx((1 - distance) / 2, abs=1e-6)
    x = a.clone().requires_grad_()
    head_diversity([x, x]).backward()
    assert bool(x.grad.isfinite().all())


def test_words_against_a_slow_version():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.tensor([[2.0, 0, 1, 0, 0], [0, 0, 0, 0, 3], [1, 1, 1, 1, 1]], dtype=torch.float64)
    p = logits.softmax(1)
    slow = [
        -sum(float(c * torch.log(q)) for c, q in zip(row, ps, strict=True)) / float(row.sum())
        for row, ps in zip(counts, p, strict=True)
    ]
    assert float(word_prediction(logits, counts)) == pytest.approx(sum(slow) / 3)
    assert float(word_prediction(0 * logits, counts)) == pytest.approx(math.log(5))
    assert float(word_prediction(logits, 0 * counts)) == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("loss", [symmetric_contrast, sigmoid_pairs, hinge_pairs])
def test_gradients_are_finite(loss, scale):
    for image in (unit(), torch.ones(6, 4, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.float64)):
        x = image.clone().requires_grad_()
        loss(scale * x @ unit(seed=1).T).backward()
        assert bool(x.grad.isfinite().all())
