"""Linear support vector machine on frozen features, version 1: the protocol of point clouds.

One-against-one linear machines (`sklearn.svm.SVC(kernel="linear")`) on the features as they are, in two ways:

    top1          C chosen from GRID by five-fold cross-validation on the training samples, on features scaled by their
                  mean norm, so that networks whose features differ in size are treated alike
    top1_fixed    C = 0.01 on the raw features, as I2P-MAE (arXiv 2212.06785) reports on ModelNet40

The papers choose C on the test samples; here no test sample is seen before the end. Ties between equally good C go to
the smaller one. Nothing is random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "svm"
VERSION = 1
GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
FIXED = 0.01
FOLDS = 5


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
    """The protocol: accuracies in percent, and the constants it used.

    Args:
        train, test: features [n, D] and [m, D] of any floating type.
        train_labels, test_labels: int64 class numbers below `classes`.
        seed, device: not used: nothing is random, and the machines are fitted on the CPU.
    """
    x, z = (part.double().cpu().numpy() for part in (train, test))
    y, truth = train_labels.cpu().numpy(), test_labels.cpu().numpy()
    scale = float(np.linalg.norm(x, axis=1).mean()) or 1.0
    chosen, scores = choose(x / scale, y)
    config: dict[str, Any] = {"C": chosen, "C_fixed": FIXED, "kernel": "linear"}
    if scores:
        config["folds"] = {str(c): round(100 * s, 3) for c, s in scores.items()}
    else:
        config["note"] = f"C is {chosen}: the smallest class has a single training sample, so nothing was validated"
    return {
        "top1": _accuracy(x / scale, y, z / scale, truth, chosen),
        "top1_fixed": _accuracy(x, y, z, truth, FIXED),
    }, config


def choose(x: np.ndarray, y: np.ndarray) -> tuple[float, dict[float, float]]:
    """The best C of GRID by cross-validation, and the accuracy of each; 1.0 and none where a class has one sample."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    folds = min(FOLDS, int(np.unique(y, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0, {}
    parts = StratifiedKFold(folds)
    scores = {c: float(cross_val_score(SVC(C=c, kernel="linear"), x, y, cv=parts).mean()) for c in GRID}
    return max(GRID, key=lambda c: (scores[c], -c)), scores


def _accuracy(x: np.ndarray, y: np.ndarray, z: np.ndarray, truth: np.ndarray, c: float) -> float:
    from sklearn.svm import SVC

    return 100.0 * float((SVC(C=c, kernel="linear").fit(x, y).predict(z) == truth).mean())
