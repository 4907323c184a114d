"""CMD: its two levels and the bags against slow loops and the limits of its equations."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from cmd_parts import bare, random_encoded

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.bags import divergence, log_distribution
from eyespot.losses.distillation import across_views, moved_centre
from eyespot.losses.regions import regions_across_views
from eyespot.methods.image.cmd import CMD, CMDConfig
from eyespot.methods.image.dino import DINO, DINOConfig
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone

SMALL = {"prototypes": 24, "hidden": 32, "bottleneck": 16}
AGGREGATORS = ["mean", "attention", "max"]


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return CMD(backbone(name, image_size=32), CMDConfig(**{**SMALL, **settings}), Info(epochs=100.0))


def views(n=4, local=2):
    generator = torch.Generator().manual_seed(1)
    sizes = {"view1": 32, "view2": 32, **{f"local{i + 1}": 16 for i in range(local)}}
    return {name: torch.rand(n, 3, s, s, generator=generator) for name, s in sizes.items()}


# --- slow loops ---------------------------------------------------------------------------------
def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("how", AGGREGATORS)
def test_bags_are_the_slow_loop(how):
    e = random_encoded(t=10)
    log_p = log_distribution(e["regions"], 0.3)
    method = bare(5, 7, aggregator=how, attention=6, top=0.2)
    gate = getattr(method, "gate", None)
    found = method._bag(log_p, e["tokens"], gate).exp()
    for v in range(2):
        for b in range(3):
            rows = [softmax([x / 0.3 for x in row]) for row in e["regions"][v, b].tolist()]
            if how == "mean":
                weights = [0.1] * 10
            elif how == "max":
                surest = sorted(range(10), key=lambda t: -max(rows[t]))[:2]
                weights = [0.5 if t in surest else 0.0 for t in range(10)]
            else:
                scores = []
                for f in e["tokens"][v, b]:
                    value, opened = method.gate.value.weight @ f, method.gate.gate.weight @ f
                    open_ = torch.tensor([1 / (1 + math.exp(-x)) for x in opened.tolist()], dtype=torch.float64)
                    hidden = torch.tensor([math.tanh(x) for x in value.tolist()], dtype=torch.float64) * open_
                    scores.append((method.gate.score.weight[0] @ hidden).item())
                weights = softmax(scores)
            bag = [sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in range(7)]
            assert found[v, b].tolist() == pytest.approx(bag, rel=1e-9)


# --- limits ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", AGGREGATORS)
def test_bags_sum_to_one_and_do_not_depend_on_the_order(how):
    e, method = random_encoded(t=11), bare(5, 7, aggregator=how)
    log_p, gate = log_distribution(e["regions"], 0.1), getattr(method, "gate", None)
    bag = method._bag(log_p, e["tokens"], gate)
    torch.testing.assert_close(bag.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(method._bag(log_p[:, :, order], e["tokens"][:, :, order], gate), bag)
    single = method._bag(log_p[:, :, :1], e["tokens"][:, :, :1], gate)
    torch.testing.assert_close(single, log_p[:, :, 0])


def test_uniform_predictions_cost_log_k():
    e = {
        k: torch.zeros_like(v) if k.endswith(("student", "teacher", "regions")) else v
        for k, v in random_encoded().items()
    }
    method = bare(5, 7, intra_weight=1.0)
    terms = method.loss(e)
    half = math.log(7) / 2
    assert terms["views"].item() == pytest.approx(half) == method.plateau(8)["views"]
    assert terms["regions"].item() == pytest.approx(half) == method.plateau(8)["regions"]
    assert terms["inter"].item() == pytest.approx(0, abs=1e-12)
    assert terms["intra"].item() == pytest.approx(math.log(7))


# --- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("how", AGGREGATORS)
@pytest.mark.parametrize("local", [0, 2])
def test_terms_are_those_of_the_parts(name, how, local):
    method = build(name, aggregator=how, intra_weight=0.5).eval()  # batch norm off: one pass a view is the same
    method.centre, method.region_centre = torch.randn(24) / 10, torch.randn(24) / 10
    pixels = views(local=local)
    copy, gates = method.teacher.module, [None, None]
    if how == "attention":
        nn.init.normal_(copy[3].score.weight)  # student and copy differ
        gates = [method.gate, copy[3]]
    q, bag, regions, tokens = [], [], [], []
    for v in pixels.values():
        places = method.backbone.forward_dense(v).flatten(2).transpose(1, 2)
        logits = torch.stack([method.region_head(row) for row in places])
        q.append((method.head(method.backbone(v)) / 0.1).log_softmax(-1))
        # a net that pools by the mean: the feature of a crop is the mean of its tokens
        torch.testing.assert_close(method.backbone(v), places.mean(1))
        bag.append(method._bag((logits / 0.1).log_softmax(-1), places, gates[0]))
        regions.append(logits[None]), tokens.append(places[None])
    large = [pixels["view1"], pixels["view2"]]
    p = torch.stack([((copy[1](copy[0](v)) - method.centre) / 0.04).softmax(-1) for v in large])
    others = torch.stack([copy[0].forward_dense(v).flatten(2).transpose(1, 2) for v in large])
    p_regions = ((copy[2](others.flatten(0, 2)).view(2, 4, -1, 24) - method.region_centre) / 0.04).softmax(-1)
    p_bag = method._bag(p_regions.log(), others, gates[1]).exp()
    log_q, b = torch.stack(q), torch.stack(bag)
    ways = [divergence(b, log_q), divergence(log_q, b)]
    first = [torch.cat(regions[:2]), *([torch.cat(regions[2:])] if local else [])]
    second = [torch.cat(tokens[:2]), *([torch.cat(tokens[2:])] if local else [])]
    expected = {
        "views": across_views(log_q, p, 1.0) / 2,
        "regions": regions_across_views(first, second, p_regions, others) / 2,
        "inter": 0.1 * (sum(ways) / 2 if how == "attention" else ways[0]),
        "intra": 0.5 * across_views(b, p_bag, 1.0),
    }
    torch.testing.assert_close(method(pixels), expected, rtol=1e-4, atol=1e-5)


def test_without_regions_it_is_dino():
    method = build(regions=False)
    torch.manual_seed(0)
    plain = DINO(backbone("resnet8", image_size=32), DINOConfig(**SMALL), Info(epochs=100.0))
    assert method.state_dict().keys() == plain.state_dict().keys()
    method.load_state_dict(plain.state_dict())
    for _ in range(2):
        ours, theirs = method(views()), plain(views())
        torch.testing.assert_close(ours["views"], theirs["distillation"])
        method.after_step(), plain.after_step()
        torch.testing.assert_close(method.centre, plain.centre)
    assert ours.keys() == {"views"} and method.plateau(8) == {"views": math.log(24)}


def test_weight_0_leaves_the_two_levels():
    whole, without = build()(views()), build(inter_weight=0.0)(views())
    assert without["inter"].item() == 0 and whole["inter"].item() > 0
    for level in ("views", "regions"):
        torch.testing.assert_close(whole[level], without[level])


@pytest.mark.parametrize("direction", ["bag_to_view", "view_to_bag", "both"])
def test_agreement_moves_the_side_that_is_no_target(direction):
    e = {k: v.requires_grad_() for k, v in random_encoded().items()}
    bare(5, 7, direction=direction).loss(e)["inter"].backward()
    moved = {k for k, v in e.items() if v.grad is not None and bool(v.grad.any())}
    places = {"regions", "local_regions"}
    assert moved == {"bag_to_view": {"student"}, "view_to_bag": places, "both": places | {"student"}}[direction]


def test_the_gradient_of_the_agreement_is_its_closed_form():
    e = random_encoded()
    q = e["student"].requires_grad_()
    method = bare(5, 7, inter_weight=1.0)
    (gradient,) = torch.autograd.grad(method.loss(e)["inter"], q)
    parts = [log_distribution(e[f"{s}regions"], 0.1).exp().mean(2) for s in ("", "local_")]
    expected = ((q / 0.1).softmax(-1) - torch.cat(parts)) / (0.1 * 3 * 4)
    torch.testing.assert_close(gradient, expected)


def test_directions_are_averaged():
    e = random_encoded()
    found = {d: bare(5, 7, direction=d).loss(e)["inter"] for d in ("bag_to_view", "view_to_bag", "both")}
    torch.testing.assert_close(found["both"], (found["bag_to_view"] + found["view_to_bag"]) / 2)


def test_the_copys_bag_may_be_half_the_target():
    e = random_encoded()
    method = bare(5, 7, teacher_bag_target=True)
    p = (e["teacher"] / 0.04).softmax(-1)
    bag = (e["teacher_regions"] / 0.04).softmax(-1).mean(2)
    torch.testing.assert_close(method.loss(e)["views"], across_views(e["student"], (p + bag) / 2, 0.1) / 2)


@pytest.mark.parametrize("settings", [{"aggregator": a} for a in AGGREGATORS] + [{"regions": False}])
def test_every_parameter_learns_and_only_the_student(settings):
    method = build(**settings)
    same = {name: torch.full_like(v, 0.5) for name, v in views().items()}
    for pixels in (same, views()):
        method.zero_grad()
        sum(method(pixels).values()).backward()
        assert {n.split(".")[0] for n, p in method.named_parameters() if p.grad is None} == {"teacher"}
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert settings.get("aggregator") != "attention" or all(p.grad.any() for p in method.gate.parameters())


def test_the_copy_follows_with_all_its_parts():
    method = build(aggregator="attention", momentum=0.5)
    before = [p.clone() for p in method.teacher.parameters()]
    student = [p for part in (method.backbone, method.head, method.region_head, method.gate) for p in part.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(1.0)
    method.after_step()
    for t, old, s in zip(method.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(t, (old + s) / 2)


def test_centres_move_after_the_step():
    method = build()
    encoded = method.encode(views())
    method = build()
    sum(method(views()).values()).backward()
    assert not method.centre.any() and not method.region_centre.any()
    method.after_step()
    regions = moved_centre(torch.zeros(24), encoded["teacher_regions"].mean((0, 1, 2)))
    torch.testing.assert_close(method.region_centre, regions, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.centre, 0.1 * encoded["teacher"].mean((0, 1)), rtol=1e-4, atol=1e-6)
    before = method.region_centre.clone()
    with torch.no_grad():
        method(views())
    method.after_step()
    assert torch.equal(method.region_centre, before)


def test_both_layers_of_prototypes_wait():
    method = build()
    sum(method(views()).values()).backward()
    method.before_step()
    assert method.head.last.weight.grad is None and method.region_head.last.weight.grad is None


def test_views_are_those_of_dino():
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    torch.manual_seed(0)
    plain = DINO(backbone("resnet8", image_size=32), DINOConfig(**SMALL))
    ours, theirs = (m.views({"image": images}, Draws(index=range(4))) for m in (build(), plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("how", AGGREGATORS)
def test_importance_is_what_places_count(how):
    method, pixels = build(aggregator=how).eval(), torch.rand(3, 3, 32, 24)
    found = method.importance(pixels)
    assert found.shape == (3, 4, 3)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
    counted = {"mean": [1 / 12] * 36, "max": ([0.0] * 11 + [1.0]) * 3}
    if how == "attention":
        places = method.backbone.forward_dense(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found.flatten(1), method.gate(places).exp())
    else:
        assert found.flatten(1).sort(1).values.flatten().tolist() == pytest.approx(counted[how])
    with pytest.raises(UserError, match="weighs no places"):
        build(regions=False).importance(pixels)


def test_settings_that_cannot_be_are_named():
    with pytest.raises(UserError, match="teaches the attention nothing"):
        build(aggregator="attention", direction="bag_to_view")
    assert build(aggregator="attention", direction="bag_to_view", intra_weight=1.0).direction == "bag_to_view"
    with pytest.raises(UserError, match="inter_weight=-1"):
        build(inter_weight=-1.0)
    with pytest.raises(UserError, match="needs a feature map"):
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))
        CMD(backbone(flat, image_size=32), CMDConfig(**SMALL))
