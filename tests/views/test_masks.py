"""Masks: counts, shapes and the recorded numbers of MAE, SimMIM and MFM."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.views.masks import (
    block_mask,
    context_and_targets,
    first_tokens,
    frequency_mask,
    random_mask,
    simmim_mask,
    tube_mask,
)


@pytest.mark.golden
def test_random_mask_equals_maes(golden):
    arrays, params = golden("masked_bases__losses")
    keep, mask, restore = random_mask(torch.from_numpy(arrays["mae_noise"]), params["mae_ratio"])
    np.testing.assert_array_equal(mask.numpy(), arrays["mae_mask"].astype(bool))
    assert not mask.gather(1, keep).any() and keep.shape[1] == (~mask).sum(1)[0]
    tokens = torch.arange(mask.shape[1]).expand_as(mask)
    order = torch.from_numpy(arrays["mae_noise"]).argsort(1)
    assert torch.equal(order.gather(1, restore), tokens)


@settings(max_examples=50)
@given(st.integers(1, 80), st.floats(0, 1), st.integers(0, 999))
def test_random_mask_keeps_the_stated_count_and_restores(length, ratio, seed):
    noise = Draws(seed=seed, index=range(5)).noise("mask", length)
    keep, mask, restore = random_mask(noise, ratio)
    count = int(length * (1 - ratio))
    assert keep.shape == (5, count) and ((~mask).sum(1) == count).all()
    tokens = torch.arange(length).expand(5, -1) * 10
    removed = noise.argsort(dim=1, stable=True)[:, count:]
    shuffled = torch.cat([tokens.gather(1, keep), tokens.gather(1, removed)], 1)
    assert torch.equal(shuffled.gather(1, restore), tokens)


def test_tube_mask_is_the_same_in_every_slice():
    noise = Draws(index=range(3)).noise("tube", 196)
    mask = tube_mask(noise, 0.9, 8).view(3, 8, 196)
    assert (mask.sum(2) == int(0.9 * 196)).all() and (mask == mask[:, :1]).all()
    assert (mask[0, 0] != mask[1, 0]).any()


@pytest.mark.parametrize(("size", "unit", "patch", "ratio"), [(192, 32, 4, 0.6), (224, 32, 16, 0.6), (160, 32, 8, 0.6)])
def test_simmim_mask_hides_whole_units(size, unit, patch, ratio):
    side, cells = size // unit, unit // patch
    mask = simmim_mask(Draws(index=range(4)).noise("unit", side * side), size, unit, patch, ratio)
    assert mask.shape == (4, size // patch, size // patch)
    units = mask.view(4, side, cells, side, cells).transpose(2, 3).reshape(4, side * side, -1)
    assert (units.all(2) == units.any(2)).all()
    assert (units.all(2).sum(1) == -(-round(ratio * 100) * side * side // 100)).all()


@pytest.mark.golden
def test_simmim_mask_hides_as_many_units_as_recorded(golden):
    arrays, params = golden("masked_bases__losses")
    recorded = torch.from_numpy(arrays["sim_mask"])
    size, unit, patch = params["img"], params["simmim_mask_patch"], params["patch"]
    noise = Draws(index=range(len(recorded))).noise("unit", (size // unit) ** 2)
    mask = simmim_mask(noise, size, unit, patch, params["simmim_ratio"])
    assert mask.shape == recorded.shape and torch.equal(mask.sum((1, 2)), recorded.sum((1, 2)))


@settings(max_examples=40)
@given(st.integers(4, 16), st.integers(4, 16), st.floats(0.05, 0.9), st.integers(0, 999))
def test_block_mask_never_hides_more_than_asked(rows, columns, ratio, seed):
    hidden = int(ratio * rows * columns)
    least = (min(rows, columns) // 3) ** 2
    mask = block_mask(Draws(seed=seed, index=range(6)), (rows, columns), hidden, min_area=least)
    assert mask.shape == (6, rows, columns) and (mask.sum((1, 2)) <= hidden).all()


def test_block_mask_reaches_beits_count_in_blocks():
    n = 200
    mask = block_mask(Draws(index=range(n)), 14, 75)
    count = mask.sum((1, 2)).float()
    assert count.max() <= 75 and count.mean() > 70
    # a hidden token has far more hidden neighbours than in a random mask of the same share
    pairs = (mask[:, 1:] & mask[:, :-1]).sum((1, 2)) / count
    assert pairs.mean() > 0.65
    assert mask.float().mean(0).min() > 0  # no place is never hidden


def test_block_mask_counts_and_draws_are_per_sample():
    hidden = torch.tensor([0, 10, 60, 30])
    mask = block_mask(Draws(index=[3, 4, 5, 6]), 14, hidden, min_area=9)
    assert (mask.sum((1, 2)) <= hidden).all() and not mask[0].any() and mask[2].sum() > 50
    again = block_mask(Draws(index=[6, 5]), 14, hidden[[3, 2]], min_area=9)
    assert torch.equal(again, mask[[3, 2]])


@settings(max_examples=40)
@given(st.integers(4, 16), st.integers(4, 16), st.integers(1, 4), st.integers(0, 999))
def test_context_and_targets_are_disjoint_blocks(rows, columns, targets, seed):
    context, ids = context_and_targets(Draws(seed, 0, seed, range(5)), (rows, columns), targets)
    assert context.shape == (5, rows, columns) and ids.shape[:2] == (5, targets)
    assert ids.min() >= 0 and ids.max() < rows * columns
    for b in range(5):
        assert not context[b].flatten()[ids[b].flatten()].any()
        for block in ids[b]:
            r, c = block // columns, block % columns
            assert len(block) == (r.max() - r.min() + 1) * (c.max() - c.min() + 1)
            assert torch.equal(block, block.sort().values) and len(block.unique()) == len(block)


def test_blocks_have_the_stated_sizes_places_and_least_context():
    sizes, contexts, starts = set(), [], []
    for step in range(60):
        context, ids = context_and_targets(Draws(0, 0, step, range(20)), 14)
        r, c = ids[..., -1] // 14 - ids[..., 0] // 14 + 1, ids[..., -1] % 14 - ids[..., 0] % 14 + 1
        assert len(r.unique()) == len(c.unique()) == 1, "one size for the whole batch"
        sizes.add((int(r[0, 0]), int(c[0, 0])))
        contexts.append(context.sum((1, 2)))
        starts.append(ids[..., 0].flatten())
    heights, widths = zip(*sizes, strict=True)
    # sqrt(196 s a) and sqrt(196 s / a) for s in (.15, .2), a in (.75, 1.5)
    assert {5, 6, 7} <= set(heights) <= {5, 6, 7, 8} and {5, 6, 7} <= set(widths) <= {4, 5, 6, 7}
    assert all(0.8 * 0.15 < h * w / 196 < 1.25 * 0.2 for h, w in sizes)
    assert torch.cat(contexts).min() >= 10
    assert 50 < torch.cat(contexts).float().mean() < 110
    assert set((torch.cat(starts) // 14).tolist()) >= set(range(7)), "blocks start in every row they fit"


def test_context_and_targets_are_per_sample_and_size_per_step():
    whole = context_and_targets(Draws(0, 2, 7, [3, 4, 5]), 8, least=8)
    part = context_and_targets(Draws(0, 2, 7, [5, 3]), 8, least=8)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[[2, 0]], b)
    assert not torch.equal(whole[1], context_and_targets(Draws(0, 3, 7, [3, 4, 5]), 8, least=8)[1])


def test_too_large_targets_leave_what_they_can():
    settings_ = {"target_scale": (0.5, 0.5), "target_aspect": (1.0, 1.0), "least": 12}
    context, _ = context_and_targets(Draws(index=range(30)), 6, 4, **settings_)
    once, _ = context_and_targets(Draws(index=range(30)), 6, 4, **settings_, attempts=1)
    assert (context.sum((1, 2)) >= once.sum((1, 2))).all() and context.sum() > once.sum()


def test_first_tokens_are_the_first_true_places():
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 1, 1]]).bool()
    assert first_tokens(mask, 3).tolist() == [[1, 2, 4], [0, 1, 3]]


@pytest.mark.golden
def test_frequency_mask_equals_mfms(golden):
    arrays, params = golden("mfm__mask_corrupt_loss")
    recorded = torch.from_numpy(arrays["mask"])
    size = params["img_size"]
    low = recorded[:, size // 2, size // 2].bool()
    got = frequency_mask(size, params["mask_radius1"], params["mask_radius2"], low)
    assert torch.equal(got[:, 0].int(), recorded.int())


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_low_and_high_pass_share_out_the_spectrum(size):
    low = frequency_mask(size, 3, 999, torch.tensor([True, True]))
    high = frequency_mask(size, 3, 999, torch.tensor([False, False]))
    assert (low + high == 1).all() and (low[:, 0, size[0] // 2, size[1] // 2] == 1).all()
    assert low[0].sum() == sum(y * y + x * x < 9 for y in range(-3, 4) for x in range(-3, 4))
    ring = frequency_mask(size, 2, 4, torch.tensor([False]))
    y, x = (ring[0, 0] == 1).nonzero(as_tuple=True)
    distance = ((y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2).float().sqrt()
    assert distance.min() >= 2 and distance.max() < 4
    assert not frequency_mask(size, 0, math.inf, torch.tensor([True])).any()


def test_mistakes_are_named():
    noise = torch.rand(2, 9)
    with pytest.raises(UserError, match=r"1\.5"):
        random_mask(noise, 1.5)
    with pytest.raises(UserError, match="31"):
        simmim_mask(noise, 96, 31, 1)
    with pytest.raises(UserError, match="36"):
        simmim_mask(noise, 192, 32, 4)
