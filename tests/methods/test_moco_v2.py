"""MoCo v2: queue and key encoder move after the step, and only then; what a plug-in may add."""

import math

import pytest
import torch
from torch.nn import functional as F

from eyespot.losses.contrastive import moco
from eyespot.methods.compose import Composed
from eyespot.methods.image.moco_v2 import MoCoV2, MoCoV2Config
from eyespot.methods.method import Plugin
from eyespot.nets.backbones import backbone


def build(**settings):
    torch.manual_seed(0)
    return MoCoV2(backbone("resnet8", image_size=32), MoCoV2Config(hidden=32, out=16, **{"queue": 20, **settings}))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


class Doubled(Plugin):
    adds = ("positives",)

    def between(self, encoded, draws, host):
        return {**encoded, **{k: torch.cat([encoded[k]] * 2) for k in ("query", "key")}}


class Harder(Plugin):
    adds = ("negatives",)

    def between(self, encoded, draws, host):
        return {**encoded, "extra_negatives": F.normalize(encoded["query"].detach(), dim=1)[:, None]}


def test_is_info_nce_against_the_queue():
    method = build(temperature=0.3)
    encoded = method.encode(views())
    torch.testing.assert_close(encoded["key"].norm(dim=1), torch.ones(6))
    expected = moco(encoded["query"], encoded["key"], method.queue.columns, 0.3)
    torch.testing.assert_close(method(views())["info_nce"], expected)
    assert method.plateau(99) == {"info_nce": math.log(21)}


def test_keys_enter_the_queue_after_the_step():
    method = build()
    before = method.queue.columns
    method(views())["info_nce"].backward()
    assert torch.equal(method.queue.columns, before)
    keys = method.encode(views())["key"]
    method.after_step()
    assert int(method.queue.filled) == 6
    torch.testing.assert_close(method.queue.columns[:, :6], keys.T)
    method.after_step()
    assert int(method.queue.filled) == 6  # a key is pushed once


def test_the_parts_of_an_accumulated_batch_are_all_pushed():
    method = build()
    for _ in range(3):
        method(views(4))["info_nce"].backward()
    method.after_step()
    assert int(method.queue.filled) == 12


def test_nothing_is_kept_outside_training():
    method = build()
    with torch.no_grad():
        method(views())
    method.eval()(views())
    method.after_step()
    assert int(method.queue.filled) == 0


def test_only_the_student_gets_a_gradient():
    method = build()
    method(views())["info_nce"].backward()
    missing = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is None}
    assert missing == {"teacher"}
    assert all(not p.requires_grad for p in method.teacher.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_key_encoder_follows(momentum):
    method = build(momentum=momentum)
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1.0)
    old = [p.clone() for p in method.teacher.parameters()]
    method.after_step()
    student = [*method.backbone.parameters(), *method.projector.parameters()]
    for o, s, t in zip(old, student, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(t, momentum * o + (1 - momentum) * s)


def test_queue_and_teacher_are_part_of_the_state():
    method, other = build(), build()
    method(views())["info_nce"].backward()
    method.after_step()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(views()), method(views()))


def test_a_plugin_may_add_rows_and_they_enter_the_queue():
    plain, method = build(), build()
    composed = Composed(method, [Doubled(method)])
    torch.testing.assert_close(composed(views()), plain(views()))  # each row twice: the same mean
    composed.after_step()
    assert int(method.queue.filled) == 12


def test_a_plugin_may_add_negatives():
    plain, method = build(), build()
    composed = Composed(method, [Harder(method)])
    assert composed(views())["info_nce"] > plain(views())["info_nce"]
    composed.after_step()
    assert int(method.queue.filled) == 6


def test_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["info_nce"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
