"""Low-shot classification: scikit-learn's optimum, what is drawn, the spread over draws."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eyespot.evaluate import low_shot
from eyespot.evaluate.splits import draw_per_class


def cloud(n, d=10, classes=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return ((0.9 * centres[labels] + noise) * torch.logspace(-3, 2, d, dtype=torch.float64) + 5).to(dtype), labels


def reference(x, y, test):
    """Class probabilities by scikit-learn, on features standardised and scaled as the protocol says."""
    mean, std = x.mean(0), x.std(0, correction=0)
    scaled, scaled_test = ((v - mean) / std / x.shape[1] ** 0.5 for v in (x, test))
    model = LogisticRegression(C=1 / (len(x) * low_shot.STRENGTH), tol=1e-10, max_iter=10000)
    return model.fit(scaled.numpy(), y.numpy()).predict_proba(scaled_test.numpy())


@pytest.mark.parametrize("n", [12, 200])
def test_same_classifier_as_scikit_learn(n):
    """With fewer samples than dimensions the fit runs in their span."""
    x, y = cloud(n, d=30)
    test, _ = cloud(50, d=30, seed=1)
    scores = low_shot.classifier(x, y, 4)(test)
    np.testing.assert_allclose(torch.softmax(scores, 1).numpy(), reference(x, y, test), atol=2e-4)


def test_results_are_mean_and_deviation_over_the_draws():
    x, y = cloud(400)
    test, test_y = cloud(150, seed=1)
    metrics, config = low_shot.run(x, y, test, test_y, 4, seed=3)
    for name, shots in (("5_per_class", 5), ("10_per_class", 10)):
        tops = []
        for draw in range(10):
            rows = draw_per_class(y.numpy(), dict.fromkeys(range(4), shots), 3, draw)
            tops.append(100 * (reference(x[rows], y[rows], test).argmax(1) == test_y.numpy()).mean())
        assert metrics[name] == pytest.approx(np.mean(tops), abs=0.2)
        assert metrics[f"{name}_std"] == pytest.approx(np.std(tops, ddof=1), abs=0.2)
    assert metrics["1_per_class"] < metrics["5_per_class"] < metrics["10_percent"]
    assert config["draws"] == list(range(10)) and config["strength"] == 0.002
    assert config["samples"]["5_per_class"] == 20 and abs(config["samples"]["10_percent"] - 40) <= 2
    assert low_shot.run(x, y, test, test_y, 4, seed=3)[0] == metrics
    assert low_shot.run(x, y, test, test_y, 4, seed=4)[0] != metrics


def test_constants_are_frozen():
    assert (low_shot.NAME, low_shot.VERSION, low_shot.DRAWS, low_shot.STRENGTH) == ("low_shot", 1, 10, 0.002)
    assert low_shot.SHARES == {"1_percent": 0.01, "10_percent": 0.10}
    assert low_shot.SHOTS == {"1_per_class": 1, "5_per_class": 5, "10_per_class": 10}


def test_a_draw_takes_so_many_of_each_class():
    labels = np.array([0] * 50 + [7] * 10 + [2] * 3)
    rows = draw_per_class(labels, {0: 4, 7: 10, 2: 1}, 0, 0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert {c: int((labels[rows] == c).sum()) for c in (0, 7, 2)} == {0: 4, 7: 10, 2: 1}
    draws = {tuple(draw_per_class(labels, {0: 4}, 0, d).tolist()) for d in range(20)}
    assert len(draws) > 15
    often = np.bincount(np.concatenate([draw_per_class(labels, {0: 25}, 0, d) for d in range(200)]), minlength=63)
    assert often[:50].min() > 60 and often[:50].max() < 140 and not often[50:].any()


def test_settings_that_the_data_does_not_allow():
    wanted, left_out = low_shot.settings(np.array([0] * 200 + [1] * 7))
    assert wanted["1_percent"] == {0: 2, 1: 1} and wanted["10_percent"] == {0: 20, 1: 1}
    assert wanted["5_per_class"] == {0: 5, 1: 5}
    assert left_out == {"10_per_class": "the smallest class has 7 training samples, fewer than 10"}
    wanted, left_out = low_shot.settings(np.array([0, 1, 1]))
    assert set(wanted) == {"1_per_class"}
    assert "1% of 3 training samples are fewer than the 2 classes" in left_out["1_percent"]
    assert "1 training sample," in left_out["5_per_class"]


def test_one_sample_a_class():
    x, y = torch.eye(3), torch.arange(3)
    metrics, config = low_shot.run(x, y, x, y, 3)
    assert metrics == {"1_per_class": 100.0, "1_per_class_std": 0.0}
    assert set(config["left_out"]) == {"1_percent", "10_percent", "5_per_class", "10_per_class"}


def test_test_samples_are_measured_in_chunks(monkeypatch):
    x, y = cloud(60)
    whole = low_shot.run(x, y, x, y, 4)
    monkeypatch.setattr(low_shot, "TEST_CHUNK", 7)
    assert low_shot.run(x, y, x, y, 4)[0] == whole[0]
