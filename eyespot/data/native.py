"""torchvision's own decoders, where the installed torchvision still has them (deprecated since 0.29).

Plain JPEG files come out with the same values as from pillow, small ones in a quarter of the time; PNG files of 16-bit
colour come out whole, which pillow cuts to 8 bits. Without them pillow does it all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

import numpy as np
import torch


@lru_cache(maxsize=2)
def _decoder(name: str) -> Callable[[torch.Tensor], Any] | None:
    try:
        from torchvision import io

        return getattr(io, name, None)
    except ImportError:
        return None


def native_pixels(name: str, stream: IO[bytes]) -> np.ndarray | None:
    """[H, W, C] uint8 or uint16 by "decode_jpeg" or "decode_png"; None where that decoder is missing or refuses."""
    decoder = _decoder(name)
    if decoder is None:
        return None
    stream.seek(0)
    try:
        planes = decoder(torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8))
    except RuntimeError:  # a damaged file, or a torchvision that was built without this decoder
        return None
    return planes.permute(1, 2, 0).numpy()
