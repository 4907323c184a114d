"""Parts of labelled samples, drawn by a seed."""

from __future__ import annotations

import numpy as np

from eyespot.draws import epoch_permutation


def stratified_split(labels: np.ndarray, share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a larger and a smaller part, int64, sorted, of samples with labels int64 [n].

    `share` of every class (rounded, at least one of two samples) is in the smaller part, drawn by (seed, name). A
    class of one sample stays in the larger part.
    """
    order = epoch_permutation(seed, 0, len(labels), name)
    chosen = np.zeros(len(labels), dtype=bool)
    for value in np.unique(labels):
        rows = order[labels[order] == value]
        chosen[rows[: max(1, round(share * len(rows))) if len(rows) > 1 else 0]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
