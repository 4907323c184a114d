"""Contrast of arbitrary class pairs in a subspace that a gate selects: the loss of Hydra.

Source: Wu, Mo, Feng, Atito, Kittler and Awais, "Rethinking Positive Pairs in Contrastive Learning" (2024; arXiv
2410.18200). Pure functions of one global batch: a method gathers its embeddings, gates and labels before it calls them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eyespot.losses.contrastive import info_nce
from eyespot.losses.precision import full_precision


@full_precision
def gated_logits(
    anchors: Tensor,
    keys: Tensor,
    gate: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    renormalise: bool = False,
) -> Tensor:
    """Similarity of every anchor with every key in the anchor's subspace: [N, M].

    Args:
        anchors, keys: [N, D] and [M, D] unit rows.
        gate: [N, D] in (0, 1), how open each dimension is to each anchor; none is 1 everywhere.
        temperature: divides the similarities.
        renormalise: whether anchor and key are brought to unit length again behind the gate; without, the similarity
            is sum_d g_id^2 a_id k_jd.
    """
    if gate is None:
        return anchors @ keys.T / temperature
    open_ = gate.square()
    similarity = (anchors * open_) @ keys.T
    if renormalise:
        # |g_i k_j|^2 is a product of matrices too: no [N, M, D] is needed
        tiny = torch.finfo(similarity.dtype).eps ** 2
        length = (anchors.square() * open_).sum(1, keepdim=True) * (open_ @ keys.square().T)
        similarity = similarity * length.clamp_min(tiny).rsqrt()
    return similarity / temperature


def pair_masks(classes: Tensor, targets: Tensor, of_keys: Tensor) -> tuple[Tensor, Tensor]:
    """What each anchor should find and what not: two bool [N, M].

    Args:
        classes: int64 [N], the class of each anchor.
        targets: int64 [N], the class that it is paired with.
        of_keys: int64 [M], the class of each key.

    Returns:
        positives, the keys of the target class, an anchor's own embedding among them where both classes are one;
        negatives, the keys that are of neither class. What is of the anchor's class alone enters nothing.
    """
    positives = targets[:, None] == of_keys
    return positives, ~positives & (classes[:, None] != of_keys)


def class_pair_contrast(
    logits: Tensor,
    classes: Tensor,
    targets: Tensor,
    of_keys: Tensor,
    average: Literal["pairs", "rows"] = "pairs",
) -> Tensor:
    """InfoNCE of each positive against the negatives alone: log(e^s_ij + sum_n e^s_in) - s_ij, a scalar.

    Args:
        logits: [N, M], see `gated_logits`.
        classes, targets, of_keys: see `pair_masks`.
        average: over all positive entries (Hydra), or over the positives of a row and then over rows (SupCon).

    Returns:
        0 with a zero gradient when no row has a positive, and for rows without negatives.
    """
    positives, negatives = pair_masks(classes, targets, of_keys)
    return info_nce(logits, positives, negatives, compete=False, reduction=average)
