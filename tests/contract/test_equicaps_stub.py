"""Contract: pairs of pictures with known relative pose (a thin EquiCaps, arXiv 2506.09895)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn.functional import normalize

from eyespot.draws import Draws
from eyespot.methods.method import Method, MethodConfig, Recipe
from eyespot.nets.backbones import backbone

CAPSULES, SIDE = 4, 16


@dataclass(frozen=True)
class StubConfig(MethodConfig):
    equivariance: float = 5.0
    """Weight of the equivariant term."""


class EquiCapsStub(Method):
    """One pose matrix a capsule: that of picture 1 times the known transform must be that of picture 2."""

    needs = ("pair", "pose")
    Config = StubConfig
    recipe = Recipe(optimizer="sgd")

    def __init__(self, backbone, config=None, info=None):
        super().__init__(backbone, config, info)
        self.capsules = nn.Linear(backbone.embed_dim, CAPSULES * 9)

    def views(self, batch, draws):
        first, second = batch["pose"].to(draws.device).unbind(1)
        pair = batch["pair"].to(draws.device).float() / 255
        return {"view1": pair[:, 0], "view2": pair[:, 1], "transform": first.transpose(1, 2) @ second}

    def forward(self, views, draws=None):
        first, second = (
            self.capsules(self.backbone(views[v])).unflatten(1, (CAPSULES, 3, 3)) for v in ("view1", "view2")
        )
        moved = first @ views["transform"].to(first)[:, None]  # multiplied from the right
        error = normalize(moved.flatten(2), dim=2) - normalize(second.flatten(2), dim=2)
        spread = torch.relu(0.2 - second.flatten(1).std(0)).mean()  # keeps the poses from becoming one constant
        return {"equivariance": self.config.equivariance * error.square().mean(), "spread": spread}


def render(rotations: np.ndarray) -> torch.Tensor:
    """Pictures [n, 3, SIDE, SIDE] of three coloured points on a turned body, seen along z: uint8."""
    points = rotations @ np.eye(3)  # columns: where the body's axes point
    centres = torch.from_numpy(points[:, :2]).float()  # [n, (x, y), axis]
    depth = torch.from_numpy(points[:, 2]).float()
    grid = torch.linspace(-1.3, 1.3, SIDE)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    far = (x - centres[:, 0, :, None, None]) ** 2 + (y - centres[:, 1, :, None, None]) ** 2
    bright = torch.exp(-far / 0.15) * (0.6 + 0.4 * depth)[..., None, None]
    return (bright.clamp(0, 1) * 255).to(torch.uint8)


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    poses = Rotation.random(2 * n, random_state=rng).as_matrix().reshape(n, 2, 3, 3)
    pair = torch.stack([render(poses[:, 0]), render(poses[:, 1])], 1)
    return {"index": torch.arange(n), "pair": pair, "pose": torch.from_numpy(poses)}


def stub(**config):
    torch.manual_seed(0)
    return EquiCapsStub(backbone("resnet8", image_size=SIDE, width=8), StubConfig(image_size=SIDE, **config))


def test_the_transform_leads_from_the_first_pose_to_the_second():
    batch = pairs(5)
    transform = stub().views(batch, Draws(index=range(5)))["transform"]
    torch.testing.assert_close(batch["pose"][:, 0] @ transform, batch["pose"][:, 1])
    world = torch.from_numpy(Rotation.random(random_state=np.random.default_rng(3)).as_matrix())
    turned = stub().views(batch | {"pose": world @ batch["pose"]}, Draws(index=range(5)))["transform"]
    torch.testing.assert_close(turned, transform)


class TruePose(nn.Module):
    """Stands for perfect capsules: gives the pose written into the first pixels."""

    embed_dim = 9

    def forward(self, x):
        return x.flatten(1)[:, :9]


def perfect():
    method = EquiCapsStub(TruePose(), StubConfig())
    method.capsules = nn.Linear(9, CAPSULES * 9, bias=False).double()
    with torch.no_grad():
        method.capsules.weight.copy_(torch.eye(9, dtype=torch.float64).repeat(CAPSULES, 1))
    return method


def test_true_poses_cost_nothing_and_the_wrong_relation_costs():
    batch, method = pairs(6), perfect()
    views = method.views(batch, Draws(index=range(6)))
    views |= {f"view{i + 1}": batch["pose"][:, i] for i in range(2)}
    assert float(method(views)["equivariance"].detach()) == pytest.approx(0, abs=1e-12)
    other = batch["pose"][:, 1] @ batch["pose"][:, 0].transpose(1, 2)
    assert float(method(views | {"transform": other})["equivariance"].detach()) > 0.1


def test_learns_equivariance_that_identity_transforms_do_not_give(loop):
    method = stub()
    history = loop(method, [pairs(48, seed) for seed in range(60)], steps=60, lr=0.02)
    first, last = (np.mean([h["equivariance"] for h in part]) for part in (history[:5], history[-5:]))
    assert last < 0.85 * first
    test = pairs(200, seed=999)
    views = method.views(test, Draws(index=range(200)))
    shuffled = views | {"transform": views["transform"].roll(1, 0)}
    with torch.no_grad():
        assert float(method(views)["equivariance"]) < 0.95 * float(method(shuffled)["equivariance"])
    assert method.embed(views["view1"]).shape == (200, method.backbone.embed_dim)
