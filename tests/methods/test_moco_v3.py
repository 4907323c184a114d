"""MoCo v3: its loss from its parts, where gradients flow, how the copy follows, the patches of a transformer."""

import pytest
import torch
from torch.nn import functional as F

from eyespot.losses.contrastive import moco_v3
from eyespot.methods.image.moco_v3 import MoCoV3, MoCoV3Config
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return MoCoV3(backbone(name, image_size=32), MoCoV3Config(**{"hidden": 32, "out": 16, **settings}))


def views(n=6):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(n, 3, 32, 32, generator=generator) for name in ("view1", "view2")}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_is_the_sum_of_both_directions(name):
    method = build(name, temperature=0.3)
    v1, v2 = views().values()
    q1, q2 = (method.predictor(method.projector(method.backbone(v))) for v in (v1, v2))
    k1, k2 = method.teacher(v1), method.teacher(v2)
    rows = torch.arange(6)
    expected = moco_v3(q1, k2, rows, 0.3) + moco_v3(q2, k1, rows, 0.3)
    torch.testing.assert_close(method(views())["info_nce"], expected)


def test_a_query_that_is_the_key_of_its_picture_costs_least():
    method = build()
    key = F.normalize(torch.randn(2, 6, 16), dim=-1)
    right = method.loss({"query": key, "key": key})["info_nce"]
    wrong = method.loss({"query": key, "key": key.roll(1, dims=1)})["info_nce"]
    assert right < 0.5 * method.plateau(6)["info_nce"] < wrong


def test_equal_embeddings_give_the_plateau():
    method, same = build(), torch.ones(2, 6, 16)
    loss = method.loss({"query": same, "key": same})["info_nce"].item()
    assert loss == pytest.approx(method.plateau(6)["info_nce"], rel=1e-5)


def test_only_the_student_gets_a_gradient():
    method = build()
    method(views())["info_nce"].backward()
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


def test_heads_have_no_bias_and_their_norms():
    method = build(layers=3, predictor_norm=True)
    linear = [m for m in (*method.projector, *method.predictor) if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 5 and all(m.bias is None for m in linear)
    for head in (method.projector, method.predictor):
        assert isinstance(head[-1], torch.nn.BatchNorm1d) and not head[-1].affine
    assert isinstance(build().predictor[-1], torch.nn.Linear)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patches_of_a_transformer_stay_random(frozen):
    method = build("vit_nano", freeze_patches=frozen)
    method(views())["info_nce"].backward()
    without = {n for n, p in method.backbone.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    projection = method.backbone.net.patch_embed.proj.weight
    assert projection.requires_grad != frozen and (projection.grad is None) == frozen


def test_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["info_nce"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
