"""Farthest points, neighbours, groups and interpolation: recorded numbers, slow loops, stated properties."""

import pytest
import torch

from eyespot.errors import UserError
from eyespot.nets.point_ops import (
    farthest_points,
    gathered,
    hierarchy,
    interpolated,
    nearest_points,
    pass_down,
)


@pytest.mark.golden
def test_sampling_grouping_and_interpolation_agree_with_the_recorded_numbers(golden):
    arrays, params = golden("point_bases__fps_knn_chamfer")
    points = torch.from_numpy(arrays["points"])[None]
    chosen = farthest_points(points, params["num_group"])
    assert torch.equal(chosen[0], torch.from_numpy(arrays["fps_index"]).long())
    centres = gathered(points, chosen)
    index = nearest_points(centres, points, params["group_size"])
    assert torch.equal(index[0], torch.from_numpy(arrays["knn_index"]).long())
    groups = gathered(points, index) - centres[:, :, None]
    torch.testing.assert_close(groups[0], torch.from_numpy(arrays["groups"]), rtol=1e-5, atol=1e-5)
    features = torch.from_numpy(arrays["center_feature"])[None]
    found = interpolated(points, centres, features, params["interp_eps"])
    torch.testing.assert_close(found[0], torch.from_numpy(arrays["interpolated"]), rtol=1e-5, atol=1e-5)


@pytest.mark.golden
def test_the_mask_of_the_top_is_passed_down_as_recorded(golden):
    arrays, params = golden("i2p_mae__multiscale_mask")
    points = torch.from_numpy(arrays["points"])
    levels = hierarchy(points, tuple(params["num_groups"]), tuple(params["group_sizes"]))
    top = torch.from_numpy(arrays[f"masked_{len(levels) - 1}"]) == 0
    visible = pass_down(top, levels)
    for k, level in enumerate(levels):
        torch.testing.assert_close(level.centres, torch.from_numpy(arrays[f"center_{k}"]), rtol=0, atol=1e-6)
        assert torch.equal(level.index, torch.from_numpy(arrays[f"group_index_{k}"]).long())
        assert torch.equal(level.centres, gathered(points, level.chosen))
        differs = visible[k] != (torch.from_numpy(arrays[f"masked_{k}"]) == 0)
        differs[0, 0] = False  # the published code always shows token 0 of sample 0
        assert not differs.any()


def test_farthest_points_against_a_loop():
    points = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    found = farthest_points(points, 20)
    for b in range(2):
        chosen, steps = [0], []
        for _ in range(19):
            gaps = [min(float((p - points[b, c]).square().sum()) for c in chosen) for p in points[b]]
            steps.append(max(gaps))
            chosen.append(gaps.index(max(gaps)))
        assert found[b].tolist() == chosen
        assert sorted(chosen) == list(range(20))  # a permutation, and the steps never grow
        assert steps == sorted(steps, reverse=True)


def test_each_visible_group_shows_all_its_members_and_nothing_else_is_visible():
    points = torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(1))
    levels = hierarchy(points, (32, 16, 8), (6, 4, 3))
    top = torch.zeros(3, 8, dtype=torch.bool)
    top[0, 2], top[1, :3], top[2] = True, True, True
    visible = pass_down(top, levels)
    for upper, lower, level in zip(visible[1:], visible[:-1], levels[1:], strict=True):
        for b in range(3):
            expected = {int(i) for g in range(upper.shape[1]) if upper[b, g] for i in level.index[b, g]}
            assert set(lower[b].nonzero()[:, 0].tolist()) == expected


def test_interpolation_gives_a_centre_its_own_feature_and_a_constant_everywhere():
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    features = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(interpolated(centres, centres, features), features, rtol=1e-6, atol=1e-6)
    points = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(interpolated(points, centres, torch.ones_like(features)), torch.ones(2, 30, 4).double())
    assert interpolated(points, centres[:, :2], features[:, :2]).isfinite().all()


def test_groups_larger_than_the_cloud_are_refused():
    with pytest.raises(UserError, match="A group of 9 points cannot be made of 8"):
        nearest_points(torch.zeros(1, 2, 3), torch.zeros(1, 8, 3), 9)
    same = torch.ones(1, 8, 3)
    assert farthest_points(same, 4).tolist() == [[0, 0, 0, 0]]
