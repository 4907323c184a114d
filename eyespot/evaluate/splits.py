"""Parts of labelled samples, drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping

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


def draw_per_class(
    labels: np.ndarray, wanted: Mapping[int, int], seed: int, draw: int, name: str = "low shot"
) -> np.ndarray:
    """Rows of a part that holds so many samples of each class, int64, sorted, of samples with labels int64 [n].

    Args:
        wanted: {class: number of samples}, at most as many as there are.
        draw: number of the draw; each (seed, draw, name) draws others.
    """
    order = epoch_permutation(seed, draw, len(labels), name)
    grouped = order[np.argsort(labels[order], kind="stable")]
    values, starts = np.unique(labels[grouped], return_index=True)
    parts = [grouped[start : start + wanted.get(int(v), 0)] for v, start in zip(values, starts, strict=True)]
    return np.sort(np.concatenate(parts))
