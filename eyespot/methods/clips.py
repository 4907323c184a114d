"""What methods of clips share: which frames are read, and how large."""

from __future__ import annotations

import math
from typing import Any

from eyespot.draws import Draws


def short_side(size: int) -> int:
    """Shorter side of the frames that views of `size` pixels are cut from: 64 for 56, 128 for 112, 256 for 224."""
    return math.ceil(size * 8 / 7)


def random_window(meta: dict[str, Any], draws: Draws, frames: int, stride: int) -> tuple[int, int, int]:
    """(start, frames, stride) anywhere in a clip that is long enough, else from any frame on, looped."""
    length = meta["source"].length(meta["index"])
    room = length - (frames - 1) * stride
    u = float(draws.uniform64("window")[0])
    return int(u * (room if room > 0 else length)), frames, stride
