"""Records: samples of one or more named fields that are not just pictures - clips, clouds, pictures with captions.

class Clips(RecordSource):
    fields = ("video",)
    def record(self, i, plan=None):
        return {"video": frames}                  # uint8 [T, C, H, W]

RecordData(Clips(...)).batch([0, 1])["video"]     # [2, T, C, H, W]
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData, Plan, Request, SampleSource
from eyespot.data.decode import BadFile
from eyespot.data.picture import quiet

Record = dict[str, Any]
PROBES = 8


class RecordSource(SampleSource):
    """Numbered samples of named fields. A subclass sets `name` and `fields`."""

    fields: tuple[str, ...] = ()
    """Names of the fields of a record."""
    keeps: bool = False
    """Whether a small set is worth keeping in memory: records are small, and `planned` makes what a plan wants of a
    whole one."""

    @abstractmethod
    def record(self, i: int, plan: Plan | None = None) -> Record:
        """The fields of sample i: tensors, words or numbers. Raises BadFile.

        Args:
            plan: what to read of it, as a method's `read` says; None: what evaluation sees, the same every time.
        """

    def planned(self, record: Record, plan: Plan) -> Record:
        """What `record(i, plan)` would give, from the whole record of i."""
        return record


class RecordData(BatchData):
    """A source of records. In a batch a field is one tensor [B, ...] when all samples have one shape and type, else a
    list of B; words are a list; numbers int64 or float32 [B].

    Args:
        source: the samples.
        channels: channels of a frame or a point, told to the backbone.
        workers, cache_bytes, max_bad: see `BatchData`. A small set is kept in memory where the source says so.
    """

    source: RecordSource

    def __init__(
        self,
        source: RecordSource,
        *,
        channels: int = 3,
        workers: int | None = None,
        cache_bytes: int | None = None,
        max_bad: float = 0.05,
    ):
        super().__init__(source, workers, cache_bytes, max_bad)
        self.channels = channels
        self._kept: dict[int, Record] = {}

    @property
    def cached(self) -> bool:
        return bool(self._kept)

    def fill(self) -> bool:
        if self._kept or not self.cache_bytes or not self.source.keeps:
            return self.cached
        rows = np.unique(np.linspace(0, len(self) - 1, PROBES).round().astype(np.int64)).tolist()
        with quiet():
            sizes = [size_of(self._good(i, self.source.record)[0]) for i in rows]
            if max(sizes) * len(self) > self.cache_bytes:
                self.cache_bytes = 0
                return False
            for i in range(len(self)):
                try:
                    self._kept[i] = self.source.record(i)
                except BadFile as error:
                    self._note(i, error)
        return self.cached

    def _batch(self, request: Request, replace: bool) -> dict[str, Any]:
        rows = np.asarray(request.rows, np.int64)
        plans = request.plans if request.plans is not None else [None] * len(rows)
        picked = [
            self._good(i, lambda k, p=plan: self._record(k, p)) for i, plan in zip(rows.tolist(), plans, strict=True)
        ]
        records, index = [r for r, _ in picked], np.array([i for _, i in picked], np.int64)
        names = records[0] if records else {}
        fields = {name: collated([record[name] for record in records]) for name in names}
        return self._finished(fields, request, index, replace)

    def _record(self, i: int, plan: Plan | None) -> Record:
        if i not in self._kept:
            return self.source.record(i, plan)
        return self._kept[i] if plan is None else self.source.planned(self._kept[i], plan)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def collated(values: list[Any]) -> Any:
    """One field of a batch."""
    if all(isinstance(v, Tensor) for v in values):
        same = all(v.shape == values[0].shape and v.dtype == values[0].dtype for v in values)
        return torch.stack(values) if same else values
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        whole = all(isinstance(v, int) for v in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32)
    return values


def size_of(record: Record) -> int:
    """Bytes of a record's tensors and words."""
    return sum(v.numel() * v.element_size() if isinstance(v, Tensor) else len(str(v)) for v in record.values())
