"""I-JEPA: what its sheet says must hold."""

import pytest
import torch
import torch.nn.functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.predictive import latent
from eyespot.methods.image.i_jepa import IJEPA, IJEPAConfig, context_least, predictor_shape
from eyespot.nets.backbones import backbone
from eyespot.nets.vit import gather_tokens


def method(net="vit_nano", options=None, **config):
    torch.manual_seed(0)
    return IJEPA(backbone(net, image_size=32, **(options or {})), IJEPAConfig(**config))


def pixels(n=4):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_plain_use_and_gradients_for_encoder_and_predictor_only():
    jepa = method()
    terms = jepa({"image": pixels()})
    assert list(terms) == ["latent"] and terms["latent"].dim() == 0
    terms["latent"].backward()
    assert {n.split(".")[0] for n, p in jepa.named_parameters() if p.grad is not None} == {"backbone", "predictor"}
    assert [n for n, p in jepa.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("options", [{}, {"class_token": False}])
def test_is_the_distance_of_its_parts(options):
    jepa, x = method(options=options).double().eval(), pixels().double()
    draws = Draws(index=range(4))
    keep, targets = jepa.blocks(draws, (8, 8))
    whole = jepa.teacher.module.tokens(x)[:, jepa.backbone.prefix :]
    costs = []
    for b in range(4):
        seen = jepa.backbone.tokens(x[b : b + 1], keep=keep[b : b + 1])[:, jepa.backbone.prefix :]
        for block in targets[b]:
            out = jepa.predictor(seen, keep[b : b + 1], block[None, None])[0, 0]
            costs.append(F.smooth_l1_loss(out, F.layer_norm(whole[b, block], whole.shape[-1:])))
    torch.testing.assert_close(jepa({"image": x}, draws)["latent"], torch.stack(costs).mean())


def test_context_and_targets_are_disjoint_and_of_one_size():
    jepa = method()
    for step in range(20):
        keep, targets = jepa.blocks(Draws(0, 0, step, range(16)), (8, 8))
        assert targets.shape[:2] == (16, 4) and keep.shape[1] >= context_least(jepa.config, 64) == 8
        for k, t in zip(keep.tolist(), targets.flatten(1).tolist(), strict=True):
            assert not set(k) & set(t) and len(set(k)) == len(k)


def test_the_context_sees_nothing_of_the_targets_and_the_copy_sees_the_whole():
    jepa, x, draws = method().double().eval(), pixels(1).double(), Draws(index=[3])
    keep, targets = jepa.blocks(draws, (8, 8))
    seen = torch.zeros(64, dtype=torch.bool)
    seen[keep[0]] = True
    places = seen.view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    outside, outputs, wanted = torch.where(places, x, 1 - x), [], []
    jepa.predictor.register_forward_hook(lambda m, i, o: outputs.append(o))
    for picture in (x, outside):
        jepa({"image": picture}, draws)
        wanted.append(gather_tokens(jepa.teacher.module.tokens(picture)[:, 1:], targets.flatten(1)))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


def test_blocks_follow_the_draws():
    jepa, x = method().double().eval(), pixels().double()

    def loss(**draws):
        return jepa({"image": x}, Draws(index=range(4), **draws))["latent"]

    assert loss(epoch=1) == loss(epoch=1) and loss(epoch=1) != loss(epoch=2)


def test_distance_is_asked_for():
    x, draws = pixels(), Draws(index=range(4))
    a, b = method(), method(distance="l2")
    outputs = []
    a.predictor.register_forward_hook(lambda m, i, o: outputs.append((o, i[2])))
    smooth, squared = (m({"image": x}, draws)["latent"] for m in (a, b))
    out, targets = outputs[0]
    whole = a.teacher.module.tokens(x)[:, 1:]
    wanted = gather_tokens(whole, targets.flatten(1)).unflatten(1, targets.shape[1:])
    torch.testing.assert_close(smooth, latent(out, wanted))
    torch.testing.assert_close(squared, latent(out, wanted, "l2"))


def test_momentum_goes_to_its_end_in_a_straight_line():
    jepa = method(momentum=0.9, momentum_end=1.0)
    with torch.no_grad():
        for p in jepa.backbone.parameters():
            p.add_(1.0)
    name, before = next((n, p.clone()) for n, p in jepa.teacher.module.named_parameters())
    for progress, kept in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        jepa.progress = progress
        at = dict(jepa.teacher.module.named_parameters())[name]
        start = at.clone()
        jepa.after_step()
        torch.testing.assert_close(at, kept * start + (1 - kept) * dict(jepa.backbone.named_parameters())[name])
    assert not torch.equal(before, dict(jepa.teacher.module.named_parameters())[name])


def test_predictor_defaults_are_the_papers_at_its_sizes():
    config = IJEPAConfig()
    assert predictor_shape(config, 768, 12) == (384, 6, 12)
    assert predictor_shape(config, 1024, 24) == predictor_shape(config, 1280, 32) == (384, 12, 12)
    assert predictor_shape(config, 64, 3) == (64, 3, 2)
    assert predictor_shape(IJEPAConfig(predictor_dim=48, predictor_depth=1, predictor_heads=3), 768, 12) == (48, 1, 3)
    assert context_least(config, 196) == 10 and context_least(IJEPAConfig(context_least=3), 196) == 3


@pytest.mark.parametrize("net", ["test_vit", "vit_tiny_patch16_224"])
def test_timm_nets(net):
    jepa = IJEPA(backbone(net, image_size=96), IJEPAConfig(image_size=96))
    jepa({"image": torch.rand(2, 3, 96, 96)})["latent"].backward()
    assert [n for n, p in jepa.named_parameters() if p.requires_grad and p.grad is None] == []
    assert jepa.embed(torch.rand(2, 3, 96, 96)).shape == (2, jepa.backbone.embed_dim)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: method("resnet8"), "needs a vision transformer .* not 'resnet8'"),
        (lambda: method(target_scale=(0.3, 0.2)), r"target_scale=\(0.3, 0.2\)"),
        (lambda: method(target_aspect=(0.0, 1.0)), "target_aspect"),
        (lambda: method(targets=0), "targets=0 is out of range"),
        (lambda: method(options={"patch": 16}), "at least 3 x 3 patches, not 2 x 2"),
        (lambda: method(target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))({"image": pixels()}), "leave no context"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
