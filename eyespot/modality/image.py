"""Pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.data.decode import BadFile
from eyespot.data.loader import PROBES, Data
from eyespot.data.sources import open_source
from eyespot.modality import Reading
from eyespot.views.image import clean as clean_pictures

UNIT = "pictures"
TOWER = "image"


def open_data(value: Any, reading: Reading) -> Data:
    """Pictures of whatever `eyespot.data.sources.open_source` reads."""
    if isinstance(value, Data):
        return value
    r = reading
    source = open_source(value, split=r.split, image_column=r.image_column, label_column=r.label_column)
    return Data(source, channels=r.channels, workers=r.workers, max_bad=r.max_bad, cache_bytes=r.cache_bytes)


def clean(batch: Mapping[str, Any], size: int, device: torch.device | None = None) -> Tensor:
    """Pixels [B, C, size, size] in [0, 1]: shorter side resized, central crop."""
    return clean_pictures(batch["image"], size, device=device)


def usual_size(data: BatchData) -> int:
    """Median short side in pixels of some pictures; 0 when none can be read."""
    sides = []
    for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), PROBES)).round().astype(int)).tolist():
        try:
            sides.append(min(data.source.shape(i)[1:3]))
        except BadFile:
            continue  # counted when it is read
    return int(np.median(sides)) if sides else 0
