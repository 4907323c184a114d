"""Losses of methods that rebuild pictures from parts: recorded numbers, slow versions, limits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from eyespot.losses.scene import (
    HALF_LOG_2PI,
    Geco,
    air_presence_kl,
    beta_presence_kl,
    gaussian_kl,
    log_stick_breaking,
    mask_kl,
    mixture_nll,
    nem_losses,
    posteriors,
    stick_breaking,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts(b=2, k=3, c=3, h=4, w=5):
    """Pictures, pictures of parts, log masks."""
    return drawn(b, c, h, w), drawn(b, k, c, h, w, seed=1), drawn(b, k, 1, h, w, seed=2).log_softmax(1)


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("scene_survey__losses")
    return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}, params


@pytest.mark.golden
def test_masks_as_recorded(recorded):
    a, _ = recorded
    shapes = a["gmioo_shp"] * a["gmioo_pres"][..., None, None]
    torch.testing.assert_close(stick_breaking(shapes), a["gmioo_mask"], **CLOSE)
    kept = shapes * (1 - 2e-5) + 1e-5  # as the recorded version keeps logarithms finite
    torch.testing.assert_close(log_stick_breaking(kept.log(), (1 - kept).log()), a["gmioo_log_mask"], **CLOSE)


@pytest.mark.golden
def test_presences_as_recorded(recorded):
    a, _ = recorded
    torch.testing.assert_close(air_presence_kl(a["air_logits"][..., 0]), a["air_kld_pres"], **CLOSE)
    tau1, tau2, logits = (a[f"gmioo_{name}"][..., 0].T for name in ("tau1", "tau2", "logits_zeta"))
    torch.testing.assert_close(beta_presence_kl(tau1, tau2, logits, 3.5), a["gmioo_kld_pres"], **CLOSE)


@pytest.mark.golden
def test_expectation_maximisation_as_recorded(recorded):
    a, _ = recorded
    x, means = a["image"], (a["nem_raw"].transpose(0, 1) + 1) / 2
    gamma = posteriors(x, means)
    torch.testing.assert_close(gamma.transpose(0, 1), a["nem_gamma"], **CLOSE)
    median = x.flatten(2).median(2).values[:, :, None, None]
    elbo, away = nem_losses(x, means, gamma, median)
    torch.testing.assert_close(elbo, a["nem_loss_elbo"], **CLOSE)
    torch.testing.assert_close(away, a["nem_loss_kld"], **CLOSE)


@pytest.mark.golden
def test_mixtures_as_recorded(recorded):
    a, _ = recorded
    x = a["image"]
    log_masks, means = (a[f"genesis_{n}"].permute(0, 4, 1, 2, 3) for n in ("log_masks", "recons"))
    torch.testing.assert_close(mixture_nll(x, means, log_masks, 0.7, per_channel=True), a["genesis_err"], **CLOSE)
    narrow = mixture_nll(x, means, log_masks, 0.1, per_channel=True) - HALF_LOG_2PI * x[0].numel()
    torch.testing.assert_close(narrow, a["emorl_nll"], **CLOSE)


@pytest.mark.golden
def test_geco_as_recorded(recorded):
    a, _ = recorded
    weight = Geco(goal=100.0, step=0.01, ema=0.9, speedup=10.0)
    for error, kl, loss, after in zip(a["geco_err"], a["geco_kl"], a["geco_loss"], a["geco_beta_after"], strict=True):
        torch.testing.assert_close(weight.loss(error, kl), loss, **CLOSE)
        weight = weight.updated(float(error))
        assert weight.beta == pytest.approx(float(after), rel=1e-4)


# --- by slow versions and in the limit ------------------------------------------------------------------------------
def test_masks_sum_to_one_and_the_last_takes_the_rest():
    shapes = drawn(4, 2, 1, 3, 3).sigmoid()
    masks = stick_breaking(shapes)
    torch.testing.assert_close(masks.sum(0), torch.ones_like(masks[0]))
    assert (masks >= 0).all()
    torch.testing.assert_close(masks[-1], (1 - shapes).prod(0))
    torch.testing.assert_close(log_stick_breaking(shapes.log(), (1 - shapes).log()).exp(), masks)


def test_an_opaque_front_hides_all():
    shapes = torch.stack([torch.ones(2, 2), torch.full((2, 2), 0.7)])
    assert stick_breaking(shapes).tolist() == [[[1.0] * 2] * 2, [[0.0] * 2] * 2, [[0.0] * 2] * 2]


@pytest.mark.parametrize("per_channel", [True, False])
def test_mixture_by_a_loop(per_channel):
    x, means, log_masks = parts()
    sigma = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    slow = torch.zeros(2, dtype=torch.float64)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        groups = [[c] for c in range(3)] if per_channel else [[0, 1, 2]]
        for group in groups:
            likelihood = 0.0
            for k in range(3):
                inside = sum(float(Normal(means[b, k, c, i, j], sigma[k]).log_prob(x[b, c, i, j])) for c in group)
                likelihood += math.exp(float(log_masks[b, k, 0, i, j]) + inside)
            slow[b] -= math.log(likelihood)
    torch.testing.assert_close(mixture_nll(x, means, log_masks, sigma, per_channel), slow)


def test_one_part_is_a_plain_gaussian():
    x, means, _ = parts(k=1)
    plain = -Normal(means[:, 0], 0.4).log_prob(x).flatten(1).sum(1)
    nothing = torch.zeros(2, 1, 1, 4, 5, dtype=torch.float64)
    for per_channel in (True, False):
        torch.testing.assert_close(mixture_nll(x, means, nothing, 0.4, per_channel), plain)


def test_posteriors_follow_the_nearer_mean_and_carry_no_gradient():
    x, means, _ = parts(k=2)
    means[:, 0] = x
    gamma = posteriors(x, means, 0.1)
    assert (gamma[:, 0] > 0.5).all()
    torch.testing.assert_close(gamma.sum(1), torch.ones_like(gamma[:, 0]))
    gamma = gamma.requires_grad_()
    leaf = means.clone().requires_grad_()
    sum(t.sum() for t in nem_losses(x, leaf, gamma, x.mean((2, 3), keepdim=True))).backward()
    assert gamma.grad is None and leaf.grad is not None and leaf.grad.isfinite().all()


def test_divergences_are_zero_for_equal_distributions():
    assert gaussian_kl(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0.0] * 3
    mean, log_var = drawn(3, 4), drawn(3, 4, seed=1)
    slow = torch.distributions.kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(torch.zeros(3, 4), 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_var), slow)
    _, _, log_masks = parts()
    assert mask_kl(log_masks, log_masks).abs().max() == 0
    assert (mask_kl(log_masks, drawn(2, 3, 1, 4, 5, seed=9).log_softmax(1)) > 0).all()


def test_geometric_prior_is_left_without_its_tail():
    """The least divergence is -log of the prior's mass, where the posterior is proportional to the prior."""
    a, steps = 0.3, 4
    prior = torch.tensor([a * (1 - a) ** n for n in range(steps + 1)], dtype=torch.float64)
    q = prior / prior.sum()
    more = torch.tensor([float(q[n + 1 :].sum() / q[n:].sum()) for n in range(steps)], dtype=torch.float64)
    least = -math.log(1 - (1 - a) ** (steps + 1))
    assert float(air_presence_kl(more.logit()[None], a)) == pytest.approx(least)
    assert float(air_presence_kl(more.logit()[None] + 0.3, a)) > least


def test_stick_presences_by_a_loop():
    tau1, tau2, logits = drawn(2, 3).exp(), drawn(2, 3, seed=1).exp(), drawn(2, 3, seed=2)
    alpha = 2.5
    posterior, prior = torch.distributions.Beta(tau1, tau2), torch.distributions.Beta(alpha, 1.0)
    slow = torch.distributions.kl_divergence(posterior, prior.expand(tau1.shape)).sum(1)
    digamma = torch.digamma
    for b, k in itertools.product(range(2), range(3)):
        log_v = [float(digamma(tau1[b, j]) - digamma(tau1[b, j] + tau2[b, j])) for j in range(3)]
        log_rest = [float(digamma(tau2[b, j]) - digamma(tau1[b, j] + tau2[b, j])) for j in range(3)]
        absent = math.log(sum(math.exp(log_rest[j] + sum(log_v[:j])) for j in range(k + 1)))
        p = float(logits[b, k].sigmoid())
        slow[b] += p * (math.log(p) - sum(log_v[: k + 1])) + (1 - p) * (math.log(1 - p) - absent)
    torch.testing.assert_close(beta_presence_kl(tau1, tau2, logits, alpha), slow)


def test_geco_rises_below_the_goal_and_faster():
    start = Geco(goal=1.0, step=0.1, ema=0.5)
    below, above = start.updated(0.9), start.updated(1.1)
    assert below.beta > 1 > above.beta
    assert math.log(below.beta) == pytest.approx(-10 * math.log(above.beta))
    assert start.updated(1.1).updated(0.9).smoothed == pytest.approx(1.0)


def test_gradients_are_finite_at_hard_masks():
    x, means, _ = parts()
    logits = torch.tensor([60.0, -60.0], dtype=torch.float64)[:, None, None, None].expand(2, 2, 4, 5).clone()
    logits.requires_grad_()
    log = torch.nn.functional.logsigmoid
    log_masks = log_stick_breaking(log(logits), log(-logits)).transpose(0, 1)[:, :, None]
    (
        mixture_nll(x, means, log_masks.reshape(2, 3, 1, 4, 5), 0.1).sum() + mask_kl(log_masks, log_masks).sum()
    ).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
