"""Segmentation metrics against slow versions, and what they must be for known predictions."""

import itertools

import pytest
import torch

from eyespot.metrics.segmentation import confusion, intersection_over_union, matched, mean_iou, pixel_accuracy, renamed


def labelled(shape=(3, 8, 9), classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, shape, generator=generator)


def test_confusion_and_iou_by_loops():
    true, predicted = labelled(), labelled(seed=1)
    true[0, :2] = -1
    counts = confusion(true, predicted, 4)
    pairs = [(t, p) for t, p in zip(true.flatten().tolist(), predicted.flatten().tolist(), strict=True) if t >= 0]
    for t, p in itertools.product(range(4), range(4)):
        assert int(counts[t, p]) == pairs.count((t, p))
    expected = []
    for c in range(4):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        expected.append(both / either)
    assert intersection_over_union(counts).tolist() == pytest.approx(expected, rel=1e-12)
    assert mean_iou(counts) == pytest.approx(100 * sum(expected) / 4)
    assert pixel_accuracy(counts) == pytest.approx(100 * sum(t == p for t, p in pairs) / len(pairs))


def test_a_class_nowhere_is_left_out_and_one_that_is_only_predicted_counts_as_nothing():
    true = torch.tensor([0, 0, 1, 1])
    assert mean_iou(confusion(true, true, 3)) == 100
    wrong = confusion(true, torch.tensor([0, 0, 1, 2]), 3)
    assert intersection_over_union(wrong).tolist() == [1, 0.5, 0]
    assert mean_iou(wrong) == pytest.approx(50)


def test_permuted_labels_have_no_overlap_before_and_all_after_matching():
    true = labelled()
    moved = (true + 1) % 4
    counts = confusion(true, moved, 4)
    assert mean_iou(counts) == 0
    named, names = matched(counts)
    assert (mean_iou(named), pixel_accuracy(named)) == (100, 100)
    assert names.tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_matching_is_the_best_of_all_assignments(clusters):
    counts = confusion(labelled(classes=3), labelled(classes=clusters, seed=2), 3, clusters)
    named, names = matched(counts)
    wide = max(3, clusters)
    padded = torch.zeros(3, wide, dtype=torch.int64)
    padded[:, :clusters] = counts
    best = max(sum(int(padded[c, k]) for c, k in enumerate(order)) for order in itertools.permutations(range(wide), 3))
    assert int(named.diagonal().sum()) == best
    used = [n for n in names.tolist() if n < 3]
    assert named.sum() == counts.sum() and len(used) == len(set(used)) == min(3, clusters)


def test_renamed_clusters_are_added_up():
    counts = torch.tensor([[5, 1, 2], [0, 4, 3]])
    assert renamed(counts, torch.tensor([0, 2, 0])).tolist() == [[7, 0, 1], [3, 0, 4]]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="equal shapes"):
        confusion(torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 2)
