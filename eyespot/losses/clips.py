"""Losses of clips: the two directions of CVRL's contrast, and the law by which the time between two clips is drawn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.losses.contrastive import cosines
from eyespot.losses.precision import full_precision

Interval = Literal["decreasing", "uniform", "increasing"]
INTERVALS = ("decreasing", "uniform", "increasing")


@full_precision
def clip_contrast(a: Tensor, b: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """InfoNCE of each clip with the other clip of its video (Qian et al., CVPR 2021, eq. 1), in both directions.

    Args:
        a, b: [N, D] embeddings of the first and the second clips, normalised here; row i of both is one video.
        temperature: divides the cosines.

    Returns:
        The mean over the first clips, and over the second ones; each clip is compared with all 2N - 1 others.
        Log(2N - 1) when all embeddings are equal, 0 for a single video. Half their sum is NT-Xent.
    """
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    target = torch.arange(len(a), device=a.device)
    terms = []
    for one, other in ((a, b), (b, a)):
        own = cosines(one, one, temperature).masked_fill(itself, -torch.inf)
        terms.append(F.cross_entropy(torch.cat([cosines(one, other, temperature), own], 1), target))
    return terms[0], terms[1]


def interval(u: np.ndarray | float, most: int | np.ndarray, law: Interval = "decreasing") -> np.ndarray:
    """Frames between the starts of two clips, int64, from uniform numbers in [0, 1).

    Args:
        u: uniform numbers. most: m, the largest distance.
        law: "decreasing", density proportional to 1 - d / m, so floor(m (1 - sqrt(1 - u))); "uniform"; "increasing",
            density proportional to d / m.
    """
    share = {"decreasing": 1 - np.sqrt(1 - np.asarray(u)), "uniform": np.asarray(u), "increasing": np.sqrt(u)}[law]
    return np.floor(most * share).astype(np.int64)
