"""Losses of methods that rebuild a picture from parts: masks by stick-breaking, mixtures of Gaussians over the parts,
divergences of latents and of presences, and GECO.

Source: Yuan et al., "Compositional scene representation learning via reconstruction: a survey" (TPAMI 2023; arXiv
2202.07135), and the papers named below. Shapes: B pictures, K parts, C channels, H x W pixels. Sums run over pixels and
channels, so a loss is one number a picture, [B], unless said otherwise. All functions are pure and work in any
floating type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from eyespot.losses.precision import full_precision

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


# --- masks ----------------------------------------------------------------------------------------------------
@full_precision
def stick_breaking(shapes: Tensor) -> Tensor:
    """What is seen of layers from front to back, and of the background behind them.

    m_k = s_k prod_{j<k} (1 - s_j), and the last mask is what all leave.

    Args:
        shapes: opacities in [0, 1] of K layers, [K, ...], the front first.

    Returns:
        [K + 1, ...], at least 0 and 1 in sum.
    """
    left = torch.cat([torch.ones_like(shapes[:1]), (1 - shapes).cumprod(0)])
    return torch.cat([shapes, torch.ones_like(shapes[:1])]) * left


@full_precision
def log_stick_breaking(log_shapes: Tensor, log_rest: Tensor) -> Tensor:
    """The logarithm of `stick_breaking`, of log s and log(1 - s) [K, ...]: [K + 1, ...]."""
    left = torch.cat([torch.zeros_like(log_rest[:1]), log_rest.cumsum(0)])
    return torch.cat([log_shapes, torch.zeros_like(log_shapes[:1])]) + left


# --- likelihoods ----------------------------------------------------------------------------------------------
@full_precision
def gaussian_log(x: Tensor, mean: Tensor, sigma: Tensor | float) -> Tensor:
    """log N(x; mean, sigma^2) number by number; tensors that broadcast."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) / sigma).square() - sigma.log() - HALF_LOG_2PI


@full_precision
def mixture_nll(
    x: Tensor, means: Tensor, log_masks: Tensor, sigma: Tensor | float, per_channel: bool = False
) -> Tensor:
    """-sum log sum_k m_k N(x; x_k, sigma_k): [B].

    Args:
        x: pictures [B, C, H, W].
        means: pictures of the parts [B, K, C, H, W].
        log_masks: [B, K, 1, H, W], log of masks that sum to 1 over the parts.
        sigma: one number, or one for each part [K].
        per_channel: one mixture a channel (GENESIS, EfficientMORL), or one a pixel over all its channels (MONet,
            IODINE). With one part both are the plain Gaussian.
    """
    spread = sigma if not isinstance(sigma, Tensor) or sigma.dim() == 0 else sigma.view(1, -1, 1, 1, 1)
    parts = gaussian_log(x[:, None], means, spread)
    if not per_channel:
        parts = parts.sum(2, keepdim=True)
    return -(log_masks + parts).logsumexp(1).flatten(1).sum(1)


@full_precision
def posteriors(x: Tensor, means: Tensor, sigma: float = 0.25) -> Tensor:
    """N-EM's E-step (Greff et al.; NeurIPS 2017): which part a pixel is of, by a uniform prior: [B, K, 1, H, W].

    Args:
        x: [B, C, H, W].
        means: [B, K, C, H, W].
    """
    return gaussian_log(x[:, None], means, sigma).sum(2, keepdim=True).softmax(1)


@full_precision
def nem_losses(x: Tensor, means: Tensor, gamma: Tensor, prior: Tensor, sigma: float = 0.25) -> tuple[Tensor, Tensor]:
    """N-EM's two terms, [B] each, for given posteriors, whose gradient is cut.

    Args:
        x, means, gamma: see `posteriors`.
        prior: what a part that a pixel is not of should give there, such as the median colour, [B, C, 1, 1] or
            [B, C, H, W].

    Returns:
        sum gamma (log gamma - log(N(x; x_k) / K)), and sum (1 - gamma) (-log N(prior; x_k)).
    """
    gamma = gamma.detach()
    log_uniform = -math.log(means.shape[1])
    fit = gaussian_log(x[:, None], means, sigma).sum(2, keepdim=True) + log_uniform
    elbo = torch.special.xlogy(gamma, gamma) - gamma * fit
    away = -gaussian_log(prior[:, None], means, sigma).sum(2, keepdim=True)
    return elbo.flatten(1).sum(1), ((1 - gamma) * away).flatten(1).sum(1)


# --- divergences ----------------------------------------------------------------------------------------------
@full_precision
def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL of N(mean, exp(log_var)) from N(0, 1), summed over all but the first axis: [B]."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)


@full_precision
def mask_kl(log_masks: Tensor, log_decoded: Tensor) -> Tensor:
    """KL of the attention's masks from the decoded ones (MONet, eq. 3): [B].

    Args:
        log_masks, log_decoded: [B, K, 1, H, W], both sum to 1 over the parts when exponentiated.
    """
    return (log_masks.exp() * (log_masks - log_decoded)).flatten(1).sum(1)


@full_precision
def air_presence_kl(logits: Tensor, success: float = 0.01) -> Tensor:
    """KL of AIR's number of objects from a geometric prior p(n) = a (1 - a)^n, n = 0..K, which is not normalised.

    Args:
        logits: [B, K] of each step, given that all steps before it were present.
        success: a.

    Returns:
        [B]. Least, where the posterior is proportional to the prior, is -log(1 - (1 - a)^(K + 1)).
    """
    present, absent = logsigmoid(logits), logsigmoid(-logits)
    before = torch.cat([torch.zeros_like(logits[:, :1]), present.cumsum(1)], 1)  # all n steps before are present
    log_q = before + torch.cat([absent, torch.zeros_like(absent[:, :1])], 1)
    n = torch.arange(log_q.shape[1], dtype=logits.dtype, device=logits.device)
    log_p = math.log(success) + n * math.log1p(-success)
    return (log_q.exp() * (log_q - log_p)).sum(1)


@full_precision
def beta_presence_kl(tau1: Tensor, tau2: Tensor, logits: Tensor, alpha: float = 4.5) -> Tensor:
    """KL of GMIOO's presences from their stick-breaking prior, part k present at rate v_1 ... v_k, v ~ Beta(alpha, 1).

    E log(1 - v_1 ... v_k) has no closed form; it is bounded as by Doshi-Velez et al. (AISTATS 2009), with the best
    weights of the bound, so the value is an upper bound of the divergence.

    Args:
        tau1, tau2: [B, K] of the posteriors Beta(tau1, tau2) of the v.
        logits: [B, K] of the presences.

    Returns:
        [B].
    """
    both = torch.digamma(tau1 + tau2)
    log_v, log_rest = torch.digamma(tau1) - both, torch.digamma(tau2) - both
    sticks = torch.lgamma(tau1 + tau2) - torch.lgamma(tau1) - torch.lgamma(tau2) - math.log(alpha)
    sticks = sticks + (tau1 - alpha) * log_v + (tau2 - 1) * log_rest
    present = log_v.cumsum(1)
    absent = (log_rest + present - log_v).logcumsumexp(1)  # the first of the sticks up to k that is not there
    on, off = logits.sigmoid(), (-logits).sigmoid()
    presences = on * (logsigmoid(logits) - present) + off * (logsigmoid(-logits) - absent)
    return (sticks + presences).sum(1)


# --- GECO -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Geco:
    """The weight of the KL term that keeps a mean error at a goal (Rezende and Viola; arXiv 1810.00597).

    The weight rises while the smoothed error is below the goal, `speedup` times faster than it falls above it.
    """

    goal: float
    step: float
    beta: float = 1.0
    ema: float = 0.99
    speedup: float = 10.0
    low: float = 1e-10
    high: float = 1e10
    smoothed: float | None = None
    """Moving mean of the error; None before the first."""

    def loss(self, error: Tensor, kl: Tensor) -> Tensor:
        """error + beta kl, with the weight as it is before this step's update."""
        return error + self.beta * kl

    def updated(self, error: float) -> Geco:
        """After a step with a mean error."""
        smoothed = error if self.smoothed is None else self.ema * self.smoothed + (1 - self.ema) * error
        room = self.goal - smoothed
        beta = self.beta * math.exp((self.speedup if room > 0 else 1.0) * self.step * room)
        return replace(self, smoothed=smoothed, beta=min(max(beta, self.low), self.high))
