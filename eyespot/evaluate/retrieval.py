"""Retrieval by frozen features, version 2: test samples ask, training samples answer.

Each test feature ranks all training features by cosine; a training sample of the same class is relevant.

    mAP    mean over queries of the average precision of the whole ranking, without interpolation
    R@k    share of queries that have a relevant sample among the k nearest; R@1 is Rank-1

A query that is a training sample itself is left out of its own list, so the same pictures may be given on both sides
(leave one out, as instance and fine-grained retrieval are measured within one gallery); a query without any other
sample of its class is then no query. Otherwise the bank is used whole. Nothing is trained, tuned or re-ranked. Of equal
similarities the irrelevant samples come first. Features are compared as they are, not centred.

R@1 is the accuracy of the single nearest neighbour; mAP also looks at the far end of the ranking, so it asks for
classes that hold together. Memory is one block of similarities, whatever the number of samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.errors import UserError
from eyespot.metrics.retrieval import Ranking, ranking

NAME = "retrieval"
VERSION = 2
RANKS = (1, 5, 10)

BLOCK = 1 << 21
"""Most similarities held at a time (at least those of one query with all training samples)."""
QUERIES = 512
BANK_CHUNK = 8192


def run(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    same: Tensor | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: mAP and recalls in percent, and the constants it used.

    Args:
        train, test: features [n, D] and [m, D] of any floating type.
        train_labels, test_labels: int64 class numbers; every test class has training samples.
        classes, seed: not used: nothing is trained, nothing is random.
        device: where the similarities are computed.
        same: int64 [m], the training row that is the test sample itself, -1 where there is none.

    Raises:
        UserError: no query has another sample of its class.
    """
    config: dict[str, Any] = {"queries": "test samples", "bank": "training samples", "similarity": "cosine"}
    if len(train) < max(RANKS):
        config["note"] = f"there are only {len(train)} training samples, so R@{max(RANKS)} is that of all of them"
    norms = torch.cat([_single(part).norm(dim=1) for part in train.split(BANK_CHUNK)]).clamp_min(1e-12)
    step = max(1, min(QUERIES, BLOCK // len(train)))
    firsts, precisions = [], []
    for start in range(0, len(test), step):
        rows = slice(start, start + step)
        own = None if same is None else same[rows]
        found = _rank(train, norms, train_labels, test[rows], test_labels[rows], own, device)
        firsts.append(found.first.cpu())
        precisions.append(found.precision.cpu())
    first, precision = torch.cat(firsts), torch.cat(precisions)
    if same is not None and bool((same >= 0).any()):
        asked = ~precision.isnan()
        first, precision = first[asked], precision[asked]
        config["left_out"] = f"{int((same >= 0).sum())} queries are in the bank: each is left out of its own list"
        if not len(first):
            raise UserError("No class has two samples, so no query has anything to find; give more pictures a class.")
        if len(first) < len(test):
            config["left_out"] += f", and {len(test) - len(first)} have no other sample of their class"
    recalls = {f"R@{k}": 100 * float((first <= k).double().mean()) for k in RANKS}
    return {"mAP": 100 * float(precision.mean()), **recalls}, config


def _rank(
    bank: Tensor,
    norms: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    own: Tensor | None,
    device: torch.device | str,
) -> Ranking:
    """The ranking of the bank [n, D] for some queries [Q, D], without the row of the bank that a query is itself (own
    [Q], -1 for none); the bank is moved to the device in chunks."""
    unit = F.normalize(_single(queries.to(device)), dim=1)
    columns = []
    for start in range(0, len(bank), BANK_CHUNK):
        part = bank[start : start + BANK_CHUNK].to(device, unit.dtype)
        columns.append(unit @ part.T / norms[start : start + BANK_CHUNK].to(device, unit.dtype))
    relevant = query_labels.to(device)[:, None] == labels.to(device)
    ignored = None
    if own is not None and bool((own >= 0).any()):
        ignored = own.to(device)[:, None] == torch.arange(len(bank), device=device)
    return ranking(torch.cat(columns, 1), relevant, ignored)


def _single(features: Tensor) -> Tensor:
    """Half precision is compared in single."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
