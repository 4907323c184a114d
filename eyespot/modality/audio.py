"""Sounds: waveforms of one channel at the rate of `eyespot.nets.audio`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.data.sounds import cut, open_sounds
from eyespot.errors import UserError
from eyespot.modality import Reading
from eyespot.nets.audio import RATE
from eyespot.views.spectrogram import frames_in, samples_of

UNIT = "sounds"
TOWER = "audio"
PROBES = 32


def open_data(value: Any, reading: Reading) -> RecordData:
    """Sounds of whatever `eyespot.data.sounds.open_sounds` reads."""
    if isinstance(value, RecordData):
        return value
    r = reading
    if r.channels not in (None, 1):
        raise UserError(f"Sounds are read as one channel, not {r.channels}; leave --channels out.")
    source = open_sounds(value, split=r.split, column=r.image_column, label_column=r.label_column, rate=RATE)
    return RecordData(source, channels=1, workers=r.workers, max_bad=r.max_bad, cache_bytes=r.cache_bytes)


def clean(batch: Mapping[str, Any], size: int, device: torch.device | None = None) -> Tensor:
    """Waveforms [B, S] of `size` frames from the middle of every sound; shorter ones are repeated."""
    samples = samples_of(size, RATE)
    return torch.stack([cut(wave, samples, 0.5) for wave in batch["audio"]]).to(device)


def usual_size(data: BatchData) -> int:
    """Median number of frames of some sounds."""
    frames = []
    for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), PROBES)).round().astype(int)).tolist():
        try:
            frames.append(frames_in(int(data.source.seconds(i) * RATE), RATE))
        except BadFile:
            continue  # counted when it is read
    return int(np.median(frames)) if frames else 0
