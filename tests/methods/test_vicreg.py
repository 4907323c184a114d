"""VICReg: its terms from its parts and its limits."""

import pytest
import torch

from eyespot.errors import UserError
from eyespot.losses.correlation import vicreg
from eyespot.methods.image.vicreg import VICReg, VICRegConfig
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return VICReg(backbone(name, image_size=32), VICRegConfig(hidden=32, out=16, **settings))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_terms_are_the_weighted_ones_of_the_loss(name):
    method = build(name, invariance=10.0, variance=5.0, covariance=2.0, eps=0.01)
    invariance, variance, covariance = vicreg(*(method.projector(method.backbone(v)) for v in views().values()), 0.01)
    expected = {"invariance": 10 * invariance, "variance": 5 * variance, "covariance": 2 * covariance}
    torch.testing.assert_close(method(views()), expected)


def test_equal_views_are_invariant():
    same = views()["view1"]
    assert build()({"view1": same, "view2": same})["invariance"].item() == pytest.approx(0, abs=1e-6)


def test_equal_pictures_give_the_plateau_and_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    terms = method({"view1": same, "view2": same})
    sum(terms.values()).backward()
    assert terms["variance"].item() == pytest.approx(method.plateau(5)["variance"], rel=1e-3) == 49.5
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_every_parameter_learns():
    method = build()
    sum(method(views()).values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_a_negative_weight_is_named():
    with pytest.raises(UserError, match="variance=-1"):
        build(variance=-1.0)
