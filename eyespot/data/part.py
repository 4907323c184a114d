"""Some samples of a source, with labels of their own: a training part, or classes numbered as another source does."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from eyespot.data.sources import Shape, Source


class Part(Source):
    """Samples of another source.

    Args:
        source: where the pictures are.
        rows: int64 [m], its sample numbers, in the order of this source.
        labels: int64 [m], -1 where a sample has none; None without labels.
        class_names: what the labels number.
    """

    def __init__(self, source: Source, rows: np.ndarray, labels: np.ndarray | None, class_names: tuple[str, ...] = ()):
        self.source, self.rows = source, np.asarray(rows, np.int64)
        self.name, self.threads = source.name, source.threads
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> str:
        return self.source.path(int(self.rows[i]))

    def load(self, i: int, *, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
        return self.source.load(int(self.rows[i]), channels=channels, plan=plan)

    def shape(self, i: int) -> Shape:
        return self.source.shape(int(self.rows[i]))

    def prepare(self) -> None:
        self.source.prepare()
