"""Pictures in batches: decoded ahead by worker processes, or taken from memory when the set is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData, Plan, Request
from eyespot.data.cache import PictureCache, expected_bytes, fill_cache
from eyespot.data.decode import BadFile, apply_plan
from eyespot.data.picture import quiet
from eyespot.data.sources import Shape, Source
from eyespot.errors import UserError

PROBES = 32


class Data(BatchData):
    """A source of pictures, and how to decode it.

    In a batch "image" is uint8 [B, C, H, W] when all have one size, else a list of B tensors [C, H_i, W_i]; float32 in
    [0, 1] when a picture has more than 8 bits.

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

    Raises:
        UserError: there are no samples, or more than `max_bad` of them are bad.
    """

    source: Source

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
        super().__init__(source, workers, cache_bytes, max_bad)
        self.plan: Plan | None = {"short_side": short_side} if short_side else None
        self._cache: PictureCache | None = None
        with quiet():
            self._shapes = self._probe()
        self.channels = channels if channels is not None else self._own_channels()

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
    def cached(self) -> bool:
        """Whether the decoded pictures are in memory."""
        return self._cache is not None

    # --- batches ----------------------------------------------------------------------------------------------
    def _batch(self, request: Request, replace: bool) -> dict[str, Any]:
        image, index = self._pictures(np.asarray(request.rows, np.int64), request.plans)
        return self._finished({"image": image}, request, index, replace)

    def _pictures(
        self, rows: np.ndarray, plans: Sequence[Plan | None] | None
    ) -> tuple[Tensor | list[Tensor], np.ndarray]:
        """The pictures of some samples, and which samples they are."""
        if self._cache is None or (plans is not None and self.plan is not None):
            wanted = [self.plan if plans is None or plans[k] is None else plans[k] for k in range(len(rows))]
            picked = [self._good(i, self._reader(plan)) for i, plan in zip(rows.tolist(), wanted, strict=True)]
            return together([x for x, _ in picked]), np.array([i for _, i in picked], np.int64)
        index = np.array([self._next_good(i) for i in rows.tolist()], np.int64) if self._bad_rows else rows
        pictures = self._cache.take(index)
        if plans is not None:
            pictures = [apply_plan(x, plan) for x, plan in zip(pictures, plans, strict=True)]
        return pictures if isinstance(pictures, Tensor) else together(pictures), index

    def _reader(self, plan: Plan | None) -> Callable[[int], Tensor]:
        return lambda i: self.source.load(i, channels=self.channels, plan=plan)

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
