"""Clips: windows of frames of video files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.data.clips import open_clips
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.modality import Reading
from eyespot.views.video import clean_clips

UNIT = "clips"
TOWER = "video"
SHORT_SIDE = 128
"""Shorter side that evaluation decodes frames to; methods say for themselves what they read."""
PROBES = 16


def open_data(value: Any, reading: Reading) -> RecordData:
    """Clips of whatever `eyespot.data.clips.open_clips` reads; `channels` may be 1 for grey."""
    if isinstance(value, RecordData):
        return value
    r = reading
    source = open_clips(value, split=r.split, channels=r.channels or 3, short_side=SHORT_SIDE)
    return RecordData(source, channels=source.channels, workers=r.workers, cache_bytes=r.cache_bytes, max_bad=r.max_bad)


def clean(batch: Mapping[str, Any], size: int, device: torch.device | None = None) -> Tensor:
    """Pixels [B, T, C, size, size] in [0, 1] of evenly spaced frames: shorter side resized, central crop."""
    return clean_clips(batch["video"], size, device=device)


def usual_size(data: BatchData) -> int:
    """Median short side in pixels of some clips; 0 when none can be read."""
    sides = []
    for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), PROBES)).round().astype(int)).tolist():
        try:
            clip = data.source.about(i)
        except BadFile:
            continue  # counted when it is read
        sides.append(min(clip.width, clip.height))
    return int(np.median(sides)) if sides else 0
