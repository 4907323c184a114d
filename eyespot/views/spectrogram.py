"""Sound as a picture of time and pitch: Kaldi's log-mel filter bank, in torch, a whole batch at once.

frames(0.025 s, every 0.01 s) -> mean taken off -> pre-emphasis -> Hann window -> power spectrum -> triangles that
are evenly spaced in mel -> logarithm

>>> log_mel(torch.randn(2, 16000), rate=16000, mels=80).shape
torch.Size([2, 98, 80])
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

FRAME, SHIFT = 0.025, 0.010
"""Seconds of a frame, and from one to the next."""
EMPHASIS = 0.97
LOWEST = 20.0
"""Hertz where the first filter begins; the last ends at half the rate."""
FLOOR = torch.finfo(torch.float32).eps


def frames_in(samples: int, rate: int) -> int:
    """Whole frames of a sound."""
    return max(0, 1 + (samples - round(FRAME * rate)) // round(SHIFT * rate))


def samples_of(frames: int, rate: int) -> int:
    """The shortest sound with so many frames."""
    return (frames - 1) * round(SHIFT * rate) + round(FRAME * rate)


def log_mel(wave: Tensor, rate: int, mels: int) -> Tensor:
    """Log-mel spectrogram of sounds, as Kaldi computes it without dither and energy.

    Args:
        wave: float [..., S], S at least one frame.
        rate: samples a second.
        mels: number of filters.

    Returns:
        [..., T, mels], the natural logarithm of the power, T = 1 + (S - frame) // shift.

    Raises:
        ValueError: the sounds are shorter than a frame.
    """
    length, shift = round(FRAME * rate), round(SHIFT * rate)
    if wave.shape[-1] < length:
        raise ValueError(f"{wave.shape[-1]} samples are less than a frame of {length}")
    x = wave.unfold(-1, length, shift)
    x = x - x.mean(-1, keepdim=True)
    before = torch.cat([x[..., :1], x[..., :-1]], -1)
    x = (x - EMPHASIS * before) * torch.hann_window(length, periodic=False, dtype=x.dtype, device=x.device)
    size = 1 << math.ceil(math.log2(length))
    power = torch.fft.rfft(x, size).abs().square()[..., :-1]
    return (power @ filters(size, rate, mels).to(power)).clamp_min(FLOOR).log()


@lru_cache(maxsize=8)
def filters(size: int, rate: int, mels: int) -> Tensor:
    """Triangles in mel over the bins of a spectrum: float64 [size / 2, mels].

    Args:
        size: samples of the transform.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * (1 + hertz / 700).log()

    first, last = mel(torch.tensor([LOWEST, rate / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(first, last, mels + 2, dtype=torch.float64)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    place = mel(torch.arange(size // 2, dtype=torch.float64) * rate / size)[:, None]
    return torch.minimum((place - low) / (middle - low), (high - place) / (high - middle)).clamp_min(0)
