"""The linear probe: its optimum against scikit-learn's, standardisation, splits, repeatability."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eyespot.evaluate import linear
from eyespot.evaluate.splits import stratified_split


def cloud(n, d=10, classes=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-3, 2, d, dtype=torch.float64)  # badly conditioned on purpose
    return ((0.6 * centres[labels] + noise) * scale + 5).to(dtype), labels


@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-4])
def test_same_optimum_as_scikit_learn(strength):
    x, y = cloud(400)
    standardise = linear.Standardiser.of(x)
    z = standardise(x)
    fit = linear.Fit(z, y, 4)
    fit.fit(strength, 1000, 1e-9)
    reference = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=10000).fit(z.numpy(), y.numpy())
    ours = torch.softmax(fit.scores(z), 1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(z.numpy()), atol=2e-5)


def test_gradient_is_that_of_the_objective():
    x, y = cloud(50)
    fit = linear.Fit(linear.Standardiser.of(x)(x), y, 4)
    w = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    b = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    objective = torch.nn.functional.cross_entropy(fit.z @ w + b, y) + 0.15 * w.square().sum()
    expected = torch.autograd.grad(objective, (w, b))
    with torch.no_grad():
        loss, dw, db = fit.loss_and_gradient(w, b, 0.3)
    assert loss.item() == pytest.approx(objective.item(), rel=1e-12)
    assert torch.allclose(dw, expected[0]) and torch.allclose(db, expected[1])


def test_standardiser_equals_batch_norm_without_affine_and_drops_constants():
    x, _ = cloud(200)
    z = linear.Standardiser.of(x)(x)
    norm = torch.nn.BatchNorm1d(10, affine=False, eps=1e-18, dtype=torch.float64)
    assert torch.allclose(z, norm(x), atol=1e-9)
    constant = torch.cat([x, torch.full((200, 1), 0.3)], 1).float()
    assert linear.Standardiser.of(constant)(constant)[:, -1].abs().max() == 0


def test_protocol_beats_chance_and_repeats_to_the_bit():
    x, y = cloud(600, dtype=torch.float32)
    test, test_y = cloud(300, seed=1, dtype=torch.float32)
    first, config = linear.run(x, y, test, test_y, 4)
    second, _ = linear.run(x, y, test, test_y, 4)
    assert first == second
    assert first["top1"] > 60 and first["top5"] == 100.0
    assert config["strength"] in linear.STRENGTHS
    best = LogisticRegression(C=1 / (600 * config["strength"])).fit(linear.Standardiser.of(x)(x).numpy(), y.numpy())
    accuracy = 100 * best.score(linear.Standardiser.of(x)(test).numpy(), test_y.numpy())
    assert first["top1"] == pytest.approx(accuracy, abs=1.0)


def test_strength_is_the_best_on_held_out_training_samples(monkeypatch):
    seen, whole = [], linear.Standardiser.of
    monkeypatch.setattr(linear.Standardiser, "of", lambda features: seen.append(len(features)) or whole(features))
    x, y = cloud(150, d=40, dtype=torch.float64)
    kept, out = (torch.from_numpy(r) for r in stratified_split(y.numpy(), 0.2, 3, "linear probe validation"))
    mean, std = x[kept].mean(0), x[kept].std(0, correction=0)
    results = []
    for strength in linear.STRENGTHS:
        reference = LogisticRegression(C=1 / (len(kept) * strength), tol=1e-8, max_iter=5000)
        reference.fit(((x[kept] - mean) / std).numpy(), y[kept].numpy())
        p = reference.predict_proba(((x[out] - mean) / std).numpy())
        right = (p.argmax(1) == y[out].numpy()).sum()
        results.append((-right, -np.log(p[np.arange(len(out)), y[out].numpy()]).mean(), strength))
    assert linear.choose_strength(x, y, 4, 3) == min(results)[2]
    assert seen == [len(kept)]  # held-out samples tell nothing about their own scale


def test_scale_of_features_does_not_matter():
    x, y = cloud(300)
    test, test_y = cloud(200, seed=1)
    assert linear.run(x, y, test, test_y, 4)[0] == linear.run(x * 1e-6, y, test * 1e-6, test_y, 4)[0]


def test_one_sample_a_class_still_fits():
    x, y = torch.eye(3), torch.arange(3)
    metrics, config = linear.run(x, y, x, y, 3)
    assert metrics["top1"] == 100.0 and "note" in config


def test_constants_are_frozen():
    assert (linear.NAME, linear.VERSION, linear.VALIDATION) == ("linear", 1, 0.2)
    assert linear.STRENGTHS == (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00001)


def test_stratified_split_takes_a_share_of_every_class():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    large, small = stratified_split(labels, 0.2, 0, "x")
    assert sorted([*large, *small]) == list(range(63))
    assert [int((labels[small] == c).sum()) for c in range(4)] == [10, 2, 1, 0]
    again = stratified_split(labels, 0.2, 0, "x")
    other = stratified_split(labels, 0.2, 1, "x")
    assert np.array_equal(small, again[1]) and not np.array_equal(small, other[1])
