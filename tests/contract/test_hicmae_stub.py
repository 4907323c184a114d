"""Contract: two towers, and wave and frames of one interval (a thin HiCMAE, arXiv 2401.05698)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from eyespot.draws import Draws, ensure
from eyespot.methods.method import Method, MethodConfig, Recipe
from eyespot.process import gather

RATE, FPS, FRAMES, SECONDS = 64, 8, 4, 4.0  # samples and frames a second; frames a clip; length of a recording
CHUNK = RATE // FPS


@dataclass(frozen=True)
class StubConfig(MethodConfig):
    weight: float = 0.1
    """Weight of the contrastive term, lambda."""
    masked: float = 0.5
    """Share of masked tokens."""


class HiCMAEStub(Method):
    needs = ("video", "audio")
    Config = StubConfig
    recipe = Recipe(optimizer="sgd")

    def __init__(self, backbone, config=None, info=None):
        super().__init__(backbone, config, info)
        self.decoders = nn.ModuleDict({"video": nn.Linear(16, 4), "audio": nn.Linear(16, CHUNK)})

    def read(self, meta, draws):
        start = float(draws.uniform64("interval")[0]) * (meta["seconds"] - FRAMES / FPS)
        return {"start": start, "seconds": FRAMES / FPS}

    def views(self, batch, draws):
        return {"video": batch["video"].flatten(2), "audio": batch["audio"].unflatten(1, (FRAMES, CHUNK))}

    def forward(self, views, draws=None):
        draws = ensure(draws, len(views["video"]))
        terms, pooled = {}, []
        for name, tokens in views.items():  # [B, L, D]
            noise = draws.uniform(f"mask/{name}", tokens.shape[1])
            mask = noise.argsort(1).argsort(1) < self.config.masked * tokens.shape[1]
            hidden = self.backbone[name](tokens * ~mask[..., None])  # [B, L, 16]
            visible = (hidden * ~mask[..., None]).sum(1)
            error = (self.decoders[name](hidden + visible[:, None]) - tokens).square().mean(2)
            terms[f"mse_{name}"] = error[mask].mean()
            pooled.append(normalize(visible, dim=1))
        similarity = gather(pooled[0]) @ gather(pooled[1]).T / 0.07
        target = torch.arange(len(similarity))
        both = cross_entropy(similarity, target) + cross_entropy(similarity.T, target)
        return {**terms, "contrast": self.config.weight * both / 2}

    def embed(self, inputs):
        hidden = [self.backbone[name](tokens).mean(1) for name, tokens in self.views(inputs, None).items()]
        return torch.cat(hidden, 1)

    def plateau(self, batch):
        return {"contrast": self.config.weight * math.log(batch)}


def recording(sample: int, plan: dict) -> dict[str, torch.Tensor]:
    """What a source decodes of one recording: frames and wave show the same clock, at their own rates."""
    frames = plan["start"] + np.arange(FRAMES) / FPS
    wave = plan["start"] + np.arange(FRAMES * CHUNK) / RATE
    clock = lambda t: np.sin(t * (1 + sample % 5) + sample)  # noqa: E731
    return {
        "video": torch.from_numpy(clock(frames)).float()[:, None, None].expand(FRAMES, 2, 2).clone(),
        "audio": torch.from_numpy(clock(wave)).float(),
    }


def decode(method, index, epoch, seed=0):
    """As a loader does: the plan of each sample first, from the draws of that sample alone, then the decoding."""
    parts = []
    for i in index:
        parts.append(recording(i, method.read({"seconds": SECONDS}, Draws(seed, epoch, index=[i]))))
    return {k: torch.stack([p[k] for p in parts]) for k in parts[0]} | {"index": torch.tensor(index)}


def stub(**config):
    torch.manual_seed(0)
    towers = {
        name: nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16))
        for name, width in (("video", 4), ("audio", CHUNK))
    }
    return HiCMAEStub(towers, StubConfig(**config))


def test_one_interval_serves_both_modalities():
    batch = decode(stub(), [3, 11, 4], epoch=2)
    assert torch.equal(batch["video"][:, :, 0, 0], batch["audio"][:, ::CHUNK])


def test_the_interval_depends_on_sample_and_epoch_only():
    method = stub()
    whole, part = decode(method, [3, 11, 4], 2), decode(method, [4], 2)
    assert torch.equal(whole["audio"][2], part["audio"][0])
    assert not torch.equal(decode(method, [4], 3)["audio"], part["audio"])


def test_both_towers_learn(loop):
    method = stub()
    before = {n: p.clone() for n, p in method.named_parameters()}
    batches = [decode(method, list(range(32)), epoch) for epoch in range(60)]
    history = loop(method, batches, steps=60, lr=0.03)
    assert all(not torch.equal(p, before[n]) for n, p in method.named_parameters())
    for term in ("mse_video", "mse_audio"):
        assert history[-1][term] < 0.8 * history[0][term]
    assert {k.split(".")[1] for k in method.state_dict() if k.startswith("backbone.")} == {"video", "audio"}


def test_embeds_a_pair():
    method = stub()
    assert method.embed(decode(method, [1, 2], 0)).shape == (2, 32)


def test_no_weight_no_gradient_of_the_contrast():
    grads = []
    for weight in (0.0, 0.1):
        method = stub(weight=weight)
        batch = decode(method, list(range(8)), 0)
        draws = Draws(index=batch["index"])
        terms = method(method.views(batch, draws), draws)
        kept = terms if weight == 0.0 else {k: v for k, v in terms.items() if k != "contrast"}
        grads.append(torch.autograd.grad(sum(kept.values()), list(method.backbone.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_plateau_is_the_loss_of_equal_embeddings():
    method = stub()
    for tower in method.backbone.values():
        nn.init.zeros_(tower[2].weight)
    batch = decode(method, list(range(8)), 0)
    terms = method(method.views(batch, Draws(index=batch["index"])))
    assert float(terms["contrast"].detach()) == pytest.approx(method.plateau(8)["contrast"], rel=1e-5)
