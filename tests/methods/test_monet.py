"""MONet: the method around attention and component autoencoder."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from eyespot.data.objects import ObjectSource
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import total
from eyespot.methods.scene.monet import MONet, MONetConfig
from eyespot.nets.backbones import backbone


def small(**config):
    torch.manual_seed(0)
    chosen = {"image_size": 16, "slots": 3, "latent": 4, "hidden": 12, "decoder_width": 8, "decoder_start": 4}
    chosen |= {"unet": (4, 8)} | config
    return MONet(backbone("monet_conv", image_size=16, widths=(8, 8)), MONetConfig(**chosen))


def pictures(n: int = 6):
    source = ObjectSource(count=n)
    return torch.stack([source.load(i) for i in range(n)])


def test_every_parameter_has_a_gradient():
    method, draws = small(), Draws(index=range(6))
    terms = method(method.views({"image": pictures()}, draws), draws)
    assert set(terms) == {"pixels", "latent", "mask"}
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_terms_by_hand():
    method, x = small(), torch.rand(2, 3, 16, 16)
    draws = Draws(index=range(2))
    terms = method({"image": x}, draws)
    found = method.rebuild(x, draws.noise("latent", 3, 4, normal=True))
    likelihood = torch.zeros(2, 16, 16)
    for k, sigma in enumerate((0.09, 0.11, 0.11)):
        log = Normal(found["parts"][:, k], sigma).log_prob(x).sum(1)
        likelihood = likelihood + found["masks"][:, k, 0] * log.exp()
    nll = -likelihood.log()
    seen = nll.isfinite()
    assert seen.float().mean() > 0.5  # the rest is too unlikely for plain numbers
    if seen.all():
        torch.testing.assert_close(terms["pixels"], nll.sum((1, 2)).mean() / x[0].numel())
    mean, log_var = found["mean"], found["log_var"]
    kl = torch.distributions.kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(terms["latent"], 0.5 * kl.sum((1, 2)).mean() / x[0].numel())
    log_masks, decoded = found["log_masks"], found["log_decoded"]
    mask = (log_masks.exp() * (log_masks - decoded)).sum((1, 2, 3, 4)).mean()
    torch.testing.assert_close(terms["mask"], 0.5 * mask / x[0].numel())


def test_masks_sum_to_one_and_do_not_depend_on_the_batch():
    method, x = small().eval(), torch.rand(4, 3, 16, 16)
    found = method.decompose(x)
    for masks in (found["masks"], found["log_decoded"].exp()):
        torch.testing.assert_close(masks.sum(1), torch.ones(4, 1, 16, 16))
    torch.testing.assert_close(method.decompose(x[1:2])["masks"], found["masks"][1:2])
    assert torch.equal(method.decompose(x, run=3)["masks"], found["masks"])
    assert method.segments(x).shape == (4, 16, 16) and int(method.segments(x).max()) < method.groups == 3


def test_noise_moves_the_parts_and_not_the_masks():
    method, x = small(), torch.rand(2, 3, 16, 16)
    plain, moved = method.rebuild(x), method.rebuild(x, torch.ones(2, 3, 4))
    assert torch.equal(plain["masks"], moved["masks"]) and not torch.allclose(plain["parts"], moved["parts"])


def test_another_net_is_refused():
    with pytest.raises(
        UserError, match=r"sees a mask beside the picture, which resnet8 does not take; use .*monet_conv"
    ):
        MONet(backbone("resnet8", image_size=16))


def test_loss_falls():
    method = small()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    draws, losses = Draws(index=range(6)), []
    views = method.views({"image": pictures()}, draws)
    for _ in range(50):
        loss = total(method(views, draws))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])
