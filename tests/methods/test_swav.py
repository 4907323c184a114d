"""SwAV: its loss from its parts, views of several sizes, prototypes that wait and stay on the sphere, the queue."""

import math

import pytest
import torch
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.losses.assignment import sinkhorn, swapped_prediction
from eyespot.methods.image.swav import SwAV, SwAVConfig
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone


def build(name="resnet8", epochs=100.0, **settings):
    torch.manual_seed(0)
    sizes = {"prototypes": 12, "hidden": 32, "out": 16}
    return SwAV(backbone(name, image_size=32), SwAVConfig(**{**sizes, **settings}), Info(epochs=epochs))


def views(n=6, local=0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"view1": 32, "view2": 32, **{f"local{i + 1}": 16 for i in range(local)}}
    return {name: torch.rand(n, 3, s, s, generator=generator) for name, s in sizes.items()}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("local", [0, 3])
def test_every_view_predicts_the_codes_of_the_large_ones(name, local):
    method = build(name, temperature=0.2, epsilon=0.1, iterations=2).eval()  # batch norm off: one pass a view
    z = torch.stack([F.normalize(method.projector(method.backbone(v)), dim=1) for v in views(local=local).values()])
    scores = z @ method.prototypes.weight.T
    codes = torch.stack([sinkhorn(s, 0.1, 2) for s in scores[:2]])
    expected = swapped_prediction(scores, codes, 0.2)
    torch.testing.assert_close(method(views(local=local))["swapped"], expected)


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_views_are_two_large_and_several_small(name):
    method = build(name, local_crops=2)
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    made = method.views({"image": images}, Draws(index=range(4)))
    assert {k: v.shape[-1] for k, v in made.items()} == {"view1": 32, "view2": 32, "local1": 16, "local2": 16}
    assert torch.isfinite(method(made)["swapped"])


def test_equal_prototypes_give_the_plateau():
    method = build()
    with torch.no_grad():
        method.prototypes.weight.fill_(0.25)
    assert method(views())["swapped"].item() == pytest.approx(math.log(12), abs=1e-4)
    assert method.plateau(1) == {"swapped": math.log(12)}


def test_prototypes_come_back_to_unit_length_after_a_step():
    method = build()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(12))
    with torch.no_grad():
        method.prototypes.weight.mul_(3.0)
    direction = F.normalize(method.prototypes.weight, dim=1)
    method.after_step()
    torch.testing.assert_close(method.prototypes.weight, direction)


def test_the_prototypes_wait_for_the_first_epoch():
    method = build(epochs=50.0, freeze_epochs=1.0)
    for progress, frozen in ((0.0, True), (0.019, True), (0.021, False)):
        method.progress = progress
        method.zero_grad(set_to_none=True)
        method(views())["swapped"].backward()
        method.before_step()
        assert (method.prototypes.weight.grad is None) == frozen
        assert method.projector[0].weight.grad is not None


def test_every_parameter_learns_and_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["swapped"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


# --- the queue -------------------------------------------------------------------------------------------------------
def test_there_is_no_queue_unless_asked_for():
    method = build()
    assert not [k for k in method.state_dict() if "queue" in k]
    method(views())["swapped"].backward()
    assert not method._new


def test_embeddings_of_each_large_view_enter_their_queue_after_the_step():
    method = build(queue=18)
    for seed in (1, 2):
        method(views(seed=seed))["swapped"].backward()
    z = [method.encode(views(seed=seed))["embedding"] for seed in (1, 2)]
    assert [int(q.filled) for q in method.queues] == [0, 0]
    method.after_step()
    for i, queue in enumerate(method.queues):
        assert int(queue.filled) == 12
        torch.testing.assert_close(queue.columns[:, :12].T, torch.cat([z[0][i], z[1][i]]), atol=1e-5, rtol=1e-4)
    method.after_step()
    assert [int(q.filled) for q in method.queues] == [12, 12]


def test_a_full_queue_takes_part_in_the_assignment_once_it_is_time():
    method = build(queue=6, queue_start=0.5)
    with torch.no_grad():
        method(views())
    method(views(seed=2))["swapped"].backward()
    plain = method.loss(method.encode(views()))["swapped"]
    method._new = method._new[:1]
    method.after_step()
    encoded = method.encode(views())
    torch.testing.assert_close(method.loss(encoded)["swapped"], plain)  # full, but early
    method.progress = 0.5
    joined = [torch.cat([z, q.columns.T]) for z, q in zip(encoded["embedding"], method.queues, strict=True)]
    codes = torch.stack([sinkhorn(method.prototypes(z), 0.03, 3)[:6] for z in joined])
    torch.testing.assert_close(method.loss(encoded)["swapped"], swapped_prediction(encoded["scores"], codes, 0.1))
    assert method.loss(encoded)["swapped"] != plain


def test_a_queue_that_is_not_full_is_left_out():
    method = build(queue=7, queue_start=0.0)
    plain = method(views())["swapped"]
    plain.backward()
    method.after_step()
    torch.testing.assert_close(method(views())["swapped"], plain)


def test_nothing_is_kept_outside_training():
    method = build(queue=6)
    with torch.no_grad():
        method(views())
    method.eval()(views())
    method.after_step()
    assert [int(q.filled) for q in method.queues] == [0, 0]
