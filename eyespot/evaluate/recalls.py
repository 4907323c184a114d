"""Recall of a linear probe, version 1: `war`, weighted by how frequent the classes are (the accuracy), and `uar`, the
mean over classes, which is low for a probe that only knows the frequent ones. The two figures of emotion recognition,
where classes are not equally frequent. The probe is that of `eyespot.evaluate.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eyespot.evaluate import linear
from eyespot.metrics.classification import recalls

NAME = "recalls"
VERSION = 1


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
    """The protocol: war and uar in percent, and the constants it used; arguments as for the linear probe."""
    scores, config = linear.scores_of(train, train_labels, test, classes, seed=seed, device=device)
    war, uar = recalls(scores, test_labels.to(scores.device))
    return {"war": war, "uar": uar}, {"probe": f"linear, version {linear.VERSION}", **config}
