"""DINO: its loss from its parts, views of several sizes, the schedules and the centre."""

import math

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.distillation import dino
from eyespot.methods.image.dino import DINO, DINOConfig
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone
from eyespot.nets.norms import has_batch_norm

SMALL = {"prototypes": 24, "hidden": 32, "bottleneck": 16}


def build(name="resnet8", epochs=100.0, **settings):
    torch.manual_seed(0)
    return DINO(backbone(name, image_size=32), DINOConfig(**{**SMALL, **settings}), Info(epochs=epochs))


def views(n=4, local=0):
    generator = torch.Generator().manual_seed(1)
    sizes = {"view1": 32, "view2": 32, **{f"local{i + 1}": 16 for i in range(local)}}
    return {name: torch.rand(n, 3, s, s, generator=generator) for name, s in sizes.items()}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("local", [0, 3])
def test_is_the_cross_entropy_with_the_other_views(name, local):
    method = build(name).eval()  # batch norm off, so that one pass a view gives the same numbers
    method.centre = torch.randn(24) / 10
    student = torch.stack([method.head(method.backbone(v)) for v in views(local=local).values()])
    teacher = torch.stack([method.teacher(v) for v in views().values()])
    terms = method(views(local=local))
    expected = dino(student, teacher, method.centre, 0.1, 0.04)
    torch.testing.assert_close(terms["distillation"], expected)


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
def test_views_are_two_large_and_several_small(name):
    method = build(name, local_crops=2)
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    made = method.views({"image": images}, Draws(index=range(4)))
    assert {k: v.shape[-1] for k, v in made.items()} == {"view1": 32, "view2": 32, "local1": 16, "local2": 16}
    assert torch.isfinite(method(made)["distillation"])


@pytest.mark.parametrize(("size", "local"), [(224, 96), (64, 32), (32, 16)])
def test_the_size_of_small_views_follows_the_large(size, local):
    net = backbone("resnet8", image_size=size)
    assert DINO(net, DINOConfig(image_size=size, **SMALL)).local_size == local


def test_a_net_of_one_size_is_refused_with_the_remedy():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * 32 * 32, 8)

        def forward(self, x):
            return self.linear(x.flatten(1))

    net = backbone(Fixed(), image_size=32)
    with pytest.raises(UserError, match="local_crops=0"):
        DINO(net, DINOConfig(**SMALL))
    assert torch.isfinite(DINO(net, DINOConfig(local_crops=0, **SMALL))(views())["distillation"])


def test_equal_prototypes_give_the_plateau():
    method = build()
    with torch.no_grad():
        for layer in (method.head.last, method.teacher.module[1].last):
            layer.weight.fill_(1.0)
    assert method(views())["distillation"].item() == pytest.approx(math.log(24), abs=1e-4)
    assert method.plateau(1) == {"distillation": math.log(24)}


def test_the_prototypes_wait_for_the_first_epoch():
    method = build(epochs=50.0, freeze_epochs=1.0)
    for progress, frozen in ((0.0, True), (0.019, True), (0.021, False)):
        method.progress = progress
        method.zero_grad(set_to_none=True)
        method(views())["distillation"].backward()
        method.before_step()
        assert (method.head.last.weight.grad is None) == frozen
        assert method.head.mlp[0].weight.grad is not None


def test_the_teacher_temperature_rises_and_stays():
    method, seen = build(teacher_warmup=0.5, teacher_temperature=0.07), []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method.progress = progress
        seen.append(method.teacher_temperature())
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_the_centre_moves_after_the_step_by_all_parts():
    method = build()
    parts = [views(4), {k: v.flip(-1) for k, v in views(4).items()}]
    means = [method.encode(v)["teacher"].mean((0, 1)) for v in parts]
    method = build()
    for v in parts:
        method(v)["distillation"].backward()
    assert not method.centre.any()
    method.after_step()
    torch.testing.assert_close(method.centre, 0.1 * (means[0] + means[1]) / 2, rtol=1e-4, atol=1e-6)
    before = method.centre
    method.after_step()
    assert torch.equal(method.centre, before)


def test_only_the_student_gets_a_finite_gradient():
    method = build()
    same = torch.full((5, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["distillation"].backward()
    assert {n.split(".")[0] for n, p in method.named_parameters() if p.grad is None} == {"teacher"}
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_a_scale_out_of_range_is_named():
    with pytest.raises(UserError, match="local_scale"):
        build(local_scale=(0.5, 0.2))


def test_the_head_has_batch_norm_where_the_backbone_has():
    assert has_batch_norm(build().head) and has_batch_norm(build().teacher)
    assert not has_batch_norm(build(batch_norm=False).head)
    torch.manual_seed(0)
    net = DINO(backbone("vit_nano", image_size=16), DINOConfig(image_size=16, prototypes=8, hidden=16, bottleneck=8))
    assert not has_batch_norm(net.head)
