"""Spectra: recorded numbers, identities of the Fourier transform, the checks of the paper's sheet."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyespot.errors import UserError
from eyespot.losses.frequency import focal_weight, keep_frequencies, spectral_distance, spectrum
from eyespot.nets.backbones import IMAGENET_MEAN, IMAGENET_STD
from eyespot.process import global_mean
from eyespot.views.masks import frequency_mask

LOW = torch.tensor([True])


def pictures(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
def test_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("mfm__mask_corrupt_loss")
    a = {k: torch.from_numpy(v) for k, v in arrays.items()}
    low = torch.tensor([n % 2 == 0 for n in range(len(a["x"]))])
    mask = frequency_mask(p["img_size"], p["mask_radius1"], p["mask_radius2"], low)
    torch.testing.assert_close(mask[:, 0].to(a["mask"].dtype), a["mask"])
    torch.testing.assert_close(keep_frequencies(a["x"], mask), a["corrupted"], rtol=0, atol=1e-5)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close((a["x"] - mean) / std, a["target"], rtol=0, atol=1e-5)
    rebuilt, target = spectrum(a["rec"]), spectrum(a["target"])
    distance = spectral_distance(rebuilt, target, p["loss_gamma"], p["eps"])
    if p["with_matrix"]:
        distance = distance * focal_weight(rebuilt, target, p["matrix_gamma"])
    torch.testing.assert_close(distance[0], a["freq_dist_first"], rtol=1e-4, atol=1e-4)
    removed = (mask == 0).expand_as(distance)
    torch.testing.assert_close(global_mean(distance, removed), a["loss_masked"], rtol=1e-4, atol=0)
    torch.testing.assert_close(global_mean(distance), a["loss_all"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [8, 9, (6, 10)])
def test_masks_are_complements_and_the_constant_is_low(size):
    low, high = (frequency_mask(size, 2.5, 999, torch.tensor([v])) for v in (True, False))
    assert bool((low + high == 1).all())
    h, w = (size, size) if isinstance(size, int) else size
    assert low[0, 0, h // 2, w // 2] == 1
    assert frequency_mask(8, 2, 999, LOW)[0, 0, 4, 6] == 0, "kept strictly inside the radius"
    assert frequency_mask(8, 2, 4, LOW)[0, 0, 4, 0] == 1, "and from the outer radius on"


@given(st.integers(4, 9), st.floats(0, 8))
def test_low_and_high_sum_to_the_picture(size, radius):
    x = pictures(2, 3, size, size)
    parts = [
        keep_frequencies(x, frequency_mask(size, radius, 999, torch.tensor([v])), clamp=False) for v in (True, False)
    ]
    torch.testing.assert_close(parts[0] + parts[1], x)


def test_radii_at_the_ends():
    x = pictures(1, 3, 8, 8)
    assert keep_frequencies(x, frequency_mask(8, 0, 999, LOW)).abs().max() == 0
    everything = frequency_mask(8, 99, 999, LOW)
    torch.testing.assert_close(keep_frequencies(x, everything), x)
    distance = spectral_distance(spectrum(x), spectrum(1 - x))
    assert global_mean(distance, (everything == 0).expand_as(distance)) == 0, "nothing removed, nothing counted"


def test_a_constant_picture_is_all_low():
    x = torch.full((1, 2, 8, 8), 0.3, dtype=torch.float64)
    torch.testing.assert_close(keep_frequencies(x, frequency_mask(8, 2, 999, LOW)), x)
    torch.testing.assert_close(keep_frequencies(x, frequency_mask(8, 2, 999, ~LOW)), torch.zeros_like(x))


def test_corruption_is_clamped_and_shared_by_the_channels():
    x = pictures(1, 1, 8, 8).expand(-1, 3, -1, -1)
    high = frequency_mask(8, 2, 999, ~LOW)
    free = keep_frequencies(x, high, clamp=False)
    assert free.min() < 0
    torch.testing.assert_close(keep_frequencies(x, high), free.clamp(0, 1))
    torch.testing.assert_close(free[:, 0], free[:, 2])


def test_parseval():
    a, b = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1)
    squared = spectral_distance(spectrum(a), spectrum(b), gamma=2.0)
    torch.testing.assert_close(squared.sum(), (a - b).square().sum())


def test_equal_pictures_are_a_millionth_apart():
    x = pictures(2, 3, 8, 8)
    distance = spectral_distance(spectrum(x), spectrum(x))
    torch.testing.assert_close(distance, torch.full_like(distance, 1e-6))


def test_spectrum_against_numpy_with_the_constant_in_the_middle():
    x = pictures(1, 2, 6, 9)
    expected = np.fft.fftshift(np.fft.fft2(x.numpy(), norm="ortho"), axes=(-2, -1))
    torch.testing.assert_close(spectrum(x), torch.from_numpy(expected))
    constant = spectrum(torch.ones(1, 1, 8, 8))
    assert constant[0, 0, 4, 4].abs() == pytest.approx(8.0)


def test_sub_images_have_their_own_spectra():
    x = pictures(2, 3, 8, 12)
    out = spectrum(x, patch_factor=2)
    assert out.shape == (8, 3, 4, 6)
    torch.testing.assert_close(out[4 + 2], spectrum(x[1:2, :, 4:, :6])[0])
    with pytest.raises(UserError, match="patch_factor=5 does not divide"):
        spectrum(x, patch_factor=5)


def test_focal_weight():
    a = spectrum(pictures(2, 3, 8, 8)).requires_grad_()
    b = spectrum(pictures(2, 3, 8, 8, seed=1))
    gap = (a - b).detach().abs()
    weight = focal_weight(a, b, alpha=2.0)
    torch.testing.assert_close(weight, gap**2 / (gap**2).amax((2, 3), keepdim=True))
    assert not weight.requires_grad and weight.max() == 1
    logged = focal_weight(a, b, alpha=1.0, log=True)
    torch.testing.assert_close(logged, gap.log1p() / gap.log1p().amax((2, 3), keepdim=True))
    assert focal_weight(b, b).abs().max() == 0, "no weight where nothing differs"


def test_full_precision_inside_autocast():
    x = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x.bfloat16()
        kept = keep_frequencies(half, frequency_mask(8, 2, 999, LOW))
        assert kept.dtype == torch.float32
        distance = spectral_distance(spectrum(half), spectrum(x))
    assert distance.dtype == torch.float32
