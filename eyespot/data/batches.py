"""Batches from a source: made ahead by worker processes, or in this process.

A batch holds what was asked for, in the order that was asked for, whatever the number of workers. A bad file is
replaced by the next good sample: the same one on every run, process and worker. What the samples are, pictures
(`eyespot.data.loader`) or records of several fields (`eyespot.data.records`), is said by the subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eyespot.data.decode import BadFile
from eyespot.data.memory import cache_budget, cores
from eyespot.data.picture import quiet
from eyespot.data.workers import decode_ahead
from eyespot.errors import UserError
from eyespot.process import world_size

T = TypeVar("T")
Plan = dict[str, Any]
REPEAT = 1 << 40
"""What a key grows by when its sample occurs again in a batch."""
MOST_WORKERS = 8


@dataclass(frozen=True)
class Request:
    """One batch to come. `rows` int64 [B] are sample numbers; `keys` int64 [B] tell the draws apart (None: made from
    `rows`, which is right when they are the whole global batch); `plans` say what to decode of each (None: whole)."""

    rows: np.ndarray
    keys: np.ndarray | None = None
    plans: Sequence[Plan | None] | None = None


def occurrence_keys(rows: np.ndarray) -> np.ndarray:
    """Keys for draws, int64 [B]: the sample number + 2**40 x how often the sample occurred before in these rows.

    Give it the rows of the global batch, so that a sample that occurs twice is drawn twice on any number of processes.
    """
    rows = np.asarray(rows, np.int64)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    before = np.empty_like(rows)
    before[order] = np.arange(len(rows)) - first
    return rows + before * REPEAT


class SampleSource(ABC):
    """Numbered samples of any kind. A subclass sets `name`, and `labels` and `class_names` where labels are known."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    """int64 [n], -1 where a sample has none; None when no sample has a label."""
    threads: bool = True
    """Whether samples may be read from several threads at once."""
    refused: Mapping[str, str] = MappingProxyType({})
    """{path: reason} of what is no sample because it could not be trusted or read: listed with the bad files."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, i: int) -> str:
        """What sample i is called: its file, or "file.parquet#row"."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to open
        """Open what every sample needs, before workers copy it."""


class BatchData(ABC):
    """A source, and how its samples become batches; a subclass says `_batch`.

    Args:
        source: the samples.
        workers: processes that read ahead, None for one a core (at most 8), 0 to read in this process.
        cache_bytes: most bytes of samples kept in memory; None for a quarter of the free memory, at most 2 GiB.
        max_bad: share of the samples that may be bad before an error is raised.

    Attributes:
        bad: {path: reason} of the bad files met so far, in workers too, and of what the source refused.
        channels: number of channels of a sample: of a picture, a frame, a point.

    Raises:
        UserError: there are no samples, or more than `max_bad` of them are bad.
    """

    source: Any
    channels: int

    def __init__(self, source: SampleSource, workers: int | None, cache_bytes: int | None, max_bad: float):
        if not len(source):
            raise UserError(f"{source.name or 'The data'} holds no samples.")
        self.source = source
        self.max_bad = max_bad
        self.workers = min(MOST_WORKERS, max(1, cores() // world_size())) if workers is None else workers
        self.cache_bytes = cache_budget(world_size()) if cache_bytes is None else cache_bytes
        self.bad: dict[str, str] = dict(source.refused)
        self._bad_rows: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n], -1 where a sample has none; None when labels are not known."""
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    @abstractmethod
    def cached(self) -> bool:
        """Whether the samples are in memory."""

    @abstractmethod
    def fill(self) -> bool:
        """Read a small set into memory, once; whether the set is in memory. `stream` does it by itself."""

    @abstractmethod
    def _batch(self, request: Request, replace: bool) -> dict[str, Any]:
        """One batch, in the process that asks; `replace` as in `batch`."""

    def batch(
        self,
        rows: np.ndarray | Sequence[int],
        keys: np.ndarray | None = None,
        plans: Sequence[Plan | None] | None = None,
        *,
        replace: bool = True,
    ) -> dict[str, Any]:
        """The samples `rows` now.

        Args:
            rows: int64 [B] sample numbers.
            keys: int64 [B], see `Request`.
            plans: what to read of each sample; None: whole.
            replace: False leaves bad samples out instead of replacing them: B is smaller then.

        Returns:
            The fields of the samples; "index": int64 [B], the samples that are there (for a bad file the one that
            replaces it); "key": int64 [B], always of the samples asked for; "label": int64 [B], where labels are known.
        """
        request = Request(np.asarray(rows, np.int64), keys, plans)
        if self.cached:
            return self._batch(request, replace)
        with quiet():
            return self._batch(request, replace)

    def stream(
        self, batches: Iterable[np.ndarray | Request], start: int = 0, *, replace: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The batches in order, read ahead.

        Args:
            batches: sample numbers of each batch, or a `Request`; read some batches ahead.
            start: batches to leave out at the beginning (a resumed run); nothing of them is read.
            replace: see `batch`.
        """
        requests = islice((b if isinstance(b, Request) else Request(b) for b in batches), start, None)
        if self.fill() or self.workers == 0:
            for request in requests:
                yield self.batch(request.rows, request.keys, request.plans, replace=replace)
            return
        self.source.prepare()
        for batch in decode_ahead(
            lambda request: self._batch(request, replace), self._bad_rows, requests, self.workers
        ):
            for i, reason in batch.pop("bad"):
                if i not in self._bad_rows:
                    self._note(i, BadFile(self.source.path(i), reason))
            if "error" in batch:
                raise UserError(batch["error"])
            yield batch

    def _finished(self, fields: dict[str, Any], request: Request, index: np.ndarray, replace: bool) -> dict[str, Any]:
        """The fields of the samples `index`, with what every batch has."""
        rows = np.asarray(request.rows, np.int64)
        keys = occurrence_keys(rows) if request.keys is None else np.asarray(request.keys, np.int64)
        batch = {**fields, "index": torch.tensor(index), "key": torch.tensor(keys)}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[index])
        return batch if replace or not self._bad_rows else _only(batch, index == rows)

    def _good(self, i: int, read: Callable[[int], T]) -> tuple[T, int]:
        """Sample i, or the next good one, and its number."""
        while True:
            i = self._next_good(i)
            try:
                return read(i), i
            except BadFile as error:
                self._note(i, error)

    def _next_good(self, i: int) -> int:
        for _ in range(len(self)):
            if i not in self._bad_rows:
                return i
            i = (i + 1) % len(self)
        raise UserError(f"None of the {len(self)} samples of {self.source.name} can be read.")

    def _note(self, i: int, error: BadFile) -> None:
        """Record a bad sample, and stop when there are too many."""
        self._bad_rows[i] = error.reason
        self.bad[error.path] = error.reason
        if len(self._bad_rows) > self.max_bad * len(self):
            raise UserError(
                f"{len(self._bad_rows)} of {len(self)} samples of {self.source.name} cannot be read, more than the "
                f"{self.max_bad:.0%} that are allowed; the last is {error.path} ({error.reason}): mend or remove them, "
                "or allow more."
            )


def _only(batch: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    mask = torch.from_numpy(keep)
    return {
        k: v[mask] if isinstance(v, Tensor) else [x for x, good in zip(v, keep, strict=True) if good]
        for k, v in batch.items()
    }
