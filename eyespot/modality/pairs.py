"""Pictures with captions. A frozen network sees the pictures alone: the main tower takes an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from eyespot.data.batches import BatchData
from eyespot.data.decode import BadFile
from eyespot.data.loader import PROBES
from eyespot.data.pairs import open_pairs
from eyespot.data.records import RecordData
from eyespot.modality import Reading
from eyespot.modality.image import clean as clean

UNIT = "pictures with captions"
TOWER = "image"


def open_data(value: Any, reading: Reading) -> BatchData:
    """What `eyespot.data.pairs.open_pairs` reads, with three channels unless the reading says otherwise."""
    if isinstance(value, BatchData):
        return value
    r = reading
    channels = r.channels or 3
    source = open_pairs(
        value,
        split=r.split,
        image_column=r.image_column,
        text_column=r.text_column,
        label_column=r.label_column,
        channels=channels,
    )
    return RecordData(source, channels=channels, workers=r.workers, max_bad=r.max_bad, cache_bytes=r.cache_bytes)


def usual_size(data: BatchData) -> int:
    """Median short side in pixels of some pictures; 0 when none can be read."""
    sides = []
    for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), PROBES)).round().astype(int)).tolist():
        try:
            sides.append(min(data.source.pictures.shape(i)[1:3]))
        except BadFile:
            continue  # counted when it is read
    return int(np.median(sides)) if sides else 0
