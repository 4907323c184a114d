"""Weighted k-nearest-neighbour classification of frozen features, version 1.

Each test feature is compared by cosine with all training features; its k nearest vote for their class with weight
exp(cosine / T). As in instance discrimination (Wu, Xiong, Yu, Lin; CVPR 2018; arXiv 1805.01978, section 3.4) and
DINO (Caron et al.; ICCV 2021; arXiv 2104.14294, section 4.1). Nothing is trained and nothing is tuned.

Equal similarities are ordered by the training row, equal votes by the class number. Top-5 counts the min(5, k) best
classes, as DINO's evaluation does. Memory is a chunk of similarities, never a test x train matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.metrics.classification import true_ranks

NAME = "knn"
VERSION = 1
K = 20
TEMPERATURE = 0.07

TEST_CHUNK = 512
TRAIN_CHUNK = 8192


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row of [m, n] and their columns; of equal values the smaller columns are taken."""
    m, n = similarity.shape
    if k >= n:
        columns = torch.arange(n, device=similarity.device).expand(m, n)
        return similarity, columns
    values, columns = similarity.topk(k + 1, dim=1)
    # topk picks any of equal values: where the last one in equals the first one out, sort the row stably
    tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
    values, columns = values[:, :k].clone(), columns[:, :k].clone()
    if len(tied):
        order = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = order.values[:, :k], order.indices[:, :k]
    return values, columns


def _ordered(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by value, largest first, and by index where values are equal."""
    index, by_index = index.sort(dim=1)
    values, by_value = values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, by_value)


def nearest(queries: Tensor, bank: Tensor, k: int, chunk: int = TRAIN_CHUNK) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the bank by cosine, nearest first.

    Args:
        queries: [m, D], bank: [n, D]; the work is done on the device of the queries, the bank is moved in chunks.
        k: number of neighbours, at most n.
        chunk: rows of the bank compared at a time.

    Returns:
        cosines [m, k] and bank rows int64 [m, k].
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be in 1..{len(bank)}, got {k}")
    queries = F.normalize(queries, dim=1)
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), chunk):
        part = F.normalize(bank[start : start + chunk].to(queries.device, queries.dtype), dim=1)
        values, columns = _best(queries @ part.T, k)
        best, rows = _ordered(torch.cat([best, values], 1), torch.cat([rows, columns + start], 1))
        best, rows = best[:, :k], rows[:, :k]
    return best, rows


def votes(cosines: Tensor, labels: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """Summed weights [m, classes] of the neighbours' cosines [m, k] and labels int64 [m, k]."""
    weight = (cosines / temperature).exp()
    return weight.new_zeros(len(weight), classes).scatter_add(1, labels, weight)


def classify(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk: int = TRAIN_CHUNK,
) -> Tensor:
    """Class votes [m, classes] of test features [m, D] from training features [n, D] and labels int64 [n]."""
    cosines, rows = nearest(test, train, k, chunk)
    return votes(cosines, train_labels.to(rows.device)[rows], classes, temperature)


def run(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    k: int = K,
    temperature: float = TEMPERATURE,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: accuracies in percent, and the constants it used.

    Args:
        train, test: features [n, D] and [m, D] of any floating type.
        train_labels, test_labels: int64 class numbers below `classes`.
        seed: not used: nothing is random.
        device: where the similarities are computed.
    """
    used = min(k, len(train))
    config: dict[str, Any] = {"k": used, "temperature": temperature}
    if used < k:
        config["note"] = f"k is {used}, not {k}: there are only {len(train)} training samples"
    hits = {1: 0, 5: 0}
    for start in range(0, len(test), TEST_CHUNK):
        part = test[start : start + TEST_CHUNK].to(device)
        part = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
        scores = classify(train, train_labels, part, classes, used, temperature)
        ranks = true_ranks(scores, test_labels[start : start + TEST_CHUNK].to(device))
        for n in hits:
            hits[n] += int((ranks < min(n, used)).sum())
    return {f"top{n}": 100.0 * count / len(test) for n, count in hits.items()}, config
