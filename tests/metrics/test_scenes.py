"""Metrics of pictures taken apart: recorded numbers, hand-made cases, what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from eyespot.metrics.scenes import (
    adjusted_information,
    adjusted_rand,
    counting_accuracy,
    match_slots,
    ordered_pairs,
    partition_scores,
    shape_overlaps,
    true_objects,
    winning_slots,
)


@pytest.mark.golden
def test_all_metrics_as_recorded(golden):
    arrays, params = golden("scene_survey__metrics")
    a = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    layers, segment, covered = a["true_layers"], a["segment"].long(), a["overlap"] >= 1
    objects = layers.shape[1] - 1
    seen = segment[:, None] == torch.arange(objects)[None, :, None, None]
    for run in range(params["runs"]):
        masks, shapes, present = (a[f"pred_{n}"][run] for n in ("mask", "shape", "pres"))
        rand, information = partition_scores(segment, masks.argmax(1))
        assert float(rand.mean()) / 100 == pytest.approx(float(a["ari_all"][run]), abs=1e-5)
        assert float(information.mean()) / 100 == pytest.approx(float(a["ami_all"][run]), abs=1e-5)
        rand, information = partition_scores(segment, masks[:, :-1].argmax(1), covered)
        assert float(rand.mean()) / 100 == pytest.approx(float(a["ari_obj"][run]), abs=1e-5)
        assert float(information.mean()) / 100 == pytest.approx(float(a["ami_obj"][run]), abs=1e-5)
        order = match_slots(seen, masks[:, :-1])
        assert order.tolist() == a["order"][run].tolist()
        whole = shapes[:, :-1] * present[:, :-1, None, None]
        iou, f1 = shape_overlaps(layers[:, :-1], whole, order)
        assert float(iou.mean()) == pytest.approx(float(a["iou"][run]), abs=1e-5)
        assert float(f1.mean()) == pytest.approx(float(a["f1"][run]), abs=1e-5)
        counts = (present[:, :-1] >= 0.5).sum(1)
        assert counting_accuracy(counts, true_objects(segment, objects)) / 100 == pytest.approx(float(a["oca"][run]))
        right, area = ordered_pairs(layers[:, :-1] >= 0.5, order)
        assert right / area == pytest.approx(float(a["ooa"][run]), abs=1e-5)


# --- partitions -----------------------------------------------------------------------------------------------
def test_rand_index_by_hand():
    """Six pixels as (3, 3) against (2, 1 | 1, 2): of 15 pairs 2 lie together in both, 6 in each, so 2.4 by chance."""
    true, predicted = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([5, 5, 9, 5, 9, 9])
    assert adjusted_rand(true, predicted) == pytest.approx(100 * (2 - 2.4) / (6 - 2.4))


@pytest.mark.parametrize("seed", range(4))
def test_rand_index_equals_sklearns_and_ignores_names(seed):
    generator = torch.Generator().manual_seed(seed)
    true, predicted = (torch.randint(0, 4, (60,), generator=generator) for _ in range(2))
    predicted[:30] = true[:30]
    ours = adjusted_rand(true, predicted)
    assert ours == pytest.approx(100 * adjusted_rand_score(true, predicted))
    assert adjusted_rand(true, (7 * predicted + 3) % 11) == pytest.approx(ours)
    assert adjusted_rand(true, 5 - true) == pytest.approx(100)
    assert adjusted_information(true, 5 - true) == pytest.approx(100)


def test_trivial_partitions():
    one, two = torch.zeros(8, dtype=torch.int64), torch.arange(8) // 4
    assert adjusted_rand(two, one) == 0  # one part for all
    assert adjusted_rand(one, one) == 100  # by convention
    assert adjusted_rand(torch.arange(8), torch.arange(8)) == 100
    random = torch.randint(0, 3, (20000,), generator=torch.Generator().manual_seed(0))
    assert abs(adjusted_rand(random.roll(777), random)) < 1


def test_pixels_count_by_the_truth():
    """What the parts do in the background does not matter for the objects' index."""
    true = torch.tensor([[[0, 0, 1, 1], [0, 0, 2, 2]]])
    predicted = torch.tensor([[[3, 1, 1, 1], [0, 2, 2, 2]]])
    assert partition_scores(true, predicted, true > 0)[0].tolist() == [100.0]
    assert float(partition_scores(true, predicted)[0]) < 100
    nothing = torch.zeros_like(true)
    assert math.isnan(float(partition_scores(nothing, predicted, nothing > 0)[0]))


# --- objects --------------------------------------------------------------------------------------------------
def squares(*places, side=6):
    """Squares of 2 x 2 pixels, [1, n, side, side]."""
    masks = torch.zeros(1, len(places), side, side)
    for k, (row, column) in enumerate(places):
        masks[0, k, row : row + 2, column : column + 2] = 1
    return masks


def test_overlaps_by_hand():
    true, predicted = squares((0, 0), (3, 3)), squares((3, 3), (5, 0), (0, 1))
    order = match_slots(true, predicted)
    assert order.tolist() == [[2, 0]]
    iou, f1 = shape_overlaps(true, predicted, order)
    assert iou.tolist() == pytest.approx([2 / 6, 1.0]) and f1.tolist() == pytest.approx([0.5, 1.0])
    torch.testing.assert_close(f1, 2 * iou / (1 + iou))


def test_objects_that_are_not_there_do_not_count_and_those_without_a_slot_score_nothing():
    true = squares((0, 0), (3, 3), (4, 0))
    true[0, 2] = 0
    order = match_slots(true[:, :2], squares((3, 3)))
    assert order.tolist() == [[-1, 0]]
    iou, _ = shape_overlaps(true, squares((3, 3)), torch.tensor([[-1, 0, -1]]))
    assert iou.tolist() == [0.0, 1.0]


def test_counting():
    predicted = torch.tensor([[[0, 0], [1, 2]], [[3, 3], [3, 3]]])
    assert winning_slots(predicted, 5).tolist() == [2, 0]
    assert winning_slots(predicted, 5, background=3).tolist() == [3, 0]
    segment = torch.tensor([[[0, 0], [1, 2]], [[0, 0], [0, 0]]])
    assert true_objects(segment, 0).tolist() == [2, 0]
    assert counting_accuracy(torch.tensor([2, 1]), torch.tensor([2, 0])) == 50


def test_order_is_weighed_by_the_overlap():
    layers = torch.zeros(1, 3, 6, 6, dtype=torch.bool)
    layers[0, 0, :3, :3], layers[0, 1, 1:4, 1:4], layers[0, 2, 3:5, 3:5] = True, True, True  # overlaps of 4 and 1
    assert ordered_pairs(layers, torch.tensor([[0, 1, 2]])) == (5, 5)
    assert ordered_pairs(layers, torch.tensor([[1, 0, 2]])) == (1, 5)
    assert ordered_pairs(layers, torch.tensor([[0, 4, 2]])) == (4, 5)
    assert ordered_pairs(layers, torch.tensor([[-1, 0, 1]])) == (1, 5)  # an object without a slot is not in order
    assert ordered_pairs(layers[:, ::2], torch.tensor([[0, 1]])) == (0, 0)
