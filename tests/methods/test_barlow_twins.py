"""Barlow Twins: its terms from its parts and its limits."""

import pytest
import torch

from eyespot.losses.correlation import barlow
from eyespot.methods.image.barlow_twins import BarlowTwins, BarlowTwinsConfig
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return BarlowTwins(backbone(name, image_size=32), BarlowTwinsConfig(hidden=32, out=16, **settings))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_terms_are_those_of_the_cross_correlation(name):
    method = build(name, redundancy=0.01, scale=0.1)
    z1, z2 = (method.projector(method.backbone(v)) for v in views().values())
    invariance, redundancy = barlow(z1, z2, 0.01)
    terms = method(views())
    torch.testing.assert_close(terms, {"invariance": 0.1 * invariance, "redundancy": 0.1 * redundancy})


def test_equal_views_are_invariant():
    same = views()["view1"]
    assert build()({"view1": same, "view2": same})["invariance"].item() < 0.01


def test_equal_pictures_give_the_plateau_and_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    terms = method({"view1": same, "view2": same})
    sum(terms.values()).backward()
    assert terms["invariance"].item() == pytest.approx(method.plateau(5)["invariance"], rel=1e-3) == 16
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_every_parameter_learns():
    method = build()
    sum(method(views()).values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []
