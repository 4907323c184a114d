"""SimSiam: its loss from its parts, where gradients flow, the predictor's rate."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from eyespot.errors import UserError
from eyespot.methods.image.simsiam import SimSiam, SimSiamConfig
from eyespot.nets.backbones import backbone
from eyespot.train.optimizers import build_optimizer, set_rates


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    sizes = {"hidden": 32, "out": 16, "bottleneck": 8}
    return SimSiam(backbone(name, image_size=32), SimSiamConfig(**{**sizes, **settings}))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_is_half_the_sum_of_both_directions(name):
    method = build(name)
    z1, z2 = (method.projector(method.backbone(v)) for v in views().values())
    p1, p2 = method.predictor(z1), method.predictor(z2)
    expected = -F.cosine_similarity(p1, z2).mean() / 2 - F.cosine_similarity(p2, z1).mean() / 2
    torch.testing.assert_close(method(views())["prediction"], expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_projector_ends_with_a_plain_batch_norm_and_the_predictor_with_a_linear_layer(layers):
    method = build(layers=layers)
    assert sum(isinstance(m, torch.nn.Linear) for m in method.projector) == layers
    assert isinstance(method.projector[-1], torch.nn.BatchNorm1d) and not method.projector[-1].affine
    assert method.predictor[0].out_features == 8 and isinstance(method.predictor[-1], torch.nn.Linear)


def test_the_target_gets_no_gradient():
    """Through the target alone nothing reaches the projector."""
    method = build()
    encoded = method.encode(views())
    assert encoded["query"].requires_grad and not encoded["key"].requires_grad
    sum(method(views()).values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictor_keeps_its_rate(constant):
    method = build(constant_rate=constant)
    optimizer = build_optimizer(method, replace(method.recipe, optimizer="sgd"), 0.1)
    set_rates(optimizer, 0.01, 1e-4, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(method.parameters()))
    for name, parameter in method.named_parameters():
        kept = constant and name.startswith("predictor.")
        assert rates[id(parameter)] == (0.1 if kept else 0.01), name


def test_orthogonal_predictions_give_the_plateau():
    method = build()
    with torch.no_grad():
        method.predictor[-1].weight.zero_()
        method.predictor[-1].bias.zero_()
    assert method(views())["prediction"].item() == method.plateau(6)["prediction"] == 0


def test_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["prediction"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_a_width_out_of_range_is_named():
    with pytest.raises(UserError, match="bottleneck"):
        build(bottleneck=0)
