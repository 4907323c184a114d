"""SimCLR: its loss from its parts, its limit, and what a plug-in may add."""

import math

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.contrastive import nt_xent
from eyespot.methods.compose import Composed
from eyespot.methods.image.simclr import SimCLR, SimCLRConfig
from eyespot.methods.method import Plugin
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return SimCLR(backbone(name, image_size=32), SimCLRConfig(hidden=32, out=16, **settings))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


class Doubled(Plugin):
    """Every row once more: the form in which invented positives arrive."""

    adds = ("positives",)

    def between(self, encoded, draws, host):
        return {**encoded, **{k: torch.cat([encoded[k]] * 2) for k in ("query", "key")}}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_is_nt_xent_of_the_two_embeddings(name):
    method = build(name, temperature=0.3)
    encoded = method.encode(views())
    assert encoded["query"].shape == encoded["key"].shape == (6, 16)
    terms = method(views())
    torch.testing.assert_close(terms["nt_xent"], nt_xent(encoded["query"], encoded["key"], 0.3))


def test_equal_pictures_give_the_plateau_and_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    loss = method({"view1": same, "view2": same})["nt_xent"]
    loss.backward()
    assert loss.item() == pytest.approx(method.plateau(5)["nt_xent"], abs=1e-4) == math.log(9)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_every_parameter_learns():
    method = build()
    method(views())["nt_xent"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_the_loss_falls_below_its_plateau():
    method = build()
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    for _ in range(12):
        loss = method(views(16))["nt_xent"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    same = views(16)["view1"]
    assert method({"view1": same, "view2": same})["nt_xent"] < method.plateau(16)["nt_xent"] / 2


def test_a_plugin_may_add_rows():
    method = build()
    composed = Composed(method, [Doubled(method)])
    encoded = composed.encode(views())
    assert len(encoded["query"]) == 12
    expected = nt_xent(encoded["query"], encoded["key"], method.config.temperature)
    torch.testing.assert_close(composed.loss(encoded)["nt_xent"], expected)


def test_views_are_two_random_crops_of_every_picture():
    images = [torch.randint(0, 256, (3, 40 + i, 50), dtype=torch.uint8) for i in range(4)]
    made = build().views({"image": images}, Draws(index=range(4)))
    assert {k: tuple(v.shape) for k, v in made.items()} == {"view1": (4, 3, 32, 32), "view2": (4, 3, 32, 32)}
    assert not torch.equal(made["view1"], made["view2"])


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"crop_min": 0.0}, {"grey": 1.5}, {"blur": -1.0}])
def test_values_out_of_range_are_named(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(UserError, match=f"{name}={value} is out of range"):
        build(**setting)
