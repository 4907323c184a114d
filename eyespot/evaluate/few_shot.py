"""Few-shot episodes on frozen features, version 1: n classes, k samples of each, many draws.

An episode draws n classes, k training samples of each and at most 20 test samples of each. A class is the mean of its k
unit features, and a test sample goes to the class whose direction is nearest (prototypes by cosine; Snell, Swersky,
Zemel; NeurIPS 2017, on frozen features). The result of a setting is the mean accuracy over EPISODES draws in percent,
and beside it `_ci95`, half the width of its 95 % interval, 1.96 * deviation / sqrt(EPISODES), and `_spread`, the
deviation over draws.

The draws are made by (seed, setting, episode): the same for the model and for its floor. A setting that the data does
not allow is left out, and the config says why. Point-BERT and its followers fine-tune on ten fixed draws of {5, 10}
classes with {10, 20} samples; these settings are among those here, but nothing is trained.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.draws import bits_numpy

NAME = "few_shot"
VERSION = 1
SETTINGS_OF: dict[str, tuple[int, int]] = {
    "5_way_1_shot": (5, 1),
    "5_way_5_shot": (5, 5),
    "5_way_10_shot": (5, 10),
    "5_way_20_shot": (5, 20),
    "10_way_10_shot": (10, 10),
    "10_way_20_shot": (10, 20),
}
EPISODES = 200
QUERIES = 20


def run(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: mean accuracies in percent with their spread, and the constants it used.

    Args:
        train, test: features [n, D] and [m, D] of any floating type: support and query of an episode.
        train_labels, test_labels: int64 class numbers below `classes`.
        device: where the features are compared.
    """
    x, z = (F.normalize(part.to(device).float(), dim=1) for part in (train, test))
    y, truth = train_labels.cpu().numpy(), test_labels.cpu().numpy()
    shared = np.intersect1d(y, truth)
    metrics: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, (ways, shots) in SETTINGS_OF.items():
        reason = _impossible(y, shared, ways, shots)
        if reason:
            left_out[name] = reason
            continue
        usable = np.array([c for c in shared if (y == c).sum() >= shots])
        rates = np.array([_episode(x, y, z, truth, usable, ways, shots, seed, e, name) for e in range(EPISODES)])
        metrics[name] = 100 * float(rates.mean())
        spread = 100 * float(rates.std(ddof=1))
        metrics |= {f"{name}_ci95": 1.96 * spread / math.sqrt(EPISODES), f"{name}_spread": spread}
    if not metrics:  # two classes, one sample: always there
        ways = min(2, len(shared))
        rates = np.array([_episode(x, y, z, truth, shared, ways, 1, seed, e, "1_shot") for e in range(EPISODES)])
        spread = 100 * float(rates.std(ddof=1))
        metrics = {f"{ways}_way_1_shot": 100 * float(rates.mean()), f"{ways}_way_1_shot_spread": spread}
    config: dict[str, Any] = {"episodes": EPISODES, "queries": QUERIES, "classifier": "prototypes by cosine"}
    return metrics, config | ({"left_out": left_out} if left_out else {})


def _impossible(y: np.ndarray, shared: np.ndarray, ways: int, shots: int) -> str:
    """Why a setting cannot be drawn, or nothing."""
    enough = sum(int((y == c).sum()) >= shots for c in shared)
    if enough >= ways:
        return ""
    return f"{enough} classes have {shots} training samples and a test sample, and {ways} are needed"


def _chosen(rows: np.ndarray, count: int, seed: int, name: str, episode: int) -> np.ndarray:
    """At most `count` of the rows, drawn by (seed, name, episode)."""
    order = np.argsort(bits_numpy(seed, name, episode, rows, 1)[:, 0], kind="stable")
    return rows[order[:count]]


def _episode(
    x: Tensor,
    y: np.ndarray,
    z: Tensor,
    truth: np.ndarray,
    usable: np.ndarray,
    ways: int,
    shots: int,
    seed: int,
    episode: int,
    name: str,
) -> float:
    """Share of the queries that go to their class."""
    drawn = _chosen(usable, ways, seed, f"few shot/{name}/classes", episode)
    prototypes, right, total = [], 0, 0
    for c in drawn:
        support = _chosen(np.flatnonzero(y == c), shots, seed, f"few shot/{name}/support", episode)
        prototypes.append(F.normalize(x[torch.from_numpy(support)].mean(0), dim=0))
    table = torch.stack(prototypes)
    for k, c in enumerate(drawn):
        query = _chosen(np.flatnonzero(truth == c), QUERIES, seed, f"few shot/{name}/query", episode)
        best = (z[torch.from_numpy(query)] @ table.T).argmax(1)
        right, total = right + int((best == k).sum()), total + len(query)
    return right / total
