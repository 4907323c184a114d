"""The linear support vector machine and few-shot episodes on features whose classes are known."""

import numpy as np
import pytest
import torch

from eyespot.evaluate import few_shot, svm


def blobs(n, classes=6, apart=3.0, seed=0, dim=8):
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.eye(classes, dim)
    labels = torch.arange(n) % classes
    return centres[labels] + torch.randn(n, dim, generator=generator), labels


def test_the_machine_tells_what_is_apart_and_nothing_where_nothing_is():
    (x, y), (z, t) = blobs(180), blobs(90, seed=1)
    metrics, config = svm.run(x, y, z, t, 6)
    assert metrics["top1"] > 85 and config["C"] in svm.GRID and set(config["folds"]) == {str(c) for c in svm.GRID}
    noise = svm.run(torch.randn(180, 8), y, torch.randn(90, 8), t, 6)[0]
    assert noise["top1"] < 40


def test_the_chosen_machine_does_not_depend_on_the_size_of_the_features():
    (x, y), (z, t) = blobs(120), blobs(60, seed=1)
    first, large = svm.run(x, y, z, t, 6)[0], svm.run(1000 * x, y, 1000 * z, t, 6)[0]
    assert first["top1"] == pytest.approx(large["top1"], abs=2)


def test_no_test_sample_is_seen_before_the_end():
    (x, y), (z, t) = blobs(120), blobs(60, seed=1)
    _, config = svm.run(x, y, z, t, 6)
    _, other = svm.run(x, y, torch.zeros_like(z), t.flip(0), 6)
    assert config == other
    assert svm.run(x[:6], y[:6], z, t, 6)[1]["C"] == 1.0  # one sample a class: nothing to validate on


def test_episodes_of_classes_far_apart_are_right_and_of_noise_are_chance():
    (x, y), (z, t) = blobs(240, classes=8, apart=30), blobs(160, classes=8, apart=30, seed=1)
    metrics, config = few_shot.run(x, y, z, t, 8)
    assert metrics["5_way_1_shot"] == 100 and metrics["5_way_1_shot_spread"] == 0
    assert "10_way_10_shot" in config["left_out"] and "10_way_10_shot" not in metrics
    noise = few_shot.run(torch.randn(240, 8), y, torch.randn(160, 8), t, 8)[0]
    assert abs(noise["5_way_5_shot"] - 20) < 4 and noise["5_way_5_shot_spread"] > 1
    again = few_shot.run(x, y, z, t, 8)[0]
    assert again == metrics


def test_an_episode_against_a_loop():
    (x, y), (z, t) = blobs(60, classes=5, apart=1), blobs(40, classes=5, apart=1, seed=1)
    x, z = (torch.nn.functional.normalize(v, dim=1) for v in (x, z))
    name, shared = "5_way_1_shot", np.arange(5)
    found = few_shot._episode(x, y.numpy(), z, t.numpy(), shared, 5, 2, 0, 3, name)
    classes = few_shot._chosen(shared, 5, 0, f"few shot/{name}/classes", 3)
    assert sorted(classes.tolist()) == [0, 1, 2, 3, 4]
    support = {
        c: few_shot._chosen(np.flatnonzero(y.numpy() == c), 2, 0, f"few shot/{name}/support", 3) for c in classes
    }
    right = 0
    for i in range(40):
        scores = {c: float(z[i] @ torch.nn.functional.normalize(x[support[c]].mean(0), dim=0)) for c in classes}
        right += max(scores, key=lambda c: scores[c]) == int(t[i])
    assert found == pytest.approx(right / 40)


def test_two_classes_are_enough_for_something():
    x, y = blobs(12, classes=2)
    metrics, config = few_shot.run(x, y, x, y, 2)
    assert "2_way_1_shot" in metrics and len(config["left_out"]) == len(few_shot.SETTINGS_OF)
