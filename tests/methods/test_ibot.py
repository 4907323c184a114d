"""iBOT: its losses from their parts, masks, centres, one head or two."""

import math

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.distillation import dino
from eyespot.methods.image.ibot import IBOT, IBOTConfig
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone

SMALL = {"prototypes": 24, "hidden": 32, "bottleneck": 16}


def build(cls=IBOT, net="vit_nano", options=None, epochs=100.0, **settings):
    torch.manual_seed(0)
    body = backbone(net, image_size=32, **(options or {}))
    return cls(body, cls.Config(**{**SMALL, **settings}), Info(epochs=epochs))


def views(n=4, local=0):
    generator = torch.Generator().manual_seed(1)
    sizes = {"view1": 32, "view2": 32, **{f"local{i + 1}": 16 for i in range(local)}}
    return {name: torch.rand(n, 3, s, s, generator=generator) for name, s in sizes.items()}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("local", [0, 2])
def test_is_the_sum_of_its_parts(shared, local):
    method = build(shared_head=shared).double().eval()
    method.centre, method.patch_centre = torch.randn(2, 24).double() / 10
    given = {k: v.double() for k, v in views(local=local).items()}
    draws = Draws(index=range(4))
    mask = method.masks(draws, (8, 8)).flatten(1).unflatten(0, (2, 4))
    head, patch_head = method.heads()[0], method.heads()[-1]
    body, copies = method.teacher.module[0], list(method.teacher.module)[1:]
    classes, targets, costs = [], [], []
    for v, x in enumerate(given.values()):
        large = v < 2
        tokens = method.backbone.tokens(x, replace=(mask[v], method.mask_token) if large else None)
        classes.append(head(tokens[:, 0]))
        if not large:
            continue
        whole = body.tokens(x)
        targets.append(copies[0](whole[:, 0]))
        for b in range(4):
            q = ((copies[-1](whole[b, 1:]) - method.patch_centre) / 0.04).softmax(-1)
            log_p = (patch_head(tokens[b, 1:]) / 0.1).log_softmax(-1)
            each = -(q * log_p).sum(-1)
            hidden = mask[v, b]
            costs.append(each[hidden].mean() if hidden.any() else each.sum() * 0)
    terms = method(given, draws)
    expected = dino(torch.stack(classes), torch.stack(targets), method.centre, 0.1, 0.04)
    torch.testing.assert_close(terms["class"], expected)
    torch.testing.assert_close(terms["patches"], torch.stack(costs).mean())
    assert 0 < int((mask.flatten(0, 1).any(1)).sum()) < 8, "some views are masked, some are not"


def test_masks_have_the_stated_shares():
    method = build(mask_probability=0.5, mask_ratio=(0.1, 0.5))
    mask = method.masks(Draws(index=range(400)), (8, 8)).flatten(1)
    share = mask.float().mean(1)
    assert mask.shape == (800, 64) and abs(float((share == 0).float().mean()) - 0.5) < 0.06
    some = share[share > 0]
    assert some.max() <= 0.5 and abs(float(some.mean()) - 0.3) < 0.03
    assert not torch.equal(mask[:400], mask[400:]), "the two views have masks of their own"
    part = method.masks(Draws(index=[7, 3]), (8, 8)).flatten(1)
    assert torch.equal(part, mask[[7, 3, 407, 403]])


def test_without_masks_the_patches_cost_nothing():
    method = build(mask_probability=0.0)
    terms = method(views())
    assert terms["patches"] == 0
    sum(terms.values()).backward()
    assert method.mask_token.grad is not None and not method.mask_token.grad.any()


def test_hidden_patches_are_hidden_from_the_student_only():
    method, draws = build(local_crops=0).double().eval(), Draws(index=range(4))
    given = {k: v.double() for k, v in views().items()}
    mask = method.masks(draws, (8, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    changed = {
        f"view{i + 1}": torch.where(mask.chunk(2)[i], 1 - given[f"view{i + 1}"], given[f"view{i + 1}"]) for i in (0, 1)
    }
    a, b = method.encode(given, draws), method.encode(changed, draws)
    for key in ("student", "student_patches", "weight"):
        torch.testing.assert_close(a[key], b[key])
    assert (a["teacher_patches"] - b["teacher_patches"]).abs().max() > 1e-6


def test_equal_prototypes_give_the_plateau():
    method = build()
    with torch.no_grad():
        for layer in (method.head.last, method.teacher.module[1].last):
            layer.weight.fill_(1.0)
    terms = method(views(8), Draws(index=range(8)))
    masked = method.masks(Draws(index=range(8)), (8, 8)).flatten(1).any(1).float().mean()
    assert terms["class"].item() == pytest.approx(math.log(24), abs=1e-4)
    assert terms["patches"].item() == pytest.approx(math.log(24) * float(masked), abs=1e-4)
    assert method.plateau(8) == {"class": math.log(24)}


def test_centres_move_after_the_step_over_all_patches():
    method = build().eval()
    parts = [views(4), {k: v.flip(-1) for k, v in views(4).items()}]
    large = [torch.cat([v["view1"], v["view2"]]) for v in parts]
    net, head = method.teacher.module
    with torch.no_grad():
        patches = torch.stack([head(net.tokens(x)[:, 1:]).mean((0, 1)) for x in large]).mean(0)
        classes = torch.stack([head(net.tokens(x)[:, 0]).mean(0) for x in large]).mean(0)
    method.train()
    for v in parts:
        sum(method(v).values()).backward()
    assert not method.patch_centre.any()
    method.after_step()
    torch.testing.assert_close(method.patch_centre, 0.1 * patches, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(method.centre, 0.1 * classes, rtol=1e-4, atol=1e-7)
    before = method.patch_centre
    method.after_step()
    assert torch.equal(method.patch_centre, before)


@pytest.mark.parametrize("shared", [True, False])
def test_only_the_student_gets_a_finite_gradient_and_prototypes_wait(shared):
    method = build(shared_head=shared, epochs=50.0)
    for progress, frozen in ((0.0, True), (0.5, False)):
        method.progress = progress
        method.zero_grad(set_to_none=True)
        sum(method(views(local=1)).values()).backward()
        method.before_step()
        without = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
        assert without == ({f"{h}.last.weight" for h in ("head", "patch_head")[: 2 - shared]} if frozen else set())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_the_copy_follows_both_heads():
    method = build(shared_head=False, momentum=0.0)
    with torch.no_grad():
        method.patch_head.last.weight.add_(1.0)
    method.after_step()
    torch.testing.assert_close(method.teacher.module[-1].last.weight, method.patch_head.last.weight)
    assert len(build().teacher.module) == 2


def test_patches_have_a_temperature_of_their_own():
    method = build(teacher_temperature=0.07, teacher_patch_temperature=0.05, teacher_warmup=0.5)
    encoded = {k: v.detach() for k, v in method.encode(views()).items()}
    method.progress = 1.0
    classes, patches = method.targets(encoded)
    torch.testing.assert_close(classes, (encoded["teacher"] / 0.07).softmax(-1))
    torch.testing.assert_close(patches, (encoded["teacher_patches"] / 0.05).softmax(-1))


def test_features_are_the_class_token_unless_asked():
    x = views(2)["view1"]
    native, mean = build(), build(pooling="avg")
    torch.testing.assert_close(native.embed(x), native.backbone.tokens(x)[:, 0])
    torch.testing.assert_close(mean.embed(x), mean.backbone.tokens(x)[:, 1:].mean(1))


@pytest.mark.parametrize("net", ["vit_tiny_patch16_224", "test_vit"])
def test_timm_nets(net):
    method = build(net=net, local_crops=0)
    sum(method(views(2), Draws(index=range(2))).values()).backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build(net="resnet8"), "IBOT hides tokens, so it needs a vision transformer .* not 'resnet8'"),
        (lambda: build(options={"class_token": False}), "needs a class token"),
        (lambda: build(mask_ratio=(0.5, 0.1)), r"mask_ratio=\(0.5, 0.1\)"),
        (lambda: build(mask_probability=1.5), "mask_probability=1.5 is out of range"),
        (lambda: build(teacher_patch_temperature=0.0), "teacher_patch_temperature=0.0"),
        (lambda: build(local_scale=(0.5, 0.2)), "local_scale"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_configuration_is_dinos_and_more():
    assert IBOTConfig().prototypes == 1024 and IBOTConfig().shared_head
