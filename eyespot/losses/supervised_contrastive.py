"""Supervised contrast with mined and mixed features: the parts of Core-tuning.

Source: Zhang et al., "Unleashing the Power of Contrastive Self-Supervised Visual Models via Contrast-Regularized
Fine-Tuning" (NeurIPS 2021; arXiv 2102.06605), section 4. Shapes: N features of width D, C classes. All functions are
pure and work in any floating type.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, one_hot

from eyespot.losses.contrastive import log_probability
from eyespot.losses.precision import full_precision

Reading = Literal["paper", "code"]


@torch.no_grad()
@full_precision
def hard_pairs(features: Tensor, labels: Tensor, mining: Reading = "paper") -> tuple[Tensor, Tensor]:
    """The hardest partners of every sample by cosine: (hard positive, hard negative), int64 [N] each.

    The hard positive is the least similar sample of the same class, the hard negative the most similar sample of
    another class. A sample without a partner is its own.

    Args:
        features: [N, D].
        labels: [N] int64.
        mining: "code" repeats the released code, which masks by multiplying with 0, so that for non-negative features
            the least similar "positive" is a masked entry: mostly the sample itself.
    """
    unit = normalize(features, dim=1)
    similarity = unit @ unit.T
    same = labels[:, None] == labels[None, :]
    own = torch.arange(len(labels), device=labels.device)
    if mining == "code":
        positive = (similarity * (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device))).argmin(1)
        return torch.where(positive == 0, own, positive), (similarity * ~same).argmax(1)
    positive = similarity.masked_fill(~same, torch.inf).argmin(1)
    negative = similarity.masked_fill(same, -torch.inf).argmax(1)
    return positive, torch.where(same.all(1), own, negative)


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """share * first + (1 - share) * second, row by row: [N, ...], [N, ...], [N] -> [N, ...]."""
    return torch.lerp(second, first, share.to(first)[:, None])


def core_mixtures(
    features: Tensor,
    labels: Tensor,
    classes: int,
    order: Tensor,
    negative_share: Tensor,
    positive_share: Tensor,
    floor: float = 0.8,
    mining: Reading = "paper",
) -> tuple[Tensor, Tensor]:
    """The originals, the semi-hard negatives and the hard positives of Core-tuning, stacked (section 4.1).

    Args:
        features: [N, D].
        labels: [N] int64 below `classes`.
        order: [N] a permutation: the partner of each semi-hard negative.
        negative_share, positive_share: [N] draws of Beta(a, a); the first is raised to at least `floor`, and is the
            share of the partner.
        mining: see `hard_pairs`.

    Returns:
        features [3N, D] and soft labels [3N, C]: originals, negatives, positives.
    """
    hot = one_hot(labels, classes).to(features.dtype)
    positive, negative = hard_pairs(features, labels, mining)
    share = negative_share.clamp_min(floor)

    def stack(x: Tensor) -> Tensor:
        return torch.cat([x, mix(x[order], x, share), mix(x[positive], x[negative], positive_share)])

    return stack(features), stack(hot)


@full_precision
def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Cross entropy with soft labels [N, C], mean over rows: scalar."""
    return -(soft * log_softmax(logits, 1)).sum(1).mean()


def label_groups(soft: Tensor) -> Tensor:
    """A number for every row of soft labels, equal where the labels are: [N, C] -> int64 [N].

    Labels are compared to 1e-6, so that a mixture of two samples of one class counts as that class.
    """
    # contiguous int64 rows compare exactly; floats of one class may miss 1 by a rounding error
    return torch.unique((soft.double() * 2**20).round().long(), dim=0, return_inverse=True)[1]


@full_precision
def focal_supervised_contrast(
    z: Tensor, groups: Tensor, temperature: float = 0.07, normalisation: Reading = "paper"
) -> Tensor:
    """Supervised contrastive loss with focal weights (eq. 5): scalar, 0 when no row has a positive.

    With p_ij the softmax of z_i z_j / T over all other rows, a row with positives P costs
    -1/|P| sum_{j in P} (1 - p_ij) log p_ij; the mean runs over rows with a positive. Gradients pass through the weight.

    Args:
        z: [N, D] unit rows.
        groups: [N] int64; rows with equal numbers are positives of each other.
        normalisation: "code" divides by the number of rows N instead of |P|, as the released code does.
    """
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (groups[:, None] == groups[None, :]) & ~own
    log_p = log_probability(z @ z.T / temperature, positives, ~positives & ~own)
    cost = -((1 - log_p.exp()) * log_p).sum(1)
    count = positives.sum(1)
    rows = cost / (count.clamp_min(1) if normalisation == "paper" else len(z))
    return rows.sum() / (count > 0).sum().clamp_min(1)
