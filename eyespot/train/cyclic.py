"""A learning rate that goes up and down in cycles (Smith, WACV 2017, arXiv 1506.01186), here those of a squared sine
(Merkx and Frank 2019, arXiv 1903.11393)."""

from __future__ import annotations

import math


def cyclic_factor(step: int, period: float, low: float = 0.01) -> float:
    """The share of the largest rate at a step: low + (1 - low) sin^2(pi step / period).

    A cycle begins and ends at `low`, the smallest rate as a share of the largest; halfway the rate is the largest.
    """
    return low + (1 - low) * math.sin(math.pi * step / period) ** 2
