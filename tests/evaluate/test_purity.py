"""Purity of clusters: separable classes, by the metrics' own functions, and pseudo labels of a run."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import eyespot
from eyespot.evaluate import purity
from eyespot.evaluate.clusters import kmeans, nearest_centre
from eyespot.metrics.clustering import matched_accuracy
from eyespot.nets.backbones import backbone, save_backbone
from eyespot.runs import write_json


def cloud(n=120, spread=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return centres[labels] + spread * torch.randn(n, 8, generator=generator, dtype=torch.float64), labels


def test_classes_that_are_apart_are_pure_and_noise_is_not():
    metrics, config = purity.run(*cloud(), *cloud(60, seed=1), 3)
    assert metrics == pytest.approx(dict.fromkeys(("purity", "accuracy", "nmi", "ari"), 100))
    assert config == {"clusters": 3, "samples": 120, "starts": 10}
    noisy, _ = purity.run(*cloud(spread=50), *cloud(60, spread=50, seed=1), 3)
    assert noisy["purity"] < 70 and abs(noisy["ari"]) < 20


def test_test_samples_belong_to_the_nearest_centre():
    x, labels = cloud(spread=1.0)
    centres = kmeans(x, 3, 0)
    unit = torch.nn.functional.normalize(x, dim=1)
    slow = torch.tensor([int(((unit[i] - centres) ** 2).sum(1).argmin()) for i in range(len(x))])
    assert torch.equal(nearest_centre(x, centres), slow)
    assert purity.run(x, labels, x, labels, 3)[0]["accuracy"] == pytest.approx(matched_accuracy(slow, labels))


def test_labels_are_only_counted():
    x, labels = cloud(spread=1.0)
    other = (labels * 7 + torch.arange(len(labels)) // 40) % 3
    assert purity.run(x, labels, x, labels, 3) == purity.run(x, other, x, labels, 3)


def test_pseudo_labels_of_a_run_are_measured_on_its_own_data(tmp_path, folders):
    save_backbone(backbone("resnet8", image_size=16), tmp_path)
    labels = torch.from_numpy(np.repeat([0, 1, 2], 20))
    save_file({"cluster": torch.where(torch.arange(60) < 6, 1, labels)}, tmp_path / "prepared.safetensors")
    write_json(tmp_path / "config.json", {"method": "g_simclr", "data": str(folders[0])})
    result = eyespot.evaluate(tmp_path, *folders, protocol="purity", workers=0)
    assert result["config"]["pseudo_labels"]["purity"] == 90 and result["config"]["pseudo_labels"]["clusters"] == 3
    assert set(result["floor"]) == {"purity", "accuracy", "nmi", "ari"}
    other = eyespot.evaluate(tmp_path, folders[1], folders[0], protocol="purity", floor=False, workers=0)
    assert "pseudo_labels" not in other["config"]
