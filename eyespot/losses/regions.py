"""Distillation at the level of regions: every token of a student's crop is drawn to the teacher's most similar one.

Source: Li, Yang, Zhang, Gao, Xiao, Dai, Yuan and Gao, "Efficient Self-Supervised Vision Transformers for
Representation Learning" (EsViT; ICLR 2022; arXiv 2106.09785), section 3.2. Shapes: B pictures, K prototypes, G crops
of the teacher, of V crops of one size T tokens each, U tokens of the teacher's, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eyespot.losses.precision import full_precision


@torch.no_grad()
@full_precision
def matched_tokens(tokens: Tensor, others: Tensor) -> Tensor:
    """Which of `others` [B, U, D] has the highest cosine with each of `tokens` [V, B, T, D]: int64 [V, B, T].

    Several tokens may have the same match.
    """
    return torch.einsum("vbtd,bud->vbtu", normalize(tokens, dim=-1), normalize(others, dim=-1)).argmax(-1)


@full_precision
def regions_across_views(
    student: Sequence[Tensor],
    tokens: Sequence[Tensor],
    target: Tensor,
    others: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """Cross entropy of student tokens with their matches in the teacher's other crops (EsViT, eq. 4): a scalar.

    Args:
        student: logits [V, B, T, K] of the crops of each size; the first G crops of the first are the teacher's.
        tokens: backbone features [V, B, T, D] of the same tokens, by which they are matched.
        target: [G, B, U, K] the teacher's distributions; no gradient flows into them.
        others: [G, B, U, D] the teacher's backbone features.
        temperature: of the student's softmax.

    Returns:
        The mean over pictures, over the tokens of a crop, and over the pairs (teacher crop g, student crop v != g).
    """
    target, pairs, first = target.detach(), [], 0
    for logits, features in zip(student, tokens, strict=True):
        log_p = (logits / temperature).log_softmax(-1)
        for g in range(len(target)):
            other = [v for v in range(len(logits)) if first + v != g]
            match = matched_tokens(features[other], others[g])
            pictures = torch.arange(match.shape[1], device=match.device)[:, None]
            pairs.append(-(target[g][pictures, match] * log_p[other]).sum(-1).mean((1, 2)))
        first += len(logits)
    return torch.cat(pairs).mean()
