"""Slot Attention: the method around the module, its decomposition and what it says about pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eyespot.data.objects import ObjectSource
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import total
from eyespot.methods.scene.slot_attention import SlotAttention, SlotAttentionConfig
from eyespot.nets.backbones import backbone


def small(**config):
    torch.manual_seed(0)
    chosen = {"image_size": 16, "slots": 3, "dim": 8, "hidden": 12, "decoder_width": 8, "decoder_start": 4} | config
    return SlotAttention(backbone("slot_conv_small", image_size=16, width=8, layers=2), SlotAttentionConfig(**chosen))


def pictures(n: int = 6):
    source = ObjectSource(count=n)
    return torch.stack([source.load(i) for i in range(n)])


def test_every_parameter_has_a_gradient():
    method = small(refine=2)
    draws = Draws(index=range(6))
    terms = method(method.views({"image": pictures()}, draws), draws)
    assert set(terms) == {"pixels"}
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_loss_is_four_times_the_squared_error():
    method, x = small(), torch.rand(6, 3, 16, 16)
    noise = Draws(index=range(6)).noise("slots", 3, 8, normal=True)
    error = (method.rebuild(x, noise)["picture"] - x).square().mean()
    torch.testing.assert_close(method({"image": x}, Draws(index=range(6)))["pixels"], 4 * error)


def test_masks_sum_to_one_and_the_picture_is_their_mixture():
    found = small().decompose(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(found["masks"].sum(1), torch.ones(2, 1, 16, 16))
    torch.testing.assert_close(found["picture"], (found["masks"] * found["parts"]).sum(1))
    assert found["parts"].shape == (2, 3, 3, 16, 16) and found["slots"].shape == (2, 3, 8)


def test_permuting_the_start_permutes_parts_and_leaves_the_picture():
    method, x, order = small(), torch.rand(2, 3, 16, 16), torch.tensor([2, 0, 1])
    noise = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain, moved = method.rebuild(x, noise), method.rebuild(x, noise[:, order])
    torch.testing.assert_close(moved["masks"], plain["masks"][:, order])
    torch.testing.assert_close(moved["picture"], plain["picture"])


def test_decomposition_does_not_depend_on_the_batch_and_differs_by_run():
    method, x = small(), torch.rand(4, 3, 16, 16)
    whole, single = method.decompose(x), method.decompose(x[2:3])
    torch.testing.assert_close(whole["masks"][2:3], single["masks"])
    assert not torch.allclose(method.decompose(x, run=1)["masks"], whole["masks"])
    segments = method.segments(x)
    assert segments.shape == (4, 16, 16) and segments.dtype == torch.int64 and int(segments.max()) < method.groups


def test_one_slot_is_an_autoencoder():
    method = small(slots=1)
    found = method.decompose(torch.rand(2, 3, 16, 16))
    assert (found["masks"] == 1).all()
    torch.testing.assert_close(found["picture"], found["parts"][:, 0])


def test_other_sizes_and_nets():
    torch.manual_seed(0)
    method = SlotAttention(backbone("resnet8", image_size=24, width=8), SlotAttentionConfig(image_size=24, slots=2))
    assert method.decompose(torch.rand(2, 3, 24, 24))["picture"].shape == (2, 3, 24, 24)
    flat = backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8)), image_size=16)
    with pytest.raises(UserError, match="needs a feature map"):
        SlotAttention(flat)
    with pytest.raises(UserError, match="kernel=4 is even"):
        small(kernel=4)


def test_rebuilding_gets_better():
    method = small()
    optimizer = torch.optim.Adam(method.parameters(), lr=5e-3)
    draws, losses = Draws(index=range(6)), []
    views = method.views({"image": pictures()}, draws)
    for _ in range(60):
        loss = total(method(views, draws))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
