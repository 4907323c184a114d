"""Masked image modelling losses: recorded numbers, slow loops, stated properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyespot.errors import UserError
from eyespot.losses.masked import mae_loss, normalise_patches, patchify, simmim_loss, unpatchify
from eyespot.views.masks import random_mask, simmim_mask


def tensors(arrays):
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


@pytest.mark.golden
def test_mae_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("masked_bases__losses")
    a = tensors(arrays)
    _, mask, _ = random_mask(a["mae_noise"], params["mae_ratio"])
    torch.testing.assert_close(mask.float(), a["mae_mask"])
    loss = mae_loss(a["mae_pred"], patchify(a["mae_img"], params["patch"]), mask)
    torch.testing.assert_close(loss, a["mae_loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_simmim_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("masked_bases__losses")
    a = tensors(arrays)
    loss = simmim_loss(a["sim_rec"], a["mae_img"], a["sim_mask"], params["patch"])
    torch.testing.assert_close(loss, a["sim_loss"], rtol=1e-4, atol=1e-4)
    unit, size = params["simmim_mask_patch"], params["img"]
    made = simmim_mask(torch.rand(3, (size // unit) ** 2), size, unit, params["patch"], params["simmim_ratio"])
    assert int(made[0].sum()) == int(a["sim_mask"][0].sum())


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_patches_are_row_column_channel(patch, rows, columns, channels):
    x = torch.arange(2 * channels * rows * patch * columns * patch).view(2, channels, rows * patch, columns * patch)
    out = patchify(x, patch)
    assert out.shape == (2, rows * columns, patch * patch * channels)
    for place in range(rows * columns):
        top, left = place // columns * patch, place % columns * patch
        block = x[1, :, top : top + patch, left : left + patch].permute(1, 2, 0)
        assert torch.equal(out[1, place], block.flatten())
    assert torch.equal(unpatchify(out, patch, (rows, columns)), x)


def test_patches_must_fit():
    with pytest.raises(UserError, match="not a multiple of the patch"):
        patchify(torch.rand(1, 3, 8, 9), 4)


def test_normalised_with_the_unbiased_variance():
    t = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    out = normalise_patches(t)
    var = sum((v - 3) ** 2 for v in (1, 2, 3, 6)) / 3
    torch.testing.assert_close(out[0], (t[0] - 3) / math.sqrt(var + 1e-6))
    assert out[1].abs().sum() == 0


def test_mae_against_a_loop_and_blind_to_visible_patches():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 6).double()
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]).bool()
    for norm in (True, False):
        wanted = normalise_patches(target) if norm else target
        errors = [((prediction[b, i] - wanted[b, i]) ** 2).mean() for b in range(2) for i in range(5) if mask[b, i]]
        torch.testing.assert_close(mae_loss(prediction, target, mask, norm), torch.stack(errors).mean())
    other = torch.where(mask[..., None], prediction, torch.full_like(prediction, 7.0))
    assert mae_loss(other, target, mask) == mae_loss(prediction, target, mask)


def test_mae_loss_in_full_precision_inside_autocast():
    prediction, target = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    mask = torch.ones(2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mae_loss(prediction.bfloat16(), target, mask).dtype == torch.float32


def test_simmim_against_a_loop():
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 8, 8).double(), torch.rand(2, 3, 8, 8).double()
    mask = torch.rand(2, 4, 4) < 0.5
    total, count = 0.0, 0
    for b in range(2):
        for r in range(8):
            for c in range(8):
                if mask[b, r // 2, c // 2]:
                    total += float((x[b, :, r, c] - y[b, :, r, c]).abs().sum())
                    count += 1
    assert float(simmim_loss(x, y, mask, 2)) == pytest.approx(total / (count + 1e-5) / 3)


def test_simmim_units_at_192_px():
    mask = simmim_mask(torch.rand(2, 36), 192, 32, 4)
    assert mask.shape == (2, 48, 48)
    assert int(mask[0].sum()) == 22 * 64


def test_simmim_of_a_batch_is_the_mean_of_its_parts():
    x, y = torch.rand(4, 3, 8, 8).double(), torch.rand(4, 3, 8, 8).double()
    mask = simmim_mask(torch.rand(4, 4), 8, 4, 2, 0.5)
    parts = [simmim_loss(x[i : i + 2], y[i : i + 2], mask[i : i + 2], 2, eps=0.0) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, simmim_loss(x, y, mask, 2, eps=0.0), rtol=1e-13, atol=0)


def test_simmim_limits():
    x, none = torch.rand(2, 3, 8, 8), torch.zeros(2, 4, 4, dtype=torch.bool)
    assert simmim_loss(x, x + 1, none, 2) == 0
    assert simmim_loss(x, x, ~none, 2) == 0
    assert float(simmim_loss(x, x + 0.25, ~none, 2)) == pytest.approx(0.25)
