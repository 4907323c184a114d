"""Contrastive losses: InfoNCE with explicit pairs, NT-Xent, InfoNCE against a queue or a batch of keys.

Pure functions of one global batch: a method gathers its embeddings before it calls them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.precision import full_precision


@full_precision
def cosines(a: Tensor, b: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Cosine of every row of `a` [N, D] with every row of `b` [M, D], divided by the temperature: [N, M]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature


@full_precision
def log_probability(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    extra: Tensor | None = None,
    compete: bool = True,
) -> Tensor:
    """log p_ij [N, M]: how probable it is that row i picks column j among what it is compared with.

    Entries where `positives` is false are 0 and carry no gradient. Arguments as in `info_nce`. Losses that
    weight each pair by its probability (focal ones) start from here.
    """
    if negatives is None:
        negatives = ~positives
    lowest = torch.finfo(logits.dtype).min  # not -inf: a row compared with nothing keeps a finite gradient
    in_sum = (positives | negatives) if compete else (negatives & ~positives)
    others = logits.masked_fill(~in_sum, lowest)
    if extra is not None:
        others = torch.cat([others, extra], dim=1)
    log_sum = others.logsumexp(dim=1, keepdim=True)
    log_p = logits - log_sum if compete else -F.softplus(log_sum - logits)
    return torch.where(positives, log_p, torch.zeros_like(log_p))


@full_precision
def info_nce(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    extra: Tensor | None = None,
    compete: bool = True,
    reduction: Literal["rows", "pairs", "sum", "none"] = "rows",
) -> Tensor:
    """InfoNCE with explicit pairs (van den Oord, Li and Vinyals 2018, eq. 4; several positives as in SupCon,
    Khosla et al. 2020, eq. 2).

    Args:
        logits: [N, M] similarities of N queries with M keys, already divided by the temperature.
        positives: bool [N, M], the keys that a query should pick; several a row, or none.
        negatives: bool [N, M], the keys it should not pick; None means every key that is no positive. A key
            that is neither (the query itself, a sample to ignore) enters nothing.
        extra: [N, E] logits of further negatives of each row: a queue, synthetic negatives.
        compete: whether the positives of a row stand in the denominator of each other (SupCon). If false each
            positive is compared with the negatives alone.
        reduction: "rows", the mean over a row's positives, then over the rows that have any; "pairs", the mean
            over all positive entries; "sum", over all positive entries; "none", [N], the mean over each row's
            positives.

    Returns:
        A scalar, or [N] for "none". 0 with a zero gradient where there is no positive at all.
    """
    loss = -log_probability(logits, positives, negatives, extra=extra, compete=compete)
    if reduction == "sum":
        return loss.sum()
    if reduction == "pairs":
        return loss.sum() / positives.sum().clamp_min(1)
    rows = loss.sum(dim=1) / positives.sum(dim=1).clamp_min(1)
    if reduction == "none":
        return rows
    return rows.sum() / positives.any(dim=1).sum().clamp_min(1)


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent (Chen et al. 2020, SimCLR, eq. 1): the mean over all 2N rows, each against the 2N - 1 others.

    Args:
        z1, z2: [N, D] embeddings of two views, normalised here. Row i of one is the positive of row i of the
            other.
        temperature: divides the cosines.

    Returns:
        A scalar; log(2N - 1) when all embeddings are equal.
    """
    n = len(z1)
    z = torch.cat([z1, z2])
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = cosines(z, z, temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


@full_precision
def moco(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2, extra_negatives: Tensor | None = None
) -> Tensor:
    """InfoNCE of each query with its own key against a queue (He et al. 2020, MoCo, eq. 1): the mean over rows.

    Args:
        query: [B, D], normalised here.
        key: [B, D], normalised here; a target, no gradient flows into it.
        queue: [D, K] unit columns, older keys; no gradient flows into it.
        temperature: divides the cosines.
        extra_negatives: [B, S, D] unit vectors, further negatives of each query (Kalantidis et al. 2020).

    Returns:
        A scalar; log(1 + K exp(-1/T)) when query equals key and is orthogonal to the queue.
    """
    q = F.normalize(query, dim=1)
    k = F.normalize(key.detach(), dim=1)
    logits = [(q * k).sum(dim=1, keepdim=True), q @ queue.detach()]
    if extra_negatives is not None:
        logits.append(torch.einsum("bd,bsd->bs", q, extra_negatives))
    positive = torch.zeros(len(q), dtype=torch.long, device=q.device)
    return F.cross_entropy(torch.cat(logits, dim=1) / temperature, positive)


@full_precision
def moco_v3(query: Tensor, keys: Tensor, positives: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE of each query against the keys of a whole batch, times 2 T (Chen, Xie and He 2021, MoCo v3, algorithm 1).

    Args:
        query: [B, D], normalised here.
        keys: [N, D], normalised here; targets, no gradient flows into them.
        positives: int64 [B], the row of `keys` that belongs to each query.
        temperature: T, divides the cosines.

    Returns:
        A scalar, the mean over rows of one direction; 2 T log(1 + (N - 1) exp(-1/T)) when queries equal their keys and
        keys are orthogonal, 2 T log N when all are equal.
    """
    return 2 * temperature * F.cross_entropy(cosines(query, keys.detach(), temperature), positives)
