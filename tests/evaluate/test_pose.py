"""Poses from frozen features: the regression, the optimisation of windows, and the protocol on a run."""

import numpy as np
import pytest
import torch

import eyespot
from eyespot.evaluate.pose import optimised, regressed, ridge
from eyespot.losses.poses import as_quaternions
from eyespot.metrics.poses import median_pose_errors, pose_errors


def some_poses(n, seed=0):
    return as_quaternions(0.4 * torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)).double())


def test_errors_in_metres_and_degrees():
    true = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]] * 3)
    said = true.clone()
    said[0, 0], said[1, 1] = 3.0, 1.0
    half = np.deg2rad(10) / 2
    said[2, 3:] = -torch.tensor([np.cos(half), 0, np.sin(half), 0])  # -q is the same rotation
    distance, angle = pose_errors(said, true)
    assert distance.tolist() == [3, 1, 0] and angle.tolist() == pytest.approx([0, 0, 10], abs=0.05)
    assert median_pose_errors(said, true)["translation"] == 1


def test_ridge_finds_a_linear_map_and_shrinks_with_its_strength():
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.randn(5, 6).double()
    fitted = ridge(x, x @ weight + 2.0, 1e-12)
    torch.testing.assert_close(fitted[:-1], weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fitted[-1], torch.full((6,), 2.0).double(), rtol=1e-6, atol=1e-6)
    assert float(ridge(x, x @ weight, 10.0)[:-1].norm()) < float(weight.norm())


def test_features_that_hold_the_pose_give_it_and_others_do_not():
    poses = some_poses(200)
    from eyespot.losses.poses import as_logarithms

    features = torch.cat([as_logarithms(poses), torch.ones(200, 1).double()], 1)  # a constant feature does no harm
    found, _ = regressed(features[:150], poses[:150], features[150:])
    assert median_pose_errors(found, poses[150:])["translation"] < 1e-2
    noise, strength = regressed(torch.randn(150, 6), poses[:150], torch.randn(50, 6))
    assert median_pose_errors(noise, poses[150:])["translation"] > 0.3 and strength == 1.0


def test_optimised_windows_are_nearer_to_the_truth_and_end_with_the_sequence():
    true = some_poses(12)
    noisy = true.clone()
    noisy[:, :3] += 0.3 * torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).double()
    starts = np.array([0] * 11 + [11])
    found = optimised(noisy, true, starts)
    assert torch.equal(found[11], noisy[11])
    assert median_pose_errors(found, true)["translation"] < 0.8 * median_pose_errors(noisy, true)["translation"]


@pytest.mark.slow
def test_the_protocol_on_a_run_and_on_a_backbone(tmp_path):
    run = eyespot.pretrain(
        "mapnet", data="tour:train", out=tmp_path / "run", backbone="resnet8", image_size=16, epochs=0.05, workers=0,
        batch_size=20, set_={"hidden": 8}, pictures=False,
    )  # fmt: skip
    options = {"test_data": "tour:test", "protocol": "pose", "workers": 0}
    found = eyespot.evaluate(run.path, data="tour:train", **options)
    assert found["protocol"] == "pose" and found["n_train"] == 400 and found["n_test"] == 120
    keys = {f"{a}{b}" for a in ("", "own_", "pgo_") for b in ("translation", "rotation")}
    assert keys <= set(found) and keys <= set(found["floor"])
    assert all(np.isfinite(found[k]) for k in keys)
    plain = eyespot.evaluate("resnet8", data="tour:train", protocol="pose", image_size=16, workers=0)
    assert "own_translation" not in plain and plain["n_train"] == 320 and plain["n_test"] == 80
    assert plain["floor"]["translation"] == plain["translation"]  # random weights are their own floor


def test_metres_and_degrees_are_no_percentages():
    from eyespot.evaluate.records import PLAIN

    assert {"translation", "rotation_mean", "own_rotation", "pgo_translation_mean"} <= set(PLAIN)
