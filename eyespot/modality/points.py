"""Point clouds: the size of a sample is its number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.batches import BatchData
from eyespot.data.clouds import open_clouds
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.errors import UserError
from eyespot.modality import Reading
from eyespot.views.points import first_points

UNIT = "clouds"
TOWER = "points"
PROBES = 8


def open_data(value: Any, reading: Reading) -> RecordData:
    """Clouds of whatever `eyespot.data.clouds.open_clouds` reads."""
    if isinstance(value, RecordData):
        return value
    if isinstance(value, BatchData):
        raise UserError(f"'{value.source.name}' holds no point clouds; give a folder of shapes, or shapes:train.")
    r = reading
    channels = r.channels or 3
    source = open_clouds(value, split=r.split, label_column=r.label_column, channels=channels)
    return RecordData(source, channels=channels, workers=r.workers, max_bad=r.max_bad, cache_bytes=r.cache_bytes)


def clean(batch: Mapping[str, Any], size: int, device: torch.device | None = None) -> Tensor:
    """Clouds [B, size, C]: the first points of a fixed draw."""
    return first_points(batch["points"], size).to(device)


def usual_size(data: BatchData) -> int:
    """Median number of points of some shapes; 0 when none can be read."""
    source: Any = data.source
    found = []
    for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), PROBES)).round().astype(int)).tolist():
        try:
            found.append(source.count(i))
        except BadFile:
            continue  # counted when it is read
    return int(np.median(found)) if found else 0
