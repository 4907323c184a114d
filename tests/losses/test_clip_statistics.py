"""Motion and appearance statistics: recorded numbers, a slow version, what must and must not change the labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eyespot.errors import UserError
from eyespot.losses.clip_statistics import (
    APPEARANCE_MOST,
    APPEARANCE_NAMES,
    MOTION_MOST,
    MOTION_NAMES,
    appearance_statistics,
    block_histograms,
    block_scores,
    colour_iou,
    dominant_colour,
    motion_boundaries,
    motion_statistics,
    octants,
    orientation_histogram,
    partitions,
    prewitt,
)

SIZE = 16


def flow_of(arrays):
    """[1, N, 2, S, S] of 8-bit maps."""
    maps = np.stack([arrays["u_q"], arrays["v_q"]], 1).astype(np.float32)
    return torch.from_numpy(maps * 40 / 255 - 20)[None]


def random_flow(maps=5, size=SIZE, seed=0, batch=1):
    return torch.randn(batch, maps, 2, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_clip(time=4, size=SIZE, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, time, 3, size, size), dtype=torch.uint8, generator=generator)


# --- recorded numbers -------------------------------------------------------------------------------------------------
def check_motion(arrays, maps):
    flow = flow_of(arrays)
    assert motion_statistics(flow, maps)[0].tolist() == arrays["motion_label"].tolist()
    found = motion_boundaries(flow)
    for pattern, blocks in enumerate(partitions(112)):
        scores = block_scores(found.magnitude, blocks, mean=pattern == 1)[0]
        for k, name in enumerate("uv"):
            np.testing.assert_allclose(scores[k], arrays[f"p{pattern + 1}_{name}_score"], rtol=1e-4)
            inside = (found.magnitude[0, k] * blocks[scores[k].argmax()]).flatten()
            histogram = orientation_histogram(inside, found.angle[0, k].flatten())
            recorded = arrays[f"p{pattern + 1}_{name}_hist"]
            np.testing.assert_allclose(histogram, recorded, rtol=1e-4, atol=1e-4 * recorded.max())
    for k, name in enumerate("uv"):
        np.testing.assert_allclose(found.energy[0, k, :maps], arrays[f"global_{name}_energy"], rtol=1e-4)
    return found


@pytest.mark.golden
def test_motion_agrees_with_the_recorded_numbers(golden):
    arrays, _ = golden("motion_appearance_statistics__motion_labels")
    found = check_motion(arrays, 15)
    for k, name in enumerate(("du_sum", "dv_sum")):
        np.testing.assert_allclose(found.derivative[0, k, :, ::7, ::7], arrays[name], atol=1e-4)


@pytest.mark.golden
def test_all_27_labels_agree_with_the_recorded_numbers(golden):
    arrays, _ = golden("video_statistics__labels")
    check_motion(arrays, 15)
    clip = torch.from_numpy(arrays["clip_bgr"][..., ::-1].copy()).permute(0, 3, 1, 2)
    assert appearance_statistics(clip[None], "exact")[0].tolist() == arrays["app_label"].tolist()
    votes = appearance_statistics(clip[None], "vote")[0]
    assert votes[[1, 3, 5, 7, 9, 11, 12]].tolist() == arrays["octant_vote_colors"].tolist()
    for pattern, blocks in enumerate(partitions(112)):
        np.testing.assert_allclose(colour_iou(clip, blocks), arrays[f"p{pattern + 1}_iou"], rtol=1e-4, atol=1e-7)


# --- partitions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [8, 16, 56, 112])
def test_partitions_cover_the_frame(size):
    grid, rings, triangles = partitions(size)
    assert grid.shape[0] == 16 and rings.shape[0] == 4 and triangles.shape[0] == 8
    assert bool((grid.sum(0) == 1).all()) and bool((rings.sum(0) == 1).all())
    assert bool((triangles.sum(0) >= 1).all()) and int((triangles.sum(0) == 2).sum()) == 4 * (size // 2)
    half = size // 2
    assert triangles.sum((1, 2)).tolist() == [half * (half + 1) // 2] * 8
    assert rings.sum((1, 2)).tolist() == [(size // 4) ** 2 * k for k in (1, 3, 5, 7)]


def test_triangles_stand_in_their_order():
    triangles = partitions(8)[2]
    corners = [(3, 0), (0, 3), (0, 4), (3, 7), (4, 0), (7, 3), (7, 4), (4, 7)]
    for k, corner in enumerate(corners):
        assert [bool(t[corner]) for t in triangles].index(True) == k


def test_a_side_without_blocks_is_told():
    with pytest.raises(UserError, match="a multiple of 8"):
        partitions(20)


# --- motion -----------------------------------------------------------------------------------------------------------
def slow_motion(flow):
    """Labels of one clip [N, 2, S, S] by loops over pixels."""
    maps, _, size, _ = flow.shape
    at = lambda m, r, c: float(m[min(max(r, 0), size - 1), min(max(c, 0), size - 1)])  # noqa: E731
    labels, energies = [[], [], []], []
    for k in (0, 1):
        dx, dy = np.zeros((maps, size, size)), np.zeros((maps, size, size))
        for t, r, c in np.ndindex(maps, size, size):
            m = flow[t, k]
            dx[t, r, c] = sum(at(m, r + i, c - 1) - at(m, r + i, c + 1) for i in (-1, 0, 1))
            dy[t, r, c] = sum(at(m, r - 1, c + i) - at(m, r + 1, c + i) for i in (-1, 0, 1))
        energies.append(np.hypot(dx, dy).sum((1, 2)).argmax() + 1)
        x, y = dx.sum(0), dy.sum(0)
        for pattern, blocks in enumerate(partitions(size)):
            scores, histograms = [], []
            for block in blocks.numpy():
                inside = [(x[p], y[p]) for p in zip(*block.nonzero(), strict=True)]
                total = sum(math.hypot(*d) for d in inside)
                scores.append(total / len(inside) if pattern == 1 else total)
                bins = [0.0] * 8
                for d in inside:
                    place = math.degrees(math.atan2(d[1], d[0])) % 360 / 45
                    bins[int(place) % 8] += math.hypot(*d) * (1 - place % 1)
                    bins[(int(place) + 1) % 8] += math.hypot(*d) * (place % 1)
                histograms.append(bins)
            best = int(np.argmax(scores))
            labels[pattern] += [best + 1, int(np.argmax(histograms[best])) + 1]
    return [*labels[0], *labels[1], *labels[2], *energies]


@pytest.mark.parametrize("seed", range(3))
def test_motion_equals_a_slow_version(seed):
    flow = random_flow(3, 8, seed)
    assert motion_statistics(flow)[0].tolist() == slow_motion(flow[0].numpy())


def test_names_and_ranges_fit():
    assert len(MOTION_NAMES) == 14 == len(MOTION_MOST) + 2 and len(APPEARANCE_NAMES) == 13 == len(APPEARANCE_MOST)
    motion = motion_statistics(random_flow(5, batch=50))
    assert int(motion.min()) >= 1
    assert bool((motion[:, :12] <= torch.tensor(MOTION_MOST)).all()) and int(motion[:, 12:].max()) <= 5
    appearance = appearance_statistics(random_clip(batch=8))
    assert int(appearance.min()) >= 1 and bool((appearance <= torch.tensor(APPEARANCE_MOST)).all())


def test_no_motion_has_no_block_in_pattern_1():
    labels = motion_statistics(torch.zeros(2, 5, 2, SIZE, SIZE))
    assert labels[:, :4].tolist() == [[0] * 4] * 2
    assert labels[:, 4:].tolist() == [[1] * 10] * 2


def test_a_moving_camera_and_a_faster_clip_change_nothing():
    flow = random_flow()
    labels = motion_statistics(flow)
    assert torch.equal(motion_statistics(flow + torch.tensor([3.0, -2.0])[:, None, None]), labels)
    assert torch.equal(motion_statistics(flow * 2.5), labels)


def test_reversing_the_frames_changes_the_global_labels_alone():
    flow = random_flow(15)
    labels, back = motion_statistics(flow)[0], motion_statistics(flow.flip(1))[0]
    assert torch.equal(back[:12], labels[:12])
    assert torch.equal(back[12:], 16 - labels[12:])


def test_swapping_u_and_v_swaps_the_labels():
    flow = random_flow()
    labels, swapped = motion_statistics(flow)[0], motion_statistics(flow.flip(2))[0]
    order = [2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 13, 12]
    assert torch.equal(swapped, labels[order])


@pytest.mark.parametrize("cell", [0, 6, 15])
def test_an_edge_inside_one_cell_is_in_that_block(cell):
    flow = torch.zeros(1, 4, 2, 32, 32)
    row, column = divmod(cell, 4)
    flow[..., 8 * row + 3 : 8 * row + 5, 8 * column + 3 : 8 * column + 5] = 5.0
    labels = motion_statistics(flow)[0]
    assert labels[0] == labels[2] == cell + 1


def test_derivatives_are_those_of_a_true_convolution():
    ramp = torch.arange(6.0).expand(5, 6)
    dx, dy = prewitt(ramp)
    assert dx[2, 2] == -6 and dx[2, 0] == -3 and float(dy.abs().max()) == 0
    dx, dy = prewitt(ramp.T)
    assert dy[2, 2] == -6 and float(dx.abs().max()) == 0


def test_an_angle_between_two_directions_is_shared():
    histogram = orientation_histogram(torch.tensor([1.0]), torch.tensor([67.5]))
    assert histogram.tolist() == [0, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert orientation_histogram(torch.tensor([2.0]), torch.tensor([337.5])).tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    magnitude, angle = torch.rand(3, 50), 360 * torch.rand(3, 50)
    torch.testing.assert_close(orientation_histogram(magnitude, angle).sum(1), magnitude.sum(1))


# --- appearance -------------------------------------------------------------------------------------------------------
def slow_iou(clip, block):
    """Of one block, [T, C, S, S] by loops."""
    places = list(zip(*block.numpy().nonzero(), strict=True))
    shares = []
    for c in range(clip.shape[1]):
        counts = [[0] * 256 for _ in clip]
        for t, frame in enumerate(clip.tolist()):
            for r, k in places:
                counts[t][frame[c][r][k]] += 1
        columns = list(zip(*counts, strict=True))
        shares.append(sum(map(min, columns)) / sum(map(max, columns)))
    return sum(shares) / len(shares)


def test_colour_iou_equals_a_slow_version():
    clip = (random_clip(3, 8)[0] // 64) * 64  # few levels, so that frames share some
    for blocks in partitions(8):
        expected = [slow_iou(clip, block) for block in blocks]
        assert colour_iou(clip, blocks).tolist() == pytest.approx(expected, rel=1e-9)
        assert int(block_histograms(clip, blocks).sum()) == 3 * 3 * int(blocks.sum())


def test_a_constant_clip_has_the_first_block_twice():
    clip = random_clip(1)[0].expand(4, -1, -1, -1)
    for blocks in partitions(SIZE):
        assert colour_iou(clip, blocks).tolist() == [1.0] * len(blocks)
    labels = appearance_statistics(clip[None])[0]
    assert labels[[0, 2, 4, 6, 8, 10]].tolist() == [1] * 6


def test_the_block_that_changes_is_found():
    clip = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)
    for t in range(4):
        clip[t, :, 8:16, 16:24] = 40 * t  # cell 7, row by row from 1
    labels = appearance_statistics(clip[None])[0]
    assert labels[0] == 7 and labels[2] == 1 and labels[3] == 4 and labels[12] == 4  # the rest is white


def test_the_eight_colours():
    colours = {1: (0, 0, 255), 2: (0, 255, 255), 3: (255, 0, 255), 4: (255, 255, 255)}
    colours |= {5: (0, 0, 0), 6: (0, 255, 0), 7: (255, 0, 0), 8: (255, 255, 0)}
    for number, pixel in colours.items():
        assert int(octants(torch.tensor(pixel, dtype=torch.uint8))) == number
    assert octants(torch.tensor([[127, 128, 127]], dtype=torch.uint8)).tolist() == [6]


def test_a_vote_and_the_commonest_exact_colour_may_differ():
    reds = torch.tensor([[200 + i, 10, 10] for i in range(8)], dtype=torch.uint8)
    blues = torch.tensor([[10, 10, 200]] * 3, dtype=torch.uint8)
    pixels = torch.cat([reds, blues])
    assert dominant_colour(pixels, "vote") == 7 and dominant_colour(pixels, "exact") == 1
