"""Random draws as pure functions of (seed, epoch, sample index, name of the draw).

A draw never depends on the order of calls, on the split of a batch over processes or on the worker that makes it:
resume is exact, one process equals many, and any view ever seen can be drawn again. The generator is a counter-based
hash, splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"); numpy and torch give
the same bits.

    >>> draws = Draws(seed=0, epoch=3, index=[7, 8])
    >>> draws.uniform("flip")                      # [2], one number a sample
    >>> draws.scope("view1").uniform("crop", 4)    # [2, 4], other numbers for another name
    >>> draws.step_uniform("coin")                 # one number for the whole global batch
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """splitmix64's finaliser on one Python integer."""
    x &= MASK
    x = ((x ^ (x >> 30)) * MIX1) & MASK
    x = ((x ^ (x >> 27)) * MIX2) & MASK
    return x ^ (x >> 31)


def mix_numpy(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 numbers of any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX2)
    return x ^ (x >> np.uint64(31))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix_torch(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 numbers that hold uint64 bits, on any device."""
    x = (x ^ _shift(x, 30)) * _signed(MIX1)
    x = (x ^ _shift(x, 27)) * _signed(MIX2)
    return x ^ _shift(x, 31)


@lru_cache(maxsize=4096)
def name_key(name: str) -> int:
    """64 bits that stand for the name of a draw."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def base_key(seed: int, name: str, counter: int) -> int:
    return mix(mix(mix(seed) ^ name_key(name)) + (counter % (1 << 64)) * GOLDEN)


def bits_numpy(seed: int, name: str, counter: int, index: np.ndarray, columns: int) -> np.ndarray:
    """Random uint64 [len(index), columns] for one name."""
    rows = mix_numpy(np.uint64(base_key(seed, name, counter)) + index.astype(np.uint64) * np.uint64(GOLDEN))
    return mix_numpy(rows[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(GOLDEN))


def bits_torch(seed: int, name: str, counter: int, index: Tensor, columns: int) -> Tensor:
    """The same bits as `bits_numpy`, as int64, on the device of `index`."""
    rows = mix_torch(_signed(base_key(seed, name, counter)) + index * _signed(GOLDEN))
    column = torch.arange(1, columns + 1, device=index.device) * _signed(GOLDEN)
    return mix_torch(rows[:, None] + column)


def _float64(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Draws:
    """The draws of one batch.

    Args:
        seed: seed of the run.
        epoch: epoch of the batch; per-sample draws depend on it.
        step: step of the run; draws of the whole global batch depend on it.
        index: [B] sample indices in the data (any integers that tell the samples apart).
        device: where the tensors are returned.
        prefix: put before every name, see `scope`.
    """

    def __init__(
        self,
        seed: int = 0,
        epoch: int = 0,
        step: int = 0,
        index: Sequence[int] | np.ndarray | Tensor = (0,),
        device: torch.device | str = "cpu",
        prefix: str = "",
    ):
        self.seed, self.epoch, self.step = int(seed), int(epoch), int(step)
        values = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        self.index = values.astype(np.int64)
        self.device = torch.device(device)
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.index)

    def scope(self, name: str) -> Draws:
        """The same samples under another name: two views of a picture draw from two scopes."""
        return Draws(self.seed, self.epoch, self.step, self.index, self.device, f"{self.prefix}{name}/")

    def to(self, device: torch.device | str) -> Draws:
        return Draws(self.seed, self.epoch, self.step, self.index, device, self.prefix)

    def rows(self, start: int, stop: int) -> Draws:
        """The draws of a slice of the batch."""
        return Draws(self.seed, self.epoch, self.step, self.index[start:stop], self.device, self.prefix)

    def _uniform(self, name: str, columns: int) -> np.ndarray:
        return _float64(bits_numpy(self.seed, self.prefix + name, self.epoch, self.index, columns))

    def _tensor(self, values: np.ndarray, columns: int | None, dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        return (tensor[:, 0] if columns is None else tensor).to(self.device)

    def uniform(self, name: str, columns: int | None = None, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 in [low, high): [B], or [B, columns]. 24 random bits, so that rounding never reaches 1."""
        bits = bits_numpy(self.seed, self.prefix + name, self.epoch, self.index, columns or 1)
        unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return self._tensor(np.float32(low) + unit * np.float32(high - low), columns, torch.float32)

    def uniform64(self, name: str, columns: int | None = None) -> np.ndarray:
        """float64 numpy in [0, 1): [B] or [B, columns], for decisions on the host (crop boxes, windows)."""
        values = self._uniform(name, columns or 1)
        return values[:, 0] if columns is None else values

    def coin(self, name: str, probability: float) -> Tensor:
        """bool [B], true with the given probability."""
        return self.uniform(name) < probability

    def normal(self, name: str, columns: int | None = None) -> Tensor:
        """float32 standard normal [B] or [B, columns], by the inverse of the distribution."""
        from scipy.special import ndtri

        unit = np.minimum(self._uniform(name, columns or 1) + 2.0**-54, 1 - 2.0**-53)  # never 0 or 1
        return self._tensor(ndtri(unit), columns, torch.float32)

    def beta(self, name: str, a: float, b: float, columns: int | None = None) -> Tensor:
        """float32 Beta(a, b) [B] or [B, columns], by the inverse of the distribution."""
        from scipy.special import betaincinv

        return self._tensor(betaincinv(a, b, self._uniform(name, columns or 1)), columns, torch.float32)

    def integers(self, name: str, high: int, columns: int | None = None) -> Tensor:
        """int64 in [0, high): [B] or [B, columns]."""
        return self._tensor(np.floor(self._uniform(name, columns or 1) * high), columns, torch.int64)

    def noise(self, name: str, *shape: int, normal: bool = False) -> Tensor:
        """Large fields [B, *shape] float32, made on the device: uniform in [0, 1), or standard normal."""
        index = torch.from_numpy(self.index).to(self.device)
        size = int(np.prod(shape))
        unit = _shift(bits_torch(self.seed, self.prefix + name, self.epoch, index, size), 40).float() * 2.0**-24
        if normal:
            unit = torch.special.ndtri(unit.double() + 2.0**-25).float()  # in float32 the largest would round to 1
        return unit.view(len(self.index), *shape)

    def _step_bits(self, name: str, columns: int) -> np.ndarray:
        return bits_numpy(self.seed, "step:" + self.prefix + name, self.step, np.zeros(1, np.int64), columns)[0]

    def step_uniform(self, name: str, columns: int | None = None) -> Tensor:
        """float32 in [0, 1), the same for every sample and process of this step: a scalar, or [columns]."""
        bits = self._step_bits(name, columns or 1)
        unit = torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).to(self.device)
        return unit[0] if columns is None else unit

    def permutation(self, name: str, n: int) -> Tensor:
        """A permutation of n, the same on every process of this step: int64 [n]."""
        return torch.from_numpy(np.argsort(self._step_bits(name, n), kind="stable")).to(self.device)


def epoch_permutation(seed: int, epoch: int, n: int, name: str = "order") -> np.ndarray:
    """The order of n samples in one epoch: int64 [n]."""
    bits = bits_numpy(seed, name, epoch, np.arange(n), 1)[:, 0]
    return np.argsort(bits, kind="stable")


def ensure(draws: Draws | None, batch: int, device: torch.device | str = "cpu") -> Draws:
    """The draws given, or fixed ones for a batch outside any run, so that a method runs on plain tensors."""
    return draws if draws is not None else Draws(index=np.arange(batch), device=device)
