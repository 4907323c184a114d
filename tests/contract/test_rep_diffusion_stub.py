"""Contract: an adapter that generates, guided by a frozen encoder (a thin version of arXiv 2312.07330)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.methods.method import Adapter, MethodConfig, Recipe, total

SIDE = 4
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class StubConfig(MethodConfig):
    steps: int = 20
    """Number of noise levels."""
    unconditional: float = 0.1
    """Share of the pictures that are trained without their embedding."""


class RepDiffusionStub(Adapter):
    """Predicts the clean picture from the noisy one, the level of noise and the embedding of the clean one."""

    needs = "image"
    Config = StubConfig
    recipe = Recipe(optimizer="sgd")

    def __init__(self, backbone, config=None, info=None):
        super().__init__(None, config, info)
        self.guides = {"encoder": backbone.eval().requires_grad_(False)}
        self.denoiser = nn.Sequential(
            nn.Linear(PIXELS + backbone.embed_dim + 1, 128), nn.ReLU(), nn.Linear(128, PIXELS)
        )
        beta = torch.linspace(0.1, 0.3, self.config.steps)
        self.register_buffer("kept", (1 - beta).cumprod(0))

    def views(self, batch, draws):
        image = batch["image"].to(draws.device).float() / 255
        return {"image": 2 * image - 1, "condition": self.guides["encoder"](image)}

    def forward(self, views, draws=None):
        image, condition = views["image"], views["condition"]
        draws = ensure(draws, len(image), image.device)
        level = draws.integers("level", self.config.steps)
        noise = draws.noise("noise", *image.shape[1:], normal=True).to(image)
        kept = self.kept[level][:, None, None, None]
        condition = condition * ~draws.coin("drop", self.config.unconditional)[:, None]
        guess = self.guess(kept.sqrt() * image + (1 - kept).sqrt() * noise, level, condition)
        return {"clean": (guess - image).square().mean()}

    def guess(self, noisy, level, condition):
        place = level[:, None].to(noisy) / self.config.steps
        return self.denoiser(torch.cat([noisy.flatten(1), condition, place], 1)).view_as(noisy)

    def embed(self, inputs):
        return self.guides["encoder"](inputs)

    @torch.no_grad()
    def sample(self, count, draws, **condition):
        x = draws.noise("start", 3, SIDE, SIDE, normal=True)
        for t in reversed(range(self.config.steps)):
            clean = self.guess(x, torch.full((count,), t), condition["embedding"]).clamp(-1, 1)
            noise = (x - self.kept[t].sqrt() * clean) / (1 - self.kept[t]).sqrt()
            before = self.kept[t - 1] if t else torch.ones(())
            x = before.sqrt() * clean + (1 - before).sqrt() * noise
        return ((x + 1) / 2).clamp(0, 1)


class MeanColour(nn.Module):
    """Stands for a self-supervised encoder; its batch norm would drift if anything trained it."""

    embed_dim = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        nn.init.eye_(self.scale.weight)

    def forward(self, x):
        return self.norm(self.scale(x.mean((2, 3)) - 0.5))


def batch(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    image = (colour.expand(-1, -1, SIDE, SIDE) * 255).to(torch.uint8)
    return {"image": image, "index": torch.arange(n) + 1000 * seed}


def stub(**config):
    torch.manual_seed(0)
    return RepDiffusionStub(MeanColour(), StubConfig(image_size=SIDE, **config))


@pytest.fixture(scope="module")
def trained(request):
    from importlib.util import module_from_spec, spec_from_file_location

    where = request.path.with_name("conftest.py")
    spec = spec_from_file_location("contract_conftest", where)
    helper = module_from_spec(spec)
    spec.loader.exec_module(helper)
    method = stub()
    guide = {k: v.clone() for k, v in method.guides["encoder"].state_dict().items()}
    history = helper.bare_loop(method, (batch(64, seed) for seed in range(200)), steps=200, lr=0.1)
    return method, history, guide


def test_learns(trained):
    _, history, _ = trained
    assert history[-1]["clean"] < 0.5 * history[0]["clean"]


def test_the_guide_is_outside_state_and_optimizer_and_stays_as_it_was(trained):
    method, _, guide = trained
    assert not any("scale" in k or "norm" in k or "encoder" in k for k in method.state_dict())
    assert all("denoiser" in n for group in method.param_groups() for n, _ in group["params"])
    assert all(torch.equal(v, guide[k]) for k, v in method.guides["encoder"].state_dict().items())
    assert method.embed(torch.rand(2, 3, SIDE, SIDE)).shape == (2, 3)


def test_samples_keep_their_embedding(trained):
    method, _, _ = trained
    wanted = torch.tensor([[0.4, -0.4, 0.0], [-0.4, 0.4, 0.3], [0.0, 0.0, -0.4]]).repeat(20, 1)
    made = method.sample(60, Draws(seed=5, index=range(60)), embedding=wanted)
    assert made.shape == (60, 3, SIDE, SIDE) and made.min() >= 0 and made.max() <= 1
    found = method.embed(made)
    own, other = (found - wanted).norm(dim=1).mean(), (found - wanted.roll(1, 0)).norm(dim=1).mean()
    assert own < 0.5 * other


def test_a_sample_is_a_function_of_its_draws(trained):
    method, _, _ = trained
    wanted = torch.zeros(6, 3)
    draws = Draws(seed=1, index=range(6))
    whole = method.sample(6, draws, embedding=wanted)
    torch.testing.assert_close(method.sample(2, draws.rows(4, 6), embedding=wanted[4:]), whole[4:])
    assert not torch.allclose(method.sample(6, Draws(seed=2, index=range(6)), embedding=wanted), whole)


def test_the_loss_of_a_sample_does_not_depend_on_its_batch():
    method, given = stub(unconditional=0.5), batch(8)
    whole = [
        method({k: v[i : i + 1] for k, v in method.views(given, Draws()).items()}, Draws(index=[i])) for i in range(8)
    ]
    together = method(method.views(given, Draws(index=range(8))), Draws(index=range(8)))
    torch.testing.assert_close(torch.stack([total(t) for t in whole]).mean(), total(together))


def test_an_adapter_says_what_it_cannot_do():
    with pytest.raises(UserError, match="does not predict classes"):
        stub().predict(torch.rand(1, 3, SIDE, SIDE))
    with pytest.raises(UserError, match="does not generate"):
        Adapter().sample(1, Draws())
