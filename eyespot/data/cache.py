"""All pictures of a small set, decoded once by a pool of threads and kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from eyespot.data.decode import BadFile
from eyespot.data.memory import cores
from eyespot.data.sources import Source

CHUNK = 256
"""Pictures between two looks at the budget and at the share of bad files."""


class PictureCache:
    """Pictures by sample number: one tensor [n, C, H, W] while all are alike, else a list of [C, H, W]."""

    def __init__(self, n: int):
        self.n = n
        self.block: Tensor | None = None
        self.pictures: list[Tensor | None] = []
        self.bytes = 0

    def put(self, first: int, decoded: list[Tensor | None]) -> None:
        """The next samples, in order; None for a bad one."""
        self.bytes += sum(t.nbytes for t in decoded if t is not None)
        if not self.pictures and self._alike(decoded):
            for i, picture in enumerate(decoded, first):
                if picture is not None and self.block is not None:
                    self.block[i] = picture
            return
        if self.block is not None or not self.pictures:
            self.pictures = [t.clone() for t in self.block[:first]] if self.block is not None else [None] * first
            self.block = None
        self.pictures.extend(decoded)

    def _alike(self, decoded: list[Tensor | None]) -> bool:
        present = [t for t in decoded if t is not None]
        if self.block is None and present:
            if any(t.shape != present[0].shape or t.dtype != present[0].dtype for t in present):
                return False
            self.block = torch.empty((self.n, *present[0].shape), dtype=present[0].dtype)
        return all(
            self.block is not None and t.shape == self.block.shape[1:] and t.dtype == self.block.dtype for t in present
        )

    def take(self, rows: np.ndarray) -> Tensor | list[Tensor]:
        """The pictures of some samples, none of them bad."""
        if self.block is not None:
            return self.block.index_select(0, torch.from_numpy(rows))
        out = [self.pictures[i] for i in rows.tolist()]
        return [t for t in out if t is not None]


def fill_cache(
    source: Source,
    load: Callable[[int], Tensor],
    budget: int,
    note: Callable[[int, BadFile], None],
) -> PictureCache | None:
    """Every picture of a source, or None when they turn out to need more than `budget` bytes.

    Args:
        load: decodes sample i. Raises BadFile.
        note: told of each bad sample; raises when there are too many.
    """

    def attempt(i: int) -> Tensor | BadFile:
        try:
            return load(i)
        except BadFile as error:
            return error

    n = len(source)
    cache = PictureCache(n)
    source.prepare()
    with ThreadPoolExecutor(cores() if source.threads else 1) as pool:
        for first in range(0, n, CHUNK):
            decoded: list[Tensor | None] = []
            for i, result in enumerate(pool.map(attempt, range(first, min(first + CHUNK, n))), first):
                if isinstance(result, BadFile):
                    note(i, result)
                decoded.append(None if isinstance(result, BadFile) else result)
            cache.put(first, decoded)
            if cache.bytes > budget:
                return None
    return cache


def expected_bytes(shapes: list[tuple[int, int, int, bool]], channels: int, n: int) -> float:
    """Bytes of n decoded pictures, from the shapes of some of them."""
    sizes = [channels * height * width * (4 if deep else 1) for _, height, width, deep in shapes]
    return float(np.mean(sizes)) * n if sizes else float("inf")
