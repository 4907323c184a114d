"""Hard negatives made by mixing (MoCHi, Kalantidis et al., NeurIPS 2020): which negatives are hard, and their mixtures.

Pure functions of unit vectors. All results are constants: the paper's mixtures get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.precision import full_precision


@torch.no_grad()
@full_precision
def hardest(query: Tensor, queue: Tensor, n: int) -> Tensor:
    """The n negatives that are most like each query (section 4.1).

    Args:
        query: [B, D] of any length.
        queue: [D, K] unit columns, n <= K.

    Returns:
        int64 [B, n], columns of the queue, the hardest first.
    """
    return (F.normalize(query, dim=1) @ queue).topk(n, dim=1).indices


@torch.no_grad()
@full_precision
def mix_negatives(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Mixtures of two negatives, of unit length: normalise(a n_i + (1 - a) n_j) (eq. 2).

    Args:
        first, second: [B, S, D] unit vectors.
        weight: [B, S], the share a of the first.
    """
    share = weight.unsqueeze(-1)
    return F.normalize(share * first + (1 - share) * second, dim=-1)


@torch.no_grad()
@full_precision
def mix_query(query: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """Mixtures of each query with negatives, of unit length: normalise(b q + (1 - b) n_j) (eq. 3).

    Args:
        query: [B, D], normalised here.
        negative: [B, S, D] unit vectors.
        weight: [B, S], the share b of the query; below one half the negative stays the larger part.
    """
    q = F.normalize(query, dim=1).unsqueeze(1).expand_as(negative)
    return mix_negatives(q, negative, weight)
