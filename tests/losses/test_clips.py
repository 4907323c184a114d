"""CVRL's contrast of clips and its law of intervals: recorded numbers, slow versions, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyespot.data.video import window_frames
from eyespot.losses.clips import clip_contrast, interval
from eyespot.losses.contrastive import cosines, nt_xent
from eyespot.views.filters import gaussian_blur, solarize_


def pair(n=5, dim=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.golden
def test_the_loss_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("cvrl__loss_and_sampling")
    a, b = torch.from_numpy(arrays["hidden"]).chunk(2)
    forth, back = clip_contrast(a, b, p["temperature"])
    assert float(forth) == pytest.approx(float(arrays["loss_a"]), rel=1e-5)
    assert float(back) == pytest.approx(float(arrays["loss_b"]), rel=1e-5)
    assert float(forth + back) == pytest.approx(float(arrays["loss"]), rel=1e-5)
    found = (cosines(a, b).argmax(1) == torch.arange(len(a))).float().mean()
    assert float(found) == float(arrays["contrast_acc"])


@pytest.mark.golden
def test_the_sampling_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("cvrl__loss_and_sampling")
    most = p["video_len"] - (p["num_frames"] - 1) * p["stride"]
    assert most == p["max_offset"]
    assert np.array_equal(interval(arrays["u"].astype(np.float64), most), arrays["delta"])
    for start, frames in zip(arrays["short_video_offsets"], arrays["short_video_indices"], strict=True):
        assert np.array_equal(window_frames((start, p["num_frames"], p["stride"]), p["short_len"]), frames)


@pytest.mark.golden
def test_blur_and_solarisation_agree_with_the_recorded_numbers(golden):
    """Of the blur what is no nearer to the border than its kernel reaches: there it mirrors, and the recorded one
    puts zeros."""
    arrays, p = golden("cvrl__loss_and_sampling")
    pictures = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous()
    solarized = solarize_(pictures.clone(), torch.arange(2), 0.5).permute(0, 2, 3, 1)
    np.testing.assert_allclose(solarized, arrays["solarized"], atol=1e-5)
    radius = p["blur_kernel_arg"] // 2
    inner = (slice(None), slice(radius, -radius), slice(radius, -radius))
    blurred = gaussian_blur(pictures, torch.full((2,), p["sigma"]), radius).permute(0, 2, 3, 1)
    np.testing.assert_allclose(blurred[inner], arrays["blurred"][inner], atol=1e-5)


def slow(a, b, temperature):
    """Loops over clips."""
    unit = lambda x: [row / row.norm() for row in x]  # noqa: E731
    a, b = unit(a), unit(b)
    total = []
    for one, other in ((a, b), (b, a)):
        rows = []
        for i, x in enumerate(one):
            others = [float(x @ y) for y in other] + [float(x @ y) for j, y in enumerate(one) if j != i]
            denominator = sum(math.exp(s / temperature) for s in others)
            rows.append(-math.log(math.exp(float(x @ other[i]) / temperature) / denominator))
        total.append(sum(rows) / len(rows))
    return total


@given(st.integers(1, 6), st.floats(0.1, 2), st.integers(0, 99))
def test_equals_a_slow_version_and_twice_nt_xent(n, temperature, seed):
    a, b = pair(n, seed=seed)
    found = clip_contrast(a, b, temperature)
    assert [float(v) for v in found] == pytest.approx(slow(a, b, temperature), rel=1e-9, abs=1e-12)
    assert float(sum(found)) == pytest.approx(2 * float(nt_xent(a, b, temperature)), rel=1e-9, abs=1e-12)


def test_limits():
    a, b = pair(1)
    assert [float(v) for v in clip_contrast(a, b)] == [0.0, 0.0]  # only the positive
    same = torch.eye(2, 4, dtype=torch.float64)
    assert float(sum(clip_contrast(same, same, 1.0))) == pytest.approx(2 * math.log(1 + 2 / math.e))
    equal = torch.ones(6, 3)
    assert float(clip_contrast(equal, equal)[0]) == pytest.approx(math.log(11))


def test_scale_and_order_of_the_clips_do_not_matter():
    a, b = pair()
    forth, back = clip_contrast(a, b)
    swapped = clip_contrast(b, a)
    assert float(forth) == pytest.approx(float(swapped[1])) and float(back) == pytest.approx(float(swapped[0]))
    torch.testing.assert_close(torch.stack(clip_contrast(3 * a, 0.2 * b)), torch.stack([forth, back]))


def test_gradients_are_finite_on_both_sides():
    a, b = (x.float().requires_grad_() for x in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(clip_contrast(a, b))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(bool(x.grad.isfinite().all()) and float(x.grad.abs().sum()) > 0 for x in (a, b))


# --- the interval -----------------------------------------------------------------------------------------------------
def test_intervals_by_hand():
    assert int(interval(0.0, 90)) == 0 and int(interval(0.75, 100)) == 50 and int(interval(0.999999, 100)) == 99
    assert int(interval(0.25, 100, "uniform")) == 25 and int(interval(0.25, 100, "increasing")) == 50


@pytest.mark.parametrize(("law", "mean"), [("decreasing", 1 / 3), ("uniform", 1 / 2), ("increasing", 2 / 3)])
def test_intervals_have_their_law(law, mean):
    u = (np.arange(20_000) + 0.5) / 20_000
    found = interval(u, 300, law)
    assert found.min() >= 0 and found.max() <= 299
    assert found.mean() / 300 == pytest.approx(mean, abs=0.005)
    counts = np.histogram(found, bins=3, range=(0, 300))[0] / len(u)
    expected = {"decreasing": (5, 3, 1), "uniform": (3, 3, 3), "increasing": (1, 3, 5)}[law]
    assert counts == pytest.approx(np.array(expected) / 9, abs=0.01)
