"""How far camera poses are from the true ones."""

from __future__ import annotations

from torch import Tensor

from eyespot.losses.poses import angle_degrees


def pose_errors(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Distances in metres [n] and angles in degrees [n] between poses [n, 7] (translation, unit quaternion)."""
    distance = (predicted[:, :3] - true[:, :3]).norm(dim=1)
    return distance, angle_degrees(predicted[:, 3:], true[:, 3:])


def median_pose_errors(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Median translation error in metres and rotation error in degrees, the figures of 7-Scenes, and their means."""
    distance, angle = pose_errors(predicted, true)
    return {
        "translation": float(distance.quantile(0.5)),
        "rotation": float(angle.quantile(0.5)),
        "translation_mean": float(distance.mean()),
        "rotation_mean": float(angle.mean()),
    }
