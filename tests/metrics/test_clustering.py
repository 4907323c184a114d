"""Agreement of clusters with classes, against loops and known cases."""

import pytest
import torch

from eyespot.metrics.clustering import contingency, matched_accuracy, mutual_information, purity, rand_index


def drawn(n=60, k=4, seed=0):
    return torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))


def test_purity_by_a_loop():
    clusters, labels = drawn(k=5), drawn(seed=1)
    hits = 0
    for cluster in set(clusters.tolist()):
        members = labels[clusters == cluster].tolist()
        hits += max(members.count(c) for c in members)
    assert purity(clusters, labels) == pytest.approx(100 * hits / 60)


def test_equal_up_to_names():
    labels = drawn()
    for measure in (purity, matched_accuracy, mutual_information, rand_index):
        assert measure((labels + 7) % 4 + 100, labels) == pytest.approx(100)


def test_every_sample_its_own_cluster_is_pure_and_nothing_else():
    labels = drawn()
    assert purity(torch.arange(60), labels) == 100
    assert rand_index(torch.arange(60), labels) == pytest.approx(0, abs=1e-9)
    assert matched_accuracy(torch.arange(60), labels) == pytest.approx(100 * 4 / 60)
    one = torch.zeros(60, dtype=torch.int64)
    assert (
        purity(one, labels) == matched_accuracy(one, labels) == pytest.approx(100 * int(labels.bincount().max()) / 60)
    )


def test_contingency_has_classes_in_rows():
    assert contingency(torch.tensor([5, 5, 9]), torch.tensor([1, 3, 3])).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match="one length"):
        contingency(torch.zeros(3), torch.zeros(2))
