"""The retrieval protocol: a slow version, blocks and chunks, what it must give for extreme features."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import eyespot
from eyespot.errors import UserError
from eyespot.evaluate import knn, retrieval


def cloud(n, d=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def test_agrees_with_scikit_learn_and_a_loop():
    train, labels = cloud(60)
    test, test_labels = cloud(25, seed=1)
    metrics, config = retrieval.run(train, labels, test, test_labels, 3)
    precisions, firsts = [], []
    for q, label in zip(test, test_labels, strict=True):
        cosines = np.array([float(q @ t / (q.norm() * t.norm())) for t in train])
        relevant = (labels == label).numpy()
        precisions.append(average_precision_score(relevant, cosines))
        firsts.append(int(np.flatnonzero(relevant[np.argsort(-cosines)])[0]) + 1)
    assert metrics["mAP"] == pytest.approx(100 * np.mean(precisions), rel=1e-12)
    for k in (1, 5, 10):
        assert metrics[f"R@{k}"] == pytest.approx(100 * np.mean([f <= k for f in firsts]))
    assert config == {"queries": "test samples", "bank": "training samples", "similarity": "cosine"}


def test_constants_are_frozen():
    assert (retrieval.NAME, retrieval.VERSION, retrieval.RANKS) == ("retrieval", 2, (1, 5, 10))


@pytest.mark.parametrize(("block", "queries", "chunk"), [(1, 512, 7), (150, 512, 50), (1 << 21, 3, 1)])
def test_blocks_and_chunks_change_nothing(monkeypatch, block, queries, chunk):
    train, labels = cloud(50)
    test, test_labels = cloud(11, seed=1)
    whole = retrieval.run(train, labels, test, test_labels, 3)
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "QUERIES", queries)
    monkeypatch.setattr(retrieval, "BANK_CHUNK", chunk)
    metrics, _ = retrieval.run(train, labels, test, test_labels, 3)
    assert metrics == pytest.approx(whole[0], rel=1e-12)


def test_memory_is_one_block_whatever_the_number_of_samples(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 6000)
    sizes, rank = [], retrieval.ranking

    def watched(scores, relevant, ignored=None):
        sizes.append(scores.numel())
        return rank(scores, relevant, ignored)

    monkeypatch.setattr(retrieval, "ranking", watched)
    for n in (200, 3000):
        retrieval.run(*cloud(n), *cloud(100, seed=1), 3)
    assert max(sizes) <= 6000 and len(sizes) > 50


def test_first_recall_is_the_nearest_neighbour():
    train, labels = cloud(80)
    test, test_labels = cloud(40, seed=1)
    metrics, _ = retrieval.run(train, labels, test, test_labels, 3)
    assert metrics["R@1"] == pytest.approx(knn.run(train, labels, test, test_labels, 3, k=1)[0]["top1"])
    assert metrics["R@1"] <= metrics["R@5"] <= metrics["R@10"]


def test_perfect_and_constant_features():
    labels = torch.arange(3).repeat_interleave(10)
    perfect = torch.eye(3)[labels]
    metrics, _ = retrieval.run(perfect, labels, perfect, labels, 3)
    assert set(metrics.values()) == {100.0}
    constant, _ = retrieval.run(torch.ones(30, 4), labels, torch.ones(30, 4), labels, 3)
    assert constant["R@10"] == 0.0 and constant["mAP"] < 100 / 3


def test_a_small_bank_is_noted_and_half_precision_compared_in_single():
    train, labels = cloud(6)
    metrics, config = retrieval.run(train.half(), labels, train.half(), labels, 3)
    assert metrics["R@1"] == 100.0 and "only 6 training samples" in config["note"]


def test_a_query_in_the_bank_is_left_out_of_its_own_list():
    x, labels = cloud(40)
    metrics, config = retrieval.run(x, labels, x, labels, 3, same=torch.arange(40))
    precisions, firsts = [], []
    for i in range(40):
        rest = [k for k in range(40) if k != i]
        cosines = np.array([float(x[i] @ x[k] / (x[i].norm() * x[k].norm())) for k in rest])
        relevant = (labels[rest] == labels[i]).numpy()
        precisions.append(average_precision_score(relevant, cosines))
        firsts.append(relevant[np.argsort(-cosines)[0]])
    assert metrics["mAP"] == pytest.approx(100 * np.mean(precisions), rel=1e-12)
    assert metrics["R@1"] == pytest.approx(100 * np.mean(firsts))
    assert config["left_out"] == "40 queries are in the bank: each is left out of its own list"
    assert retrieval.run(x, labels, x, labels, 3)[0]["R@1"] == 100  # without it a query finds itself


def test_queries_with_nothing_to_find_are_no_queries():
    x, labels = cloud(20)
    labels[0] = 7
    alone, config = retrieval.run(x, labels, x, labels, 8, same=torch.arange(20))
    rest, _ = retrieval.run(x, labels, x[1:], labels[1:], 8, same=torch.arange(1, 20))
    assert alone == pytest.approx(rest) and "1 have no other sample of their class" in config["left_out"]
    with pytest.raises(UserError, match="No class has two samples"):
        retrieval.run(x, torch.arange(20), x, torch.arange(20), 20, same=torch.arange(20))


def test_the_same_folder_on_both_sides_is_leave_one_out(folders):
    given = {"image_size": 16, "floor": False, "workers": 0}
    result = eyespot.evaluate("resnet8", folders[1], folders[1], protocol="retrieval", **given)
    assert result["config"]["left_out"].startswith("24 queries are in the bank")
    assert "left_out" not in eyespot.evaluate("resnet8", *folders, protocol="retrieval", **given)["config"]
