"""DINOv2: balanced targets, masks spread over the batch, the KoLeo term, rates by depth."""

import math

import numpy as np
import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.assignment import sinkhorn
from eyespot.losses.distillation import across_views, hidden_tokens
from eyespot.losses.koleo import koleo
from eyespot.methods.image.dinov2 import DINOv2, DINOv2Config, rate_scale
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone
from eyespot.train.optimizers import parameter_groups

SMALL = {"prototypes": 24, "hidden": 32, "bottleneck": 16}


def build(net="vit_nano", **settings):
    torch.manual_seed(0)
    return DINOv2(backbone(net, image_size=32), DINOv2Config(**{**SMALL, **settings}), Info(epochs=100.0))


def views(n=4, local=0):
    generator = torch.Generator().manual_seed(1)
    sizes = {"view1": 32, "view2": 32, **{f"local{i + 1}": 16 for i in range(local)}}
    return {name: torch.rand(n, 3, s, s, generator=generator) for name, s in sizes.items()}


def test_is_the_sum_of_its_parts():
    method, draws = build(koleo_weight=0.3).double().eval(), Draws(index=range(4))
    given = {k: v.double() for k, v in views(local=2).items()}
    e = method.encode(given, draws)
    classes = sinkhorn(torch.cat(list(e["teacher"])), 0.04, 3).unflatten(0, (2, 4))
    patches = sinkhorn(e["teacher_patches"], 0.04, 3)
    terms = method(given, draws)
    torch.testing.assert_close(terms["class"], across_views(e["student"], classes))
    torch.testing.assert_close(terms["patches"], hidden_tokens(e["student_patches"], patches, e["weight"]))
    mask = method.masks(draws, (8, 8)).flatten(1).chunk(2)
    tokens = [method.backbone.tokens(given[f"view{i + 1}"], replace=(mask[i], method.mask_token))[:, 0] for i in (0, 1)]
    torch.testing.assert_close(terms["koleo"], 0.3 * (koleo(tokens[0]) + koleo(tokens[1])))


def test_softmax_centring_is_ibots():
    method = build(centring="softmax")
    method.centre, method.patch_centre = torch.randn(2, 24) / 10
    e = {k: v.detach() for k, v in method.encode(views()).items()}
    classes, patches = method.targets(e)
    torch.testing.assert_close(classes, ((e["teacher"] - method.centre) / 0.04).softmax(-1))
    torch.testing.assert_close(patches, ((e["teacher_patches"] - method.patch_centre) / 0.04).softmax(-1))


def test_exactly_half_is_masked_with_shares_spread_evenly():
    method = build()
    ratios = method.ratios(Draws(index=range(25)))
    assert ratios.shape == (2, 25)
    some = np.sort(ratios[ratios > 0])
    assert len(some) == 25
    steps = np.linspace(0.1, 0.5, 26)
    assert ((some >= steps[:-1]) & (some <= steps[1:])).all(), "one share in each of 25 equal steps"
    assert (method.ratios(Draws(index=range(25), epoch=1)) != ratios).any()
    assert (build(mask_probability=0.0).ratios(Draws(index=range(4))) == 0).all()
    assert (build(mask_probability=1.0).ratios(Draws(index=range(4))) >= 0.1).all()


def test_equal_prototypes_give_the_plateau():
    method = build()
    with torch.no_grad():
        for layer in (method.head.last, method.teacher.module[1].last):
            layer.weight.fill_(1.0)
    terms, plateau = method(views(8), Draws(index=range(8))), method.plateau(8)
    assert plateau == pytest.approx({"class": math.log(24), "patches": math.log(24) / 2})
    assert {k: terms[k].item() for k in plateau} == pytest.approx(plateau, abs=1e-4)


def test_gradients_are_finite_and_everywhere():
    method = build(shared_head=False)
    same = torch.full((5, 3, 32, 32), 0.5)
    sum(method({"view1": same, "view2": same}).values()).backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_rates_fall_towards_the_pixels():
    method = build(layer_decay=0.5, patch_rate=0.1)
    rates = {}
    for group in method.param_groups():
        rates |= dict.fromkeys((n for n, _ in group["params"]), group["lr_scale"])
    assert rates.keys() == {n for n, p in method.named_parameters() if p.requires_grad}
    assert rates["head.last.weight"] == rates["backbone.net.norm.weight"] == 1.0
    assert [rates[f"backbone.net.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    assert rates["backbone.net.cls_token"] == rates["mask_token"] == 1 / 16
    assert rates["backbone.net.patch_embed.proj.weight"] == pytest.approx(0.1 / 16)
    assert rate_scale("backbone.net.pos_embed", 3, 0.5, 0.1) == 1 / 16
    groups = parameter_groups(method, method.recipe)
    assert sum(len(g["params"]) for g in groups) == len(rates)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build("resnet8"), "DINOv2 hides tokens, so it needs a vision transformer .* not 'resnet8'"),
        (lambda: build(koleo_weight=-1.0), "koleo_weight=-1.0 is out of range"),
        (lambda: build(sinkhorn_iterations=0), "sinkhorn_iterations=0"),
        (lambda: build(layer_decay=0.0), "layer_decay=0.0"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
