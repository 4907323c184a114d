"""Poses: recorded numbers, the properties of the maps, limits of the losses, pose-graph optimisation."""

import math

import pytest
import torch

from eyespot.losses import poses


def tensors(arrays):
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def some(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.golden
def test_losses_agree_with_the_recorded_numbers(golden):
    arrays, params = golden("mapnet__losses")
    a = tensors(arrays)
    absolute, relative = (params["sax"], params["saq"]), (params["srx"], params["srq"])
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(poses.pose_loss(a["pred"], a["target"], *absolute), a["posenet_loss"], **close)
    torch.testing.assert_close(poses.mapnet_loss(a["pred"], a["target"], absolute, relative), a["mapnet_loss"], **close)
    torch.testing.assert_close(poses.odometry(a["pred_pp"][:, params["T"] :]), a["vo_of_pred"], **close)
    found = poses.mapnet_pp_loss(a["pred_pp"], a["target_abs_pp"], a["target_vo_pp"], absolute, relative)
    torch.testing.assert_close(found, a["mapnet_pp_loss"], **close)
    torch.testing.assert_close(poses.quaternion_exp(a["logq"]), a["quat"], **close)
    torch.testing.assert_close(poses.quaternion_log(a["quat"]), a["logq_back"], **close)
    torch.testing.assert_close(poses.angle_degrees(a["quat"][1], a["quat"]), a["err_deg"], rtol=1e-4, atol=0.05)


@pytest.mark.golden
def test_pose_graph_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("mapnet__pgo")
    a = tensors(arrays)
    covariances = tuple(params[k] for k in ("sax", "saq", "srx", "srq"))
    found = poses.optimised_poses(a["pred"], a["vos"], covariances, params["n_iters"], released=True)
    torch.testing.assert_close(found, a["optimized"], rtol=1e-3, atol=1e-3)
    wide = {k: v.double() for k, v in a.items()}
    for key, at in (("cost_before", wide["pred"]), ("cost_after", wide["optimized"])):
        cost = poses.pose_graph_cost(at, wide["pred"], wide["vos"], covariances)
        assert float(cost) == pytest.approx(float(a[key]), rel=1e-3)
    exact = poses.optimised_poses(wide["pred"], wide["vos"], covariances)
    assert float(poses.pose_graph_cost(exact, wide["pred"], wide["vos"], covariances)) <= float(cost) + 1e-9
    noise, left = (wide["pred"] - wide["gt"]).norm(), (exact - wide["gt"]).norm()
    assert float(left) < float(noise)


def test_exp_and_log_are_inverse():
    w = some(50, 3, scale=0.4)
    q = poses.quaternion_exp(w)
    torch.testing.assert_close(q.norm(dim=1), torch.ones(50).double())
    torch.testing.assert_close(poses.quaternion_log(q), w)
    angle = 0.7
    turn = torch.tensor([math.cos(angle / 2), 0, 0, math.sin(angle / 2)])
    torch.testing.assert_close(poses.quaternion_log(turn), torch.tensor([0, 0, angle / 2]))
    still = torch.tensor([[1.0, 0, 0, 0]], requires_grad=True)
    out = poses.quaternion_log(still)
    out.sum().backward()
    assert float(out.detach().abs().max()) == 0 and still.grad is not None and bool(still.grad.isfinite().all())
    zero = torch.zeros(1, 3, requires_grad=True)
    poses.quaternion_exp(zero).sum().backward()
    torch.testing.assert_close(zero.grad, torch.ones(1, 3))


def test_rotations_against_matrices():
    q = poses.quaternion_exp(some(6, 3))
    v = some(6, 3, seed=1)
    for k in range(6):
        w, x, y, z = q[k].tolist()
        matrix = [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]]
        matrix += [[2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]]
        matrix += [[2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
        torch.testing.assert_close(poses.rotated(q[k], v[k]), torch.tensor(matrix).double() @ v[k])
    p = poses.quaternion_exp(some(6, 3, seed=2))
    torch.testing.assert_close(poses.rotated(poses.product(p, q), v), poses.rotated(p, poses.rotated(q, v)))


def test_a_pose_and_its_odometry_give_the_next_pose():
    path = some(2, 5, 6, scale=0.5)
    steps = poses.odometry(path)
    torch.testing.assert_close(poses.composed(path[:, :-1], steps), path[:, 1:], rtol=1e-6, atol=1e-6)
    same = path[:, :1].expand(-1, 3, -1)
    assert float(poses.odometry(same).abs().max()) < 1e-12
    # the step is in the frame of the camera: turning the world does not change it
    turn = poses.quaternion_exp(some(3, seed=4))
    as_q = poses.as_quaternions(path)
    turned = torch.cat([poses.rotated(turn, as_q[..., :3]), poses.product(turn, as_q[..., 3:])], -1)
    torch.testing.assert_close(poses.odometry(poses.as_logarithms(turned)), steps, rtol=1e-6, atol=1e-6)


def test_limits_of_the_losses():
    path = some(3, 4, 6)
    assert float(poses.pose_loss(path, path)) == -3 and float(poses.mapnet_loss(path, path)) == -6
    moved = path.clone()
    moved[..., :3] += 5
    torch.testing.assert_close(poses.differences(moved), poses.differences(path))
    single = poses.mapnet_loss(moved, path) - poses.pose_loss(moved, path)
    assert float(single) == pytest.approx(-3)
    beta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    poses.pose_loss(moved, path, beta).backward()
    assert float(beta.grad) == pytest.approx(1 - 5)  # 1 - e^-beta error: least at beta = log(error)


def test_q_and_minus_q_are_one_rotation():
    q = poses.quaternion_exp(some(4, 3))
    assert float(poses.angle_degrees(q, -q).max()) < 1e-4
    pose = torch.cat([some(4, 3), -q], 1)
    torch.testing.assert_close(poses.as_logarithms(pose)[:, 3:], poses.quaternion_log(poses.upper(q)))


def test_the_pose_graph_keeps_what_agrees_and_forgets_steps_it_does_not_trust():
    path = some(6, 6, scale=0.3)
    exact, steps = poses.as_quaternions(path), poses.as_quaternions(poses.odometry(path))
    torch.testing.assert_close(poses.optimised_poses(exact, steps), exact, rtol=1e-6, atol=1e-6)
    noisy = exact.clone()
    noisy[:, :3] += some(6, 3, seed=3, scale=0.2)
    free = poses.optimised_poses(noisy, steps, (1.0, 1.0, 1e9, 1e9))
    torch.testing.assert_close(free, noisy, rtol=1e-5, atol=1e-5)
    tied = poses.optimised_poses(noisy, steps, (1.0, 1.0, 0.01, 0.01))
    assert float((tied - exact).norm()) < 0.7 * float((noisy - exact).norm())
