"""Classification of frozen features from few labels, version 1: 1 %, 10 %, and 1, 5, 10 samples a class.

Each setting is drawn ten times from the training samples, by (seed, draw 0..9), the same samples for the model and for
its floor. 1 % and 10 % take that share of every class, at least one sample. On each draw a multinomial logistic
regression is fitted and measured on all test samples:

    minimise  mean_i CE(W x_i + b, y_i) + strength / 2 |W|^2        (b is not penalised)

on features standardised by the drawn samples and divided by sqrt(D), so that a sample's mean square norm is one. The
strength is fixed: a handful of samples leaves none to choose it on. The classifier sees nothing but the drawn samples.
The result of a setting is the mean top-1 accuracy over its draws, and beside it their standard deviation: how much the
choice of the samples matters, not how sure the mean is (that is the deviation divided by sqrt(10)).

The papers mostly fine-tune on one fixed list of 1 % and 10 % of ImageNet (SimCLR, Chen et al.; ICML 2020; arXiv
2002.05709), or fit a linear classifier on draws of n a class (Goyal et al.; ICCV 2019; arXiv 1905.01235: SVMs on five
draws). This is the latter, on all classes at once.

A setting that the data does not allow (a class with fewer samples than shots, or a share that is less than one sample
of each class) is left out, and the config says why; one sample a class is always there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.evaluate.linear import Fit, Standardiser, few_threads
from eyespot.evaluate.splits import draw_per_class
from eyespot.metrics.classification import true_ranks

NAME = "low_shot"
VERSION = 1
SHARES = {"1_percent": 0.01, "10_percent": 0.10}
SHOTS = {"1_per_class": 1, "5_per_class": 5, "10_per_class": 10}
DRAWS = 10
STRENGTH = 0.002
MAX_ITER = 200
TOLERANCE = 1e-5

TEST_CHUNK = 8192


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
    """The protocol: for each setting the mean top-1 accuracy in percent and its deviation over the draws ("..._std"),
    and the constants it used.

    Args:
        train, test: float32 or float64 features [n, D] and [m, D]; the fits run in their type.
        train_labels, test_labels: int64 class numbers below `classes`.
        seed: of the draws.
        device: where the fits run.
    """
    labels = train_labels.cpu().numpy()
    counts, left_out = settings(labels)
    metrics: dict[str, float] = {}
    for name, wanted in counts.items():
        tops = [
            _accuracy(train, train_labels, test, test_labels, draw_per_class(labels, wanted, seed, d), classes, device)
            for d in range(DRAWS)
        ]
        metrics[name] = float(np.mean(tops))
        metrics[f"{name}_std"] = float(np.std(tops, ddof=1))
    samples = {name: sum(wanted.values()) for name, wanted in counts.items()}
    config: dict[str, Any] = {"samples": samples, "draws": list(range(DRAWS)), "strength": STRENGTH}
    return metrics, config | ({"left_out": left_out} if left_out else {})


def settings(labels: np.ndarray) -> tuple[dict[str, dict[int, int]], dict[str, str]]:
    """Samples to draw of each class in each setting, and the settings left out with the reason.

    Args:
        labels: int64 [n] of the training samples.
    """
    values, counts = np.unique(labels, return_counts=True)
    have = dict(zip(values.tolist(), counts.tolist(), strict=True))
    wanted: dict[str, dict[int, int]] = {}
    left_out: dict[str, str] = {}
    for name, share in SHARES.items():
        if share * len(labels) < len(have):
            left_out[name] = (
                f"{share:.0%} of {len(labels)} training samples are fewer than the {len(have)} classes, so that not "
                "every class would have one"
            )
        else:
            wanted[name] = {c: max(1, round(share * n)) for c, n in have.items()}
    least = min(have.values())
    for name, shots in SHOTS.items():
        if least < shots:
            plural = "s" if least > 1 else ""
            left_out[name] = f"the smallest class has {least} training sample{plural}, fewer than {shots}"
        else:
            wanted[name] = dict.fromkeys(have, shots)
    return wanted, left_out


def _accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    rows: np.ndarray,
    classes: int,
    device: torch.device | str,
) -> float:
    """Top-1 in percent on the test samples of a classifier of the training samples `rows`."""
    index = torch.from_numpy(rows)
    x, y = train[index].to(device), train_labels[index].to(device)
    with few_threads(x.numel() * classes):
        score = classifier(x, y, classes)
        right = 0
        for part, truth in zip(test.split(TEST_CHUNK), test_labels.split(TEST_CHUNK), strict=True):
            right += int((true_ranks(score(part.to(device)), truth.to(device)) < 1).sum())
    return 100.0 * right / len(test)


def classifier(x: Tensor, y: Tensor, classes: int) -> Any:
    """The fitted scores: a function of features [m, D] to logits [m, classes].

    Args:
        x: [n, D] features, y: int64 [n] below `classes`.
    """
    standardise = Standardiser.of(x)
    scale = 1 / math.sqrt(max(1, int((standardise.scale > 0).sum())))
    z = standardise(x) * scale
    # the optimum lies in the span of the samples: n coordinates are enough
    span = torch.linalg.svd(z, full_matrices=False).Vh.T if len(z) < z.shape[1] else None
    fit = Fit(z if span is None else z @ span, y, classes)
    fit.fit(STRENGTH, MAX_ITER, TOLERANCE)

    def score(features: Tensor) -> Tensor:
        part = standardise(features) * scale
        return fit.scores(part if span is None else part @ span)

    return score
