"""Bags of visual words: soft assignment of local features to a vocabulary, and predicting the bag of a picture.

Source: Gidaris, Bursuc, Puy, Komodakis, Cord and Perez, "OBoW: Online Bag-of-Visual-Words Generation for
Self-Supervised Learning" (CVPR 2021; arXiv 2012.11552). Shapes: N pictures, L places, C channels, K words.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


@full_precision
def word_distances(maps: Tensor, words: Tensor) -> Tensor:
    """Squared distance of every place of feature maps [N, C, h, w] to every word [K, C]: [N, h * w, K]."""
    local = maps.flatten(2).transpose(1, 2)
    length = local.square().sum(-1, keepdim=True) + words.square().sum(-1)
    return (length - 2 * local @ words.T).clamp_min(0)


@full_precision
def bag_of_words(
    distances: Tensor, inverse_temperature: float | Tensor, pool: Literal["max", "mean"] = "max"
) -> Tensor:
    """The share of each word in each picture: [N, K], rows sum to 1, without gradient.

    Args:
        distances: [N, L, K], see `word_distances`.
        inverse_temperature: of the softmax over words; the larger, the harder the assignment.
        pool: how the assignments of all places become one bag, before it is brought to the sum 1.
    """
    codes = (-distances.detach() * inverse_temperature).softmax(-1)
    bag = codes.amax(1) if pool == "max" else codes.mean(1)
    return bag / bag.sum(1, keepdim=True)


@full_precision
def bag_divergence(logits: Tensor, bags: Tensor) -> Tensor:
    """KL(bag || softmax(logits)), the mean over views and pictures: a scalar, 0 when logits are log bag.

    Args:
        logits: [V, N, K] predictions from V views.
        bags: [N, K] targets, rows sum to 1; no gradient flows into them.
    """
    bags = bags.detach()
    cross = -(bags * logits.log_softmax(-1)).sum(-1)
    return (cross + torch.xlogy(bags, bags).sum(-1)).mean()


def perplexity(shares: Tensor) -> Tensor:
    """exp of the entropy of distributions [..., K] over words: how many words are in use, [...], between 1 and K.

    1e-5 is added inside the logarithm, as the authors' monitor does.
    """
    return torch.exp(-(shares * (shares + 1e-5).log()).sum(-1))
