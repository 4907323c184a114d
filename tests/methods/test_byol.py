"""BYOL: its loss from its parts, where gradients flow, how the copy follows."""

import pytest
import torch
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.methods.compose import Composed
from eyespot.methods.image.byol import BYOL, BYOLConfig
from eyespot.methods.method import Plugin
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return BYOL(backbone(name, image_size=32), BYOLConfig(hidden=32, out=16, **settings))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_is_the_sum_of_both_directions(name):
    method = build(name)
    v1, v2 = views().values()
    p1, p2 = (method.predictor(method.projector(method.backbone(v))) for v in (v1, v2))
    t1, t2 = method.teacher(v1), method.teacher(v2)
    expected = 4 - 2 * F.cosine_similarity(p1, t2).mean() - 2 * F.cosine_similarity(p2, t1).mean()
    torch.testing.assert_close(method(views())["prediction"], expected)


def test_only_the_student_gets_a_gradient():
    method = build()
    method(views())["prediction"].backward()
    assert {n.split(".")[0] for n, p in method.named_parameters() if p.grad is None} == {"teacher"}


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_copy_follows_more_slowly_with_time(progress, momentum):
    method = build(momentum=0.9)
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1.0)
    old = [p.clone() for p in method.teacher.parameters()]
    method.progress = progress
    method.after_step()
    student = [*method.backbone.parameters(), *method.projector.parameters()]
    for o, s, t in zip(old, student, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(t, momentum * o + (1 - momentum) * s)


def test_the_copy_keeps_its_own_batch_norm_statistics():
    method = build()
    before = method.teacher.module[0].net.bn.running_mean.clone()
    method(views())
    assert not torch.equal(method.teacher.module[0].net.bn.running_mean, before)


def test_a_plugin_may_add_rows():
    class Doubled(Plugin):
        adds = ("positives",)

        def between(self, encoded, draws, host):
            return {**encoded, **{k: torch.cat([encoded[k]] * 2) for k in ("query", "key")}}

    plain, method = build(), build()
    torch.testing.assert_close(Composed(method, [Doubled(method)])(views()), plain(views()))


def test_only_the_second_view_is_solarised():
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    made = build(solarize=1.0, jitter=0.0).views({"image": white}, Draws(index=range(8)))
    assert made["view1"].min() > 0.99 and made["view2"].max() < 0.01


def test_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["prediction"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
