"""Camera poses: logarithms of unit quaternions, relative poses, the losses of MapNet, pose-graph optimisation.

A pose is [..., 7], translation and unit quaternion (w first) from the camera to the world, or [..., 6], translation and
the logarithm of the quaternion, whose length is half the angle. (Brahmbhatt, Gu, Kim, Hays, Kautz; CVPR 2018; arXiv
1712.03342.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision

SMALL = 1e-12


def _length(v: Tensor) -> tuple[Tensor, Tensor]:
    """|v| [..., 1] with a gradient everywhere (where v is almost 0 the length is a constant), and where that is."""
    square = v.square().sum(-1, keepdim=True)
    tiny = square < SMALL
    return torch.where(tiny, torch.ones_like(square), square).sqrt(), tiny


def quaternion_exp(w: Tensor) -> Tensor:
    """(cos |w|, sin |w| w / |w|): unit quaternions [..., 4] of logarithms [..., 3]."""
    n, tiny = _length(w)
    real = torch.where(tiny, 1 - w.square().sum(-1, keepdim=True) / 2, n.cos())
    return torch.cat([real, torch.where(tiny, torch.ones_like(n), n.sin() / n) * w], -1)


def quaternion_log(q: Tensor) -> Tensor:
    """v / |v| arccos(u): logarithms [..., 3] of unit quaternions (u, v) [..., 4]; 0 where v is 0. By the arctangent,
    whose gradient is finite where the arccosine's is not."""
    u, v = q[..., :1], q[..., 1:]
    n, tiny = _length(v)
    return torch.where(tiny, torch.ones_like(n), torch.atan2(n, u) / n) * v


def product(p: Tensor, q: Tensor) -> Tensor:
    """p q: the rotation q, then p; [..., 4] each."""
    a, b = p[..., :1], q[..., :1]
    v, w = p[..., 1:], q[..., 1:]
    v, w = torch.broadcast_tensors(v, w)
    real = a * b - (v * w).sum(-1, keepdim=True)
    return torch.cat([real, a * w + b * v + torch.linalg.cross(v, w)], -1)


def inverse(q: Tensor) -> Tensor:
    """Of unit quaternions [..., 4]."""
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def rotated(q: Tensor, v: Tensor) -> Tensor:
    """Vectors [..., 3] turned by unit quaternions [..., 4]."""
    return product(product(q, torch.cat([torch.zeros_like(v[..., :1]), v], -1)), inverse(q))[..., 1:]


def upper(q: Tensor) -> Tensor:
    """The one of q and -q, which are the same rotation, whose first number is not negative."""
    return torch.where(q[..., :1] < 0, -q, q)


def as_logarithms(pose: Tensor) -> Tensor:
    """[..., 7] -> [..., 6]."""
    return torch.cat([pose[..., :3], quaternion_log(upper(pose[..., 3:]))], -1)


def as_quaternions(pose: Tensor) -> Tensor:
    """[..., 6] -> [..., 7]."""
    return torch.cat([pose[..., :3], quaternion_exp(pose[..., 3:])], -1)


def differences(pose: Tensor) -> Tensor:
    """Plain differences of consecutive poses [..., T, 6]: [..., T - 1, 6], as the authors' MapNet compares them."""
    return pose[..., 1:, :] - pose[..., :-1, :]


def odometry(pose: Tensor) -> Tensor:
    """Consecutive poses [..., T, 6] each in the frame of the one before: [..., T - 1, 6],
    (R(q_i)^-1 (t_i+1 - t_i), log(q_i^-1 q_i+1)), as the paper defines them and MapNet++ compares them."""
    t, q = pose[..., :3], quaternion_exp(pose[..., 3:])
    back = inverse(q[..., :-1, :])
    moved = rotated(back, t[..., 1:, :] - t[..., :-1, :])
    return torch.cat([moved, quaternion_log(upper(product(back, q[..., 1:, :])))], -1)


def composed(pose: Tensor, step: Tensor) -> Tensor:
    """A pose [..., 6] after a step [..., 6] in its own frame."""
    q = quaternion_exp(pose[..., 3:])
    turned = quaternion_log(upper(product(q, quaternion_exp(step[..., 3:]))))
    return torch.cat([pose[..., :3] + rotated(q, step[..., :3]), turned], -1)


@full_precision
def weighed(translation: Tensor, rotation: Tensor, beta: Tensor | float, gamma: Tensor | float) -> Tensor:
    """e^-beta translation + beta + e^-gamma rotation + gamma, of mean errors (Kendall and Cipolla, CVPR 2017)."""
    b, g = torch.as_tensor(beta).to(translation), torch.as_tensor(gamma).to(translation)
    return (-b).exp() * translation + b + (-g).exp() * rotation + g


def pose_loss(predicted: Tensor, target: Tensor, beta: Tensor | float = 0.0, gamma: Tensor | float = -3.0) -> Tensor:
    """PoseNet's loss with logarithms, of poses or relative poses [..., 6]; errors are means over entries (eq. 2)."""
    error = (predicted - target).abs()
    return weighed(error[..., :3].mean(), error[..., 3:].mean(), beta, gamma)


def mapnet_loss(
    predicted: Tensor,
    target: Tensor,
    absolute: tuple[Tensor | float, Tensor | float] = (0.0, -3.0),
    relative: tuple[Tensor | float, Tensor | float] = (0.0, -3.0),
) -> Tensor:
    """Absolute loss of tuples of poses [B, T, 6] and the loss of their plain differences (eq. 3, as released)."""
    return pose_loss(predicted, target, *absolute) + pose_loss(differences(predicted), differences(target), *relative)


def mapnet_pp_loss(
    predicted: Tensor,
    target: Tensor,
    measured: Tensor,
    absolute: tuple[Tensor | float, Tensor | float] = (0.0, -3.0),
    relative: tuple[Tensor | float, Tensor | float] = (0.0, -3.0),
) -> Tensor:
    """MapNet++ (eq. 4): the first T of the predictions [B, 2 T, 6] against their poses [B, T, 6], and what the last
    T say about odometry against what was measured [B, T - 1, 6]."""
    known = target.shape[1]
    return pose_loss(predicted[:, :known], target, *absolute) + pose_loss(
        odometry(predicted[:, known:]), measured, *relative
    )


def angle_degrees(a: Tensor, b: Tensor) -> Tensor:
    """The angle between rotations, 2 arccos |a . b| in degrees, of unit quaternions [..., 4]."""
    return torch.rad2deg(2 * (a * b).sum(-1).abs().clamp(max=1).arccos())


# --- pose-graph optimisation ------------------------------------------------------------------------------------
def _residuals(
    step: Tensor, t: Tensor, q: Tensor, start: Tensor, steps: Tensor, roots: tuple[float, ...], released: bool
) -> Tensor:
    """All residuals, divided by the roots of their covariances, one after the other."""
    t, q = t + step[..., :3], product(q, quaternion_exp(step[..., 3:]))
    frame = inverse(q[..., :-1, :])
    moved = rotated(frame.detach() if released else frame, t[..., 1:, :] - t[..., :-1, :])
    turned = product(frame, q[..., 1:, :])
    parts = (t - start[..., :3], q - start[..., 3:], moved - steps[..., :3], turned - steps[..., 3:])
    return torch.cat([(part / root).flatten(-2) for part, root in zip(parts, roots, strict=True)], -1)


def pose_graph_cost(poses: Tensor, start: Tensor, steps: Tensor, covariances: tuple[float, ...]) -> Tensor:
    """What `optimised_poses` makes small, at poses [n, 7]."""
    roots = tuple(s**0.5 for s in covariances)
    none = poses.new_zeros(len(poses), 6)
    return _residuals(none, poses[:, :3], poses[:, 3:], start, steps, roots, False).square().sum()


@torch.no_grad()
def optimised_poses(
    predicted: Tensor,
    steps: Tensor,
    covariances: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    iterations: int = 10,
    released: bool = False,
) -> Tensor:
    """Predicted poses brought together with measured steps between them, by Gauss-Newton (section 3.4).

        sum_i |t_i - t^_i|^2 / s_1 + |q_i - q^_i|^2 / s_2
            + |R_i^-1 (t_i+1 - t_i) - v_i|^2 / s_3 + |q_i^-1 q_i+1 - r_i|^2 / s_4

    Args:
        predicted: [..., n, 7], t^ and q^, of one window or of many.
        steps: [..., n - 1, 7], v and r: each pose in the frame of the one before.
        covariances: s of translation, rotation, translation of a step, rotation of a step: larger is trusted less.
        released: leave out of the derivative that a step's translation turns with its frame, as the authors' code does.

    Returns:
        [..., n, 7].
    """
    roots = tuple(s**0.5 for s in covariances)
    windows = torch.cat([predicted[..., :3], upper(predicted[..., 3:])], -1).double()
    start, shape = windows.reshape(-1, *windows.shape[-2:]), windows.shape
    steps = torch.cat([steps[..., :3], upper(steps[..., 3:])], -1).double().reshape(len(start), -1, 7)
    t, q = start[..., :3], start[..., 3:]
    none = torch.zeros_like(start[..., :6])

    def residuals(step: Tensor, t: Tensor, q: Tensor, start: Tensor, steps: Tensor) -> Tensor:
        return _residuals(step, t, q, start, steps, roots, released)

    for _ in range(iterations):
        with torch.enable_grad():
            slope = torch.func.vmap(torch.func.jacrev(residuals))(none, t, q, start, steps).flatten(2)
        wrong = residuals(none, t, q, start, steps).unsqueeze(-1)
        move = torch.linalg.lstsq(slope, -wrong).solution.view_as(none)
        t, q = t + move[..., :3], product(q, quaternion_exp(move[..., 3:]))
        q = q / q.norm(dim=-1, keepdim=True)
    return torch.cat([t, q], -1).reshape(shape).to(predicted.dtype)
