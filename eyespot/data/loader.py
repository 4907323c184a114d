"""Batches from a source: decoded ahead by worker processes, or taken from memory when the set is small.

A batch holds what was asked for, in the order that was asked for, whatever the number of workers. A bad file is
replaced by the next good sample: the same one on every run, process and worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.cache import PictureCache, expected_bytes, fill_cache
from eyespot.data.decode import BadFile, apply_plan
from eyespot.data.memory import cache_budget, cores
from eyespot.data.picture import quiet
from eyespot.data.sources import Shape, Source
from eyespot.data.workers import decode_ahead
from eyespot.errors import UserError
from eyespot.process import world_size

Plan = dict[str, Any]
REPEAT = 1 << 40
"""What a key grows by when its sample occurs again in a batch."""
PROBES = 32
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


class Data:
    """A source, and how to decode it.

    Args:
        source: the samples.
        channels: number of channels of every picture; None takes what the pictures have (colour when some are grey
            and some are colour). A picture that cannot be converted is a bad file.
        workers: processes that decode ahead, None for one a core (at most 8), 0 to decode in this process. Not used
            when the pictures fit in memory.
        cache_bytes: most bytes of decoded pictures kept in memory; None for a quarter of the free memory, at most
            2 GiB; 0 keeps none.
        max_bad: share of the samples that may be bad before an error is raised.
        short_side: pictures are shrunk to this shorter side while they are decoded (never enlarged); None keeps them
            whole. For large photographs: a third of the time and a fraction of the memory, and softer small crops.

    Attributes:
        bad: {path: reason} of the bad files met so far, in workers too, and of what the source refused.

    Raises:
        UserError: there are no samples, or more than `max_bad` of them are bad.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int | None = None,
        workers: int | None = None,
        cache_bytes: int | None = None,
        max_bad: float = 0.05,
        short_side: int | None = None,
    ):
        if channels is not None and channels < 1:
            raise UserError(f"The number of channels is {channels}; give 1 or more.")
        if not len(source):
            raise UserError(f"{source.name or 'The data'} holds no samples.")
        self.source = source
        self.max_bad = max_bad
        self.plan: Plan | None = {"short_side": short_side} if short_side else None
        self.workers = min(MOST_WORKERS, max(1, cores() // world_size())) if workers is None else workers
        self.cache_bytes = cache_budget(world_size()) if cache_bytes is None else cache_bytes
        self.bad: dict[str, str] = dict(source.refused)
        self._bad_rows: dict[int, str] = {}
        self._cache: PictureCache | None = None
        with quiet():
            self._shapes = self._probe()
        self.channels = channels if channels is not None else self._own_channels()

    def __len__(self) -> int:
        return len(self.source)

    def shrink_to(self, short_side: int) -> bool:
        """Decode larger pictures to this shorter side from now on; whether any are larger. Before `fill`."""
        larger = any(min(height, width) > short_side for _, height, width, _ in self._shapes)
        if larger and self._cache is None:
            self.plan = {"short_side": short_side}
            with quiet():
                self._shapes = self._probe()
        return larger

    @property
    def shapes(self) -> list[Shape]:
        """(channels, height, width, more than 8 bits) of some evenly spaced samples, as they are decoded."""
        return self._shapes

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n], -1 where a sample has none; None when labels are not known."""
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def cached(self) -> bool:
        """Whether the decoded pictures are in memory."""
        return self._cache is not None

    # --- batches ----------------------------------------------------------------------------------------------
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
            plans: what to decode of each sample, see `eyespot.data.decode.decode`.
            replace: False leaves bad samples out instead of replacing them: B is smaller then.

        Returns:
            "image": uint8 [B, C, H, W] when all have one size, else a list of B tensors [C, H_i, W_i]; float32 in
            [0, 1] when a picture has more than 8 bits. "index": int64 [B], the samples that are there (for a bad file
            the one that replaces it). "key": int64 [B], always of the samples asked for. "label": int64 [B], where
            labels are known.
        """
        request = Request(np.asarray(rows, np.int64), keys, plans)
        if self._cache is not None:
            return self._batch(request, replace)
        with quiet():
            return self._batch(request, replace)

    def _batch(self, request: Request, replace: bool) -> dict[str, Any]:
        rows = np.asarray(request.rows, np.int64)
        keys = occurrence_keys(rows) if request.keys is None else np.asarray(request.keys, np.int64)
        image, index = self._pictures(rows, request.plans)
        batch: dict[str, Any] = {"image": image, "index": torch.tensor(index), "key": torch.tensor(keys)}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[index])
        return batch if replace or not self._bad_rows else _only(batch, index == rows)

    def _pictures(
        self, rows: np.ndarray, plans: Sequence[Plan | None] | None
    ) -> tuple[Tensor | list[Tensor], np.ndarray]:
        """The pictures of some samples, and which samples they are."""
        if self._cache is None or (plans is not None and self.plan is not None):
            picked = [self._load(i, plans[k] if plans is not None else None) for k, i in enumerate(rows.tolist())]
            return together([x for x, _ in picked]), np.array([i for _, i in picked], np.int64)
        index = np.array([self._next_good(i) for i in rows.tolist()], np.int64) if self._bad_rows else rows
        pictures = self._cache.take(index)
        if plans is not None:
            pictures = [apply_plan(x, plan) for x, plan in zip(pictures, plans, strict=True)]
        return pictures if isinstance(pictures, Tensor) else together(pictures), index

    def _load(self, i: int, plan: Plan | None) -> tuple[Tensor, int]:
        """Sample i, or the next good one, and its number."""
        while True:
            i = self._next_good(i)
            try:
                return self.source.load(i, channels=self.channels, plan=plan if plan is not None else self.plan), i
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

    # --- a stream of batches ----------------------------------------------------------------------------------
    def stream(
        self, batches: Iterable[np.ndarray | Request], start: int = 0, *, replace: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The batches in order, decoded ahead.

        Args:
            batches: sample numbers of each batch, or a `Request`; read some batches ahead.
            start: batches to leave out at the beginning (a resumed run); nothing of them is decoded.
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

    def fill(self) -> bool:
        """Decode a small set into memory, once; whether the set is in memory. `stream` does it by itself."""
        if self._cache is None and self.cache_bytes:
            if expected_bytes(self._shapes, self.channels, len(self)) > self.cache_bytes:
                self.cache_bytes = 0
                return False
            with quiet():
                self._cache = fill_cache(self.source, self._load_whole, self.cache_bytes, self._note)
            if self._cache is None:
                self.cache_bytes = 0
        return self._cache is not None

    def _load_whole(self, i: int) -> Tensor:
        return self.source.load(i, channels=self.channels, plan=self.plan)

    # --- what the data is -------------------------------------------------------------------------------------
    def statistics(self, most: int = 256) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over pixels in [0, 1], of at most `most` evenly spaced samples.

        Every sample counts the same, whatever its size; large pictures are shrunk to a shorter side of 256 before.
        """
        rows = _spaced(len(self), most)
        sums = torch.zeros(2, self.channels, dtype=torch.float64)
        for part in np.array_split(rows, max(1, len(rows) // 16)):
            plans = None if self._cache is not None else [self.plan or {"short_side": 256}] * len(part)
            for picture in self.batch(part, plans=plans)["image"]:
                pixels = picture.double().flatten(1) / (255 if picture.dtype == torch.uint8 else 1)
                sums += torch.stack([pixels.mean(1), pixels.square().mean(1)])
        mean, square = sums / len(rows)
        std = (square - mean.square()).clamp_min(0).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def _probe(self) -> list[Shape]:
        """Shapes of some evenly spaced samples, as they will be decoded."""
        shapes = []
        for i in _spaced(len(self), PROBES).tolist():
            try:
                channels, height, width, deep = self.source.shape(i)
            except BadFile:
                continue  # counted when it is read
            scale = min(1.0, self.plan["short_side"] / min(height, width)) if self.plan else 1.0
            shapes.append((channels, max(1, round(height * scale)), max(1, round(width * scale)), deep))
        return shapes

    def _own_channels(self) -> int:
        found = [shape[0] for shape in self._shapes] or [self._load_first()]
        if set(found) <= {1, 3}:
            return max(found)
        return max(sorted(set(found)), key=found.count)

    def _load_first(self) -> int:
        """Channels of the first good sample, when none of the probes was good."""
        for i in range(len(self)):
            try:
                return self.source.shape(i)[0]
            except BadFile as error:
                self._note(i, error)
        raise UserError(f"None of the {len(self)} samples of {self.source.name} can be read.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


def _spaced(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def together(pictures: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor when all have one size; one type in any case."""
    if any(p.dtype != torch.uint8 for p in pictures):
        pictures = [p.float() / 255 if p.dtype == torch.uint8 else p for p in pictures]
    if pictures and all(p.shape == pictures[0].shape for p in pictures):
        return torch.stack(pictures)
    return pictures


def _only(batch: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    mask = torch.from_numpy(keep)
    image = batch["image"]
    kept = [x for x, good in zip(image, keep, strict=True) if good] if isinstance(image, list) else image[mask]
    return {"image": kept, **{k: v[mask] for k, v in batch.items() if k != "image"}}
