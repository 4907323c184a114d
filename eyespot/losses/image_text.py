"""Losses of pictures with captions: CLIP's two cross entropies, SigLIP's sigmoids, the hinge against all others.

Rows i of both sides are a pair. Pure functions of one global batch: a method gathers both sides before it calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.contrastive import info_nce
from eyespot.losses.precision import full_precision


@full_precision
def symmetric_contrast(logits: Tensor, pairs: Tensor | None = None) -> Tensor:
    """CLIP's loss (Radford et al. 2021, figure 3): the mean of two cross entropies, each picture over all captions and
    each caption over all pictures.

    Args:
        logits: [N, N] scaled similarities, pictures in rows.
        pairs: bool [N, N], what else belongs together beside the diagonal, such as pictures with equal captions; each
            of a row's P then should get 1/P. None: the diagonal alone.

    Returns:
        A scalar; log N when all similarities are equal and the diagonal alone belongs together.
    """
    if pairs is None:
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return (info_nce(logits, pairs) + info_nce(logits.T, pairs.T)) / 2


@full_precision
def sigmoid_pairs(logits: Tensor, pairs: Tensor | None = None) -> Tensor:
    """SigLIP's loss (Zhai et al., ICCV 2023, arXiv 2303.15343): every pairing by itself, -log sigmoid of its logit for
    those that belong together and of minus its logit for the others, summed and divided by N.

    Args:
        logits: [N, N], scale * cosine + bias.
        pairs: bool [N, N], what belongs together; None: the diagonal.
    """
    if pairs is None:
        pairs = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return -F.logsigmoid(torch.where(pairs, logits, -logits)).sum() / len(logits)


@full_precision
def hinge_pairs(similarity: Tensor, margin: float = 0.2, pairs: Tensor | None = None) -> Tensor:
    """The hinge in both directions against all others of the batch (Merkx and Frank 2019, arXiv 1903.11393):

        1 / N^2 sum over i != j of max(0, m + S_ij - S_jj) + max(0, m + S_ij - S_ii)

    Args:
        similarity: S [N, N] of unit vectors.
        margin: m.
        pairs: bool [N, N], entries that are no negatives beside the diagonal; None: the diagonal alone.

    Returns:
        A scalar; 2 m (N - 1) / N when all vectors are equal.
    """
    own = similarity.diagonal()
    costs = (margin + similarity - own).clamp_min(0) + (margin + similarity - own[:, None]).clamp_min(0)
    left_out = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    left_out = left_out if pairs is None else left_out | pairs
    return costs.masked_fill(left_out, 0.0).sum() / similarity.numel()


@full_precision
def head_diversity(parts: Sequence[Tensor]) -> Tensor:
    """How alike the heads of an attention are: the sum over pairs of max(0, 1 - |A - B|), Frobenius norms; with a batch
    of matrices [B, ...] its mean (Merkx and Frank 2019; the authors' code).

    Args:
        parts: one matrix [n, m], or a batch of them [B, n, m], of each head.

    Returns:
        A scalar; 0 for a single head.
    """
    total = parts[0].new_zeros(())
    for k, one in enumerate(parts):
        for other in parts[k + 1 :]:
            # added under the root: equal heads would otherwise have no finite gradient
            distance = ((one - other).square().sum((-2, -1)) + 1e-12).sqrt()
            total = total + (1 - distance).clamp_min(0).mean()
    return total


@full_precision
def word_prediction(logits: Tensor, counts: Tensor) -> Tensor:
    """How well pictures predict the words of their captions, whatever the order: the mean over pictures of the mean
    over a caption's tokens of -log softmax (Joulin et al., ECCV 2016, arXiv 1511.02251).

    Args:
        logits: [B, V], a number for every token of the vocabulary.
        counts: [B, V], how often each token stands in the caption.
    """
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return -(share * logits.log_softmax(1)).sum(1).mean()
