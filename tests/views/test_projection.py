"""Depth maps of clouds and maps carried back to points."""

import pytest
import torch
from torch.nn import functional as F

from eyespot.views.projection import AXES, carried_back, depth_map, drawn, pixels_of, three_views


def cloud(b=2, n=40, seed=0):
    return torch.randn(b, n, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
def test_projection_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("i2p_mae__projection")
    points, size = torch.from_numpy(arrays["points"]), params["img_size"]
    picture, index = depth_map(points, size)
    _, grid, offset = pixels_of(points, size)
    torch.testing.assert_close(grid, torch.from_numpy(arrays["grid_size"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(offset, torch.from_numpy(arrays["offset"]), rtol=0, atol=0)
    expected = torch.full((len(points), size, size), 0.5)
    at = torch.from_numpy(arrays["pixel_index"]).long()
    expected[at[:, 0], at[:, 1], at[:, 2]] = torch.from_numpy(arrays["pixel_value"])
    torch.testing.assert_close(picture[:, 0], expected, rtol=1e-4, atol=1e-4)
    features = carried_back(torch.from_numpy(arrays["feature_map"]), index, size)
    torch.testing.assert_close(features, torch.from_numpy(arrays["point_feature"]), rtol=1e-4, atol=1e-4)


def test_pixels_against_a_loop():
    points, size = cloud(1, 12), 32
    picture, index = depth_map(points, size)
    total = torch.zeros(size, size)
    for p, (row, column) in zip(points[0], index[0].tolist(), strict=True):
        for dr in range(-2, 3):
            for dc in range(-2, 3):
                total[min(max(row + dr, 0), size - 1), min(max(column + dc, 0), size - 1)] += p[2]
    torch.testing.assert_close(picture[0, 0], total.sigmoid(), rtol=1e-5, atol=1e-5)
    background = picture[0, 0][total == 0]
    assert len(background) and bool((background == 0.5).all())


def test_the_picture_does_not_change_with_the_place_and_size_of_the_object():
    points = cloud(seed=1)
    moved = points * torch.tensor([4.0, 4.0, 1.0]) + torch.tensor([8.0, -16.0, 0.0])
    (a, _), (b, _) = depth_map(points, 64), depth_map(moved, 64)
    assert float((a != b).float().mean()) < 0.02  # floor at the edge of a pixel
    assert all(int(i.min()) >= 0 and int(i.max()) < 64 for _, i in three_views(points, 64))


def test_maps_carried_back_are_those_of_the_enlarged_map():
    features, index = torch.randn(2, 5, 7, 6), torch.randint(0, 28, (2, 11, 2))
    enlarged = F.interpolate(features, (28, 28), mode="bicubic", align_corners=False)
    expected = torch.stack([enlarged[b][:, index[b, :, 0], index[b, :, 1]].T for b in range(2)])
    torch.testing.assert_close(carried_back(features, index, 28), expected, rtol=1e-4, atol=1e-5)
    constant = carried_back(torch.full((2, 3, 7, 7), 2.5), index, 28)
    torch.testing.assert_close(constant, torch.full_like(constant, 2.5))


def test_the_three_views_see_along_each_axis():
    assert sorted(axes[2] for axes in AXES) == [0, 1, 2]
    points = cloud(seed=3)
    for (picture, _), axes in zip(three_views(points, 32), AXES, strict=True):
        assert torch.equal(picture, depth_map(points[..., list(axes)], 32)[0])


def test_a_cloud_in_one_point_is_still_drawn():
    picture, index = depth_map(torch.zeros(1, 8, 3), 16)
    assert bool(picture.isfinite().all()) and index.unique(dim=1).shape[1] == 1
    shown = drawn(cloud() / 3, 48)
    assert shown.shape == (2, 3, 48, 48) and float(shown.min()) >= 0 and 0.01 < float((shown < 1).float().mean()) < 0.9
