"""A picture as a bag of regions: the weighted mean of the regions' distributions, and how far others are from it.

The bag is a mean of distributions, b = sum_t w_t softmax(r_t / T), which differs from the distribution of the mean
logits. All is done in logarithms. Shapes: T tokens, K prototypes, any leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


@full_precision
def log_distribution(logits: Tensor, temperature: float, centre: Tensor | float = 0.0) -> Tensor:
    """log softmax((logits - centre) / temperature) over the last dimension, [..., K]."""
    return ((logits - centre) / temperature).log_softmax(-1)


def equal_weights(log_p: Tensor) -> Tensor:
    """log 1/T for each of the T tokens of `log_p` [..., T, K]: [..., T]."""
    return log_p.new_full(log_p.shape[:-1], -math.log(log_p.shape[-2]))


def top_weights(log_p: Tensor, share: float = 0.1) -> Tensor:
    """Equal weights for the tokens with the largest probabilities, none for the others: their logarithms [..., T].

    Args:
        log_p: [..., T, K] log probabilities.
        share: of the T tokens that count, rounded, at least one.
    """
    count = max(1, round(share * log_p.shape[-2]))
    chosen = log_p.detach().amax(-1).topk(count, dim=-1).indices
    weights = torch.full_like(log_p[..., 0], -math.inf, requires_grad=False)
    return weights.scatter(-1, chosen, -math.log(count))


@full_precision
def log_bag(log_p: Tensor, log_weights: Tensor) -> Tensor:
    """log of the bag sum_t w_t p_t: [..., K].

    Args:
        log_p: [..., T, K] log probabilities of the tokens.
        log_weights: [..., T] logarithms of weights whose sum is 1.
    """
    return (log_weights[..., None] + log_p).logsumexp(-2)


@full_precision
def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) by its logarithms [..., K]: natural logarithm, sum over K, mean over the rest.

    No gradient flows into p, the target.
    """
    log_p = log_p.detach()
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def entropy(log_p: Tensor) -> Tensor:
    """The entropy of distributions [..., K], by their logarithms: [...]."""
    return -(log_p.exp() * log_p).sum(-1)
