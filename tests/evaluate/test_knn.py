"""The weighted kNN protocol: recorded numbers, a slow version, ties, chunks."""

import numpy as np
import pytest
import torch

from eyespot.evaluate import knn


def cloud(n, d=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, d, generator=generator), labels


@pytest.mark.golden
def test_recorded_numbers(golden):
    arrays, params = golden("protocols__weighted_knn")
    train, test = torch.from_numpy(arrays["train"]), torch.from_numpy(arrays["test"])
    train_y = torch.from_numpy(arrays["train_labels"]).long()
    test_y = torch.from_numpy(arrays["test_labels"]).long()
    for k in params["ks"]:
        votes = knn.classify(train, train_y, test, params["classes"], k, params["T"])
        np.testing.assert_allclose(votes.numpy(), arrays[f"votes_k{k}"], rtol=1e-4, atol=1e-3)
        metrics, config = knn.run(train, train_y, test, test_y, params["classes"], k=k, temperature=params["T"])
        assert metrics["top1"] == pytest.approx(float(arrays[f"top1_k{k}"]), abs=1e-4)
        assert metrics["top5"] == pytest.approx(float(arrays[f"top5_k{k}"]), abs=1e-4)
        assert config == {"k": k, "temperature": params["T"]}


def test_constants_are_frozen():
    assert (knn.NAME, knn.VERSION, knn.K, knn.TEMPERATURE) == ("knn", 1, 20, 0.07)


def slow_votes(train, labels, test, classes, k, temperature):
    rows = []
    for q in test.double():
        cosines = [float(q @ t / (q.norm() * t.norm())) for t in train.double()]
        order = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]
        row = [0.0] * classes
        for i in order:
            row[int(labels[i])] += np.exp(cosines[i] / temperature)
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("chunk", [1, 7, 25, 40, 8192])
@pytest.mark.parametrize("k", [1, 4, 25, 40])
def test_votes_agree_with_a_loop_whatever_the_chunk(k, chunk):
    train, labels = cloud(40)
    test, _ = cloud(9, seed=1)
    fast = knn.classify(train.double(), labels, test.double(), 3, k, 0.07, chunk)
    assert torch.allclose(fast.double(), slow_votes(train, labels, test, 3, k, 0.07), rtol=1e-9)


@pytest.mark.parametrize("chunk", [2, 5, 64])
def test_of_equal_neighbours_the_first_rows_are_taken(chunk):
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    cosines, rows = knn.nearest(torch.tensor([[2.0, 0.0]]), bank, 3, chunk)
    assert rows.tolist() == [[1, 2, 3]] and cosines.tolist() == [[1.0, 1.0, 1.0]]


def test_k_is_clipped_with_a_note():
    train, labels = cloud(6)
    metrics, config = knn.run(train, labels, train, labels, 3)
    assert config["k"] == 6 and "only 6 training samples" in config["note"]
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100


def test_one_neighbour_finds_the_training_sample_itself():
    train, labels = cloud(300)
    metrics, _ = knn.run(train, labels, train, labels, 3, k=1)
    assert metrics == {"top1": 100.0, "top5": 100.0}


def test_work_is_done_in_chunks(monkeypatch):
    monkeypatch.setattr(knn, "TEST_CHUNK", 8)
    largest = 0
    whole = knn._best

    def watched(similarity, k):
        nonlocal largest
        largest = max(largest, similarity.numel())
        return whole(similarity, k)

    monkeypatch.setattr(knn, "_best", watched)
    train, labels = cloud(5000, d=4)
    test, test_labels = cloud(50, d=4, seed=3)
    metrics, _ = knn.run(train, labels, test, test_labels, 3)
    assert largest <= 8 * knn.TRAIN_CHUNK
    cosines, rows = knn.nearest(test, train, 20)
    scores = knn.votes(cosines, labels[rows], 3)
    assert metrics["top1"] == pytest.approx(100 * (scores.argmax(1) == test_labels).double().mean().item())


def test_half_precision_features_are_compared_in_single():
    train, labels = cloud(30)
    metrics, _ = knn.run(train.half(), labels, train.half(), labels, 3, k=1)
    assert metrics["top1"] == 100.0
