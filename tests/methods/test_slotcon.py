"""SlotCon: its losses against recorded numbers and the properties that its paper implies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.grouping import group_loss, pool_slots, present_slots, score_map, slot_loss, undo_view
from eyespot.methods.image.slotcon import SlotCon, SlotConConfig
from eyespot.methods.method import total
from eyespot.nets.backbones import Backbone, backbone
from eyespot.nets.teacher import cosine_momentum

FULL = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def small(**config):
    torch.manual_seed(0)
    chosen = {"image_size": 16, "prototypes": 12, "hidden": 16, "out": 8} | config
    return SlotCon(backbone("resnet8", image_size=16, width=8), SlotConConfig(**chosen))


def pictures(n: int = 8, side: int = 24):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def random_maps(*shape: int, seed: int = 0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("slotcon__grouping_losses")
    return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}, params


def maps(arrays, params):
    """Score maps and slots of both views of both networks: {"q1": (scores, slots), ...}."""
    found = {}
    for net, features in (("q", "x"), ("k", "y")):
        for view in "12":
            scores = score_map(arrays[features + view], arrays[f"proto_{net}"])
            slots = pool_slots(arrays[features + view], scores, params["teacher_temp"], params["attn_eps"])
            found[net + view] = scores, slots
    return found


@pytest.mark.golden
def test_maps_and_slots_agree_with_recorded_numbers(recorded):
    arrays, params = recorded
    found = maps(arrays, params)
    for name in ("q1", "k2"):
        scores, slots = found[name]
        aligned = undo_view(scores, arrays[f"coords{name[1]}"], arrays[f"flags{name[1]}"])
        for ours, theirs in ((scores, "scores"), (slots, "slots"), (aligned, "aligned")):
            torch.testing.assert_close(ours, arrays[f"{theirs}_{name}"], atol=1e-5, rtol=0)


@pytest.mark.golden
def test_losses_agree_with_recorded_numbers(recorded):
    arrays, params = recorded
    found = maps(arrays, params)
    group, slot = [], []
    for i, (a, b) in enumerate((("q1", "k2"), ("q2", "k1"))):
        aligned = [undo_view(found[n][0], arrays[f"coords{n[1]}"], arrays[f"flags{n[1]}"]) for n in (a, b)]
        group.append(group_loss(*aligned, arrays["center"], params["student_temp"], params["teacher_temp"]))
        held = present_slots(found[b][0])
        rows = (present_slots(found[a][0]) & held).flatten().nonzero()[:, 0]
        assert [len(rows), int(held.sum())] == arrays["n_pairs"][i].tolist()
        anchors, keys = found[a][1].flatten(0, 1)[rows], found[b][1].flatten(0, 1)
        slot.append(slot_loss(anchors, rows, keys, held.flatten(), params["slot_temp"]).mean())
    torch.testing.assert_close(torch.stack(group), arrays["group_losses"], rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.stack(slot), arrays["slot_losses"], rtol=1e-4, atol=0)
    weight = params["group_loss_weight"]
    both = weight * sum(group) + (1 - weight) * sum(slot)
    torch.testing.assert_close(both, arrays["total"], rtol=1e-4, atol=0)


@pytest.mark.golden
def test_centre_and_momentum_agree_with_recorded_numbers(recorded):
    arrays, params = recorded
    found = maps(arrays, params)
    method = small(prototypes=params["K_prototypes"], centre_momentum=params["center_momentum"])
    method.centre.copy_(arrays["center"])
    method.seen = [found[n][0].mean((0, 2, 3)) for n in ("k1", "k2")]
    method.after_step()
    torch.testing.assert_close(method.centre, arrays["center_after"], atol=1e-5, rtol=0)
    steps = params["momentum_steps"]
    ours = [cosine_momentum(params["momentum_base"], 1.0, step / steps) for step in range(steps + 1)]
    np.testing.assert_allclose(ours, arrays["momentum_schedule"].numpy(), atol=1e-6)


# --- pure functions -------------------------------------------------------------------------------------------------
def test_slots_of_a_constant_map_are_that_constant():
    features = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[None, :, None, None].expand(2, 3, 4, 5)
    slots = pool_slots(features, random_maps(2, 7, 4, 5))
    torch.testing.assert_close(slots, features[:, None, :, 0, 0].expand(2, 7, 3))


def test_scores_are_cosines():
    features, prototypes = random_maps(2, 5, 4, 3), random_maps(6, 5, seed=1)
    scores = score_map(features, prototypes)
    assert scores.abs().max() <= 1
    torch.testing.assert_close(score_map(3.7 * features, prototypes * torch.rand(6, 1).add(0.1)), scores)
    assert scores[1, 4, 2, 1] == pytest.approx(
        float(features[1, :, 2, 1] @ prototypes[4] / features[1, :, 2, 1].norm() / prototypes[4].norm())
    )


def test_the_whole_picture_comes_back_unchanged():
    scores = random_maps(3, 4, 5, 7)
    box, flags = FULL.expand(3, 4), torch.tensor([False, True, False])
    aligned = undo_view(scores, box, flags)
    torch.testing.assert_close(aligned[[0, 2]], scores[[0, 2]])
    torch.testing.assert_close(aligned[1], scores[1].flip(-1))


def test_overlap_shows_the_same_place_in_both_views():
    """Maps that are linear in the source's coordinates agree after alignment, whatever the crops and mirrors."""
    method = small()
    draws = Draws(seed=3, index=range(16))
    views = method.views({"image": pictures(16, 40)}, draws)
    from eyespot.views.image import view
    from eyespot.views.recipes import asymmetric

    pair = asymmetric(16, method.config.crop_min)
    first = view(pictures(16, 40), draws.scope("view1"), pair[0])
    second = view(pictures(16, 40), draws.scope("view2"), pair[1], overlap_with=first)
    centres = (torch.arange(16) + 0.5) / 16
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(1, -1, 2).expand(16, -1, -1)
    aligned = []
    for i, seen in ((1, first), (2, second)):
        coordinates = seen.to_source(grid).transpose(1, 2).unflatten(2, (16, 16))  # [B, 2, 16, 16]
        aligned.append(undo_view(coordinates.double(), views[f"box{i}"], views[f"flip{i}"]))
    area = views["box1"][:, 2:] - views["box1"][:, :2]
    shared = (area > 0).all(1)
    assert shared.sum() >= 14
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # RoIAlign clamps at the border
    error = (aligned[0] - aligned[1])[shared][inside].abs()
    assert error.median() < 0.05 and error.quantile(0.95) < 1.5


def test_uniform_assignments_cost_log_k():
    flat = torch.zeros(2, 9, 3, 3, dtype=torch.float64)
    assert float(group_loss(flat, flat, torch.zeros(1, 9, dtype=torch.float64))) == pytest.approx(math.log(9))


def test_present_slots_win_a_pixel():
    scores = torch.zeros(1, 4, 2, 2)
    scores[0, 2, 0, 0], scores[0, 3, 1, 1], scores[0, 1, :, 1] = 1.0, 0.5, 0.7
    assert present_slots(scores).tolist() == [[True, True, True, False]]


def test_slot_loss_equals_the_slow_version():
    keys, anchors = random_maps(10, 4), random_maps(3, 4, seed=1)
    present = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0, 1]).bool()
    positives = torch.tensor([2, 7, 9])
    ours = slot_loss(anchors, positives, keys, present, 0.3)
    for i, positive in enumerate(positives.tolist()):
        cosine = {r: float(torch.cosine_similarity(anchors[i], keys[r], dim=0)) / 0.3 for r in range(10) if present[r]}
        nll = -cosine[positive] + math.log(sum(math.exp(v) for v in cosine.values()))
        assert float(ours[i]) == pytest.approx(0.6 * nll)


def test_the_only_key_costs_nothing():
    present = torch.zeros(6, dtype=torch.bool)
    present[4] = True
    loss = slot_loss(random_maps(1, 3), torch.tensor([4]), random_maps(6, 3, seed=1), present)
    assert float(loss) == pytest.approx(0.0, abs=1e-12)


# --- the method -----------------------------------------------------------------------------------------------------
def one_step(method, draws=None, images=None):
    images = pictures() if images is None else images
    draws = draws or Draws(index=range(len(images)))
    terms = method(method.views({"image": images}, draws), draws)
    total(terms).backward()
    return terms


def test_every_parameter_of_the_student_has_a_gradient_and_none_of_the_teacher():
    method = small()
    one_step(method)
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name
        if parameter.grad is not None:
            assert parameter.grad.abs().sum() > 0, name


def test_group_loss_alone_gives_the_predictor_no_gradient():
    method = small(group_weight=1.0)
    terms = one_step(method)
    assert float(terms["slot"].detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in method.predictor.parameters())


def test_slot_loss_alone_moves_the_prototypes():
    method = small(group_weight=0.0)
    terms = one_step(method)
    assert float(terms["group"].detach()) == 0
    assert method.prototypes.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("common", [0, 1])
def test_too_few_common_slots_cost_nothing_and_keep_the_graph(common):
    """Fewer than two rows have no batch statistics: the loss is 0, the norm stays, and all get a gradient."""
    method = small()
    before = {k: v.clone() for k, v in method.predictor.state_dict().items()}
    scores, other = torch.zeros(1, 12, 4, 4), torch.zeros(1, 12, 4, 4)
    scores[:, 0], other[:, 1] = 1, 1
    other[:, 0, 0, 0] = 2 * common
    slots = torch.randn(1, 12, 8, requires_grad=True)
    loss = method._contrast(slots, scores, torch.randn(1, 12, 8), other)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in method.predictor.parameters())
    assert all(torch.equal(v, before[k]) for k, v in method.predictor.state_dict().items())


class Widening(Backbone):
    """Pools through a layer that the feature map does not pass."""

    def pool(self, features):
        return self.net.after(features.mean((2, 3)))


def test_layers_that_only_pooling_uses_have_a_gradient():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 4))
    net.add_module("after", nn.Linear(6, 6))
    net.forward = lambda x: net[0](x)
    torch.manual_seed(0)
    body = Widening(net, name="widening", channels=3, image_size=16)
    method = SlotCon(body, SlotConConfig(image_size=16, prototypes=4, hidden=8, out=4))
    one_step(method)
    assert net.after.weight.grad is not None


def test_teacher_follows_and_the_centre_moves_after_the_step():
    method = small()
    with torch.no_grad():
        method.projector[0].weight.add_(0.1)
    old = method.teacher.module["projector"][0].weight.clone()
    one_step(method)
    assert not method.centre.any()  # the loss has used the old centre
    method.progress = 1.0
    method.after_step()
    assert torch.equal(method.teacher.module["projector"][0].weight, old)  # momentum 1
    assert method.centre.any() and not method.seen
    method.progress = 0.0
    method.after_step()
    expected = old + 0.01 * (method.projector[0].weight.detach() - old)
    torch.testing.assert_close(method.teacher.module["projector"][0].weight, expected)


def test_evaluation_leaves_the_centre_alone():
    method = small().eval()
    one_step(method)
    assert not method.seen


def test_runs_on_plain_tensors_and_on_pictures_of_many_sizes():
    method = small()
    terms = method({"view1": torch.rand(4, 3, 16, 16), "view2": torch.rand(4, 3, 16, 16)})
    assert set(terms) == {"group", "slot"} and all(t.isfinite() for t in terms.values())
    sizes = [torch.randint(0, 256, (3, 10 + 7 * i, 30), dtype=torch.uint8) for i in range(4)]
    assert total(one_step(method, images=sizes)).isfinite()


def test_features_map_and_segments():
    method = small().eval()
    x = torch.rand(3, 3, 16, 16)
    assert method.embed(x).shape == (3, method.backbone.embed_dim)
    side = method.dense(x).shape[-1]
    assert method.segments(x).shape == (3, side, side)
    assert method.segments(x).dtype == torch.int64 and int(method.segments(x).max()) < 12


def test_plateau_is_the_loss_of_uniform_assignments():
    assert small(group_weight=0.5).plateau(8) == {}, "the slot loss says whether it learns"
    method = small(group_weight=1.0)
    nn.init.zeros_(method.prototypes.weight)
    nn.init.zeros_(method.teacher.module["prototypes"].weight)
    views = method.views({"image": pictures()}, Draws(index=range(8)))
    assert float(method(views)["group"].detach()) == pytest.approx(method.plateau(8)["group"], rel=1e-5)


def test_a_net_without_a_map_is_refused():
    flat = backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8)), image_size=16)
    with pytest.raises(UserError, match="feature map"):
        SlotCon(flat)


def test_loss_falls():
    method = small(crop_min=0.3)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    images, history = pictures(16), []
    for step in range(40):
        method.progress = step / 40
        optimizer.zero_grad()
        history.append(float(total(one_step(method, Draws(epoch=step, step=step, index=range(16)), images)).detach()))
        optimizer.step()
        method.after_step()
    assert np.mean(history[-5:]) < 0.95 * np.mean(history[:5])
