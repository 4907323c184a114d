"""Contract: batches from acting, per-row weights in and per-row errors out (a thin SPR, arXiv 2007.05929)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from eyespot.draws import Draws
from eyespot.methods.method import Method, Recipe, total

STATES, ACTIONS, AHEAD = 12, 3, 3


class SPRStub(Method):
    """Rolls the latent of the first frame forward by the actions; it must match a fixed target's latent of each later
    frame. `watch["row_error"]` [B] is what a source that samples by priority is given back."""

    needs = ("frames", "action", "done", "weight")
    recipe = Recipe(optimizer="sgd")

    def __init__(self, backbone, config=None, info=None):
        super().__init__(backbone, config, info)
        self.step = nn.Sequential(nn.Linear(16 + ACTIONS, 64), nn.ReLU(), nn.Linear(64, 16))
        self.target = copy.deepcopy(backbone).requires_grad_(False)

    def views(self, batch, draws):
        return {key: batch[key].to(draws.device) for key in self.needs}

    def forward(self, views, draws=None):
        latent, errors = self.backbone(views["frames"][:, 0]), []
        alive = 1 - views["done"].float().cumsum(1).clamp_max(1)
        for k in range(1, AHEAD + 1):
            action = one_hot(views["action"][:, k - 1], ACTIONS).to(latent)  # the one that led to frame k
            latent = self.step(torch.cat([latent, action], 1))
            with torch.no_grad():
                goal = normalize(self.target(views["frames"][:, k]), dim=1)
            errors.append((normalize(latent, dim=1) - goal).square().sum(1) * alive[:, k])
        rows = torch.stack(errors).mean(0)
        self.watch = {"row_error": rows.detach()}
        return {"prediction": (views["weight"] * rows).mean()}


class Replay:
    """What an acting loop fills: walks on a ring, sampled by priority with importance weights."""

    def __init__(self, n=200, seed=0, shift=0):
        rng = np.random.default_rng(seed)
        self.picture = torch.from_numpy(rng.normal(size=(STATES, 10))).float()
        self.action = rng.integers(0, ACTIONS, (n, AHEAD + 1))
        start = rng.integers(0, STATES, n)
        moves = np.concatenate([np.zeros((n, 1), int), np.cumsum(self.action[:, :AHEAD] - 1, 1)], 1)
        self.state = (start[:, None] + moves) % STATES
        self.action = np.roll(self.action, shift, 0)  # a shift gives every walk another walk's actions
        self.done = rng.random((n, AHEAD + 1)) < 0.05
        self.priority = np.ones(n)
        self.rng = rng

    def sample(self, count):
        chance = self.priority / self.priority.sum()
        rows = self.rng.choice(len(chance), count, p=chance)
        weight = (len(chance) * chance[rows]) ** -0.5
        return self.batch(rows, weight / weight.max())

    def batch(self, rows, weight):
        return {
            "index": torch.from_numpy(rows),
            "frames": self.picture[torch.from_numpy(self.state[rows])],
            "action": torch.from_numpy(self.action[rows]),
            "done": torch.from_numpy(self.done[rows]),
            "weight": torch.from_numpy(weight).float(),
        }

    def hear(self, batch, errors):
        self.priority[batch["index"].numpy()] = errors.numpy() + 1e-3


def stub():
    torch.manual_seed(0)
    return SPRStub(nn.Linear(10, 16))


def acted(loop, replay, steps=300):
    method = stub()
    return method, loop(
        method,
        (replay.sample(32) for _ in range(steps)),
        steps,
        lr=0.3,
        after=lambda batch: replay.hear(batch, method.watch["row_error"]),
    )


def test_learns_from_batches_of_an_acting_loop_and_needs_the_right_actions(loop):
    found = []
    for shift in (0, 1):
        method, _ = acted(loop, Replay(shift=shift))
        every = Replay(shift=shift).batch(np.arange(200), np.ones(200))
        with torch.no_grad():
            found.append(float(method(every)["prediction"]))
    assert found[0] < 0.5 * found[1]


def test_errors_come_back_row_by_row_and_steer_what_is_sampled(loop):
    replay = Replay()
    method, _ = acted(loop, replay, steps=5)
    rows = np.arange(200)
    batch = replay.batch(rows, np.ones(200))
    draws = Draws(index=rows)
    with torch.no_grad():
        loss = total(method(method.views(batch, draws), draws))
    errors = method.watch["row_error"]
    assert errors.shape == (200,) and not errors.requires_grad
    assert float(errors.mean()) == pytest.approx(float(loss), rel=1e-5)
    replay.hear(batch, errors)
    sampled = np.concatenate([replay.sample(32)["index"].numpy() for _ in range(60)])
    hard = errors.numpy()[sampled].mean()
    assert hard > 1.1 * float(errors.mean())


def test_weights_of_rows_scale_their_gradient():
    method, replay = stub(), Replay()
    rows = np.arange(16)

    def gradient(weight, chosen=rows):
        batch = replay.batch(chosen, weight)
        terms = method(method.views(batch, Draws(index=chosen)))
        return torch.autograd.grad(total(terms), list(method.backbone.parameters()))

    half = np.r_[np.ones(8), np.zeros(8)]
    for a, b in zip(gradient(half), gradient(np.ones(8), rows[:8]), strict=True):
        torch.testing.assert_close(2 * a, b)


def test_an_end_hides_what_follows():
    method, replay = stub(), Replay()
    replay.done[:] = False
    replay.done[:4, 0] = True
    batch = replay.batch(np.arange(8), np.ones(8))
    method(method.views(batch, Draws(index=range(8))))
    error = method.watch["row_error"]
    assert not error[:4].any() and (error[4:] > 0).all()
