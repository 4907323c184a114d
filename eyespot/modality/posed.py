"""Frames with camera poses; a frozen network sees single pictures."""

from __future__ import annotations

from typing import Any

from eyespot.data.batches import BatchData
from eyespot.data.decode import BadFile
from eyespot.data.posed import open_posed
from eyespot.data.records import RecordData
from eyespot.errors import UserError
from eyespot.modality import Reading
from eyespot.modality.image import clean

__all__ = ["TOWER", "UNIT", "clean", "open_data", "usual_size"]
UNIT = "frames"
TOWER = "image"


def open_data(value: Any, reading: Reading) -> RecordData:
    """Posed frames of whatever `eyespot.data.posed.open_posed` reads."""
    if isinstance(value, RecordData):
        return value
    if isinstance(value, BatchData):
        raise UserError(f"'{value.source.name}' holds no frames with poses; give a folder of them, or tour:train.")
    r = reading
    channels = r.channels or 3
    source = open_posed(value, split=r.split, image_column=r.image_column, channels=channels)
    return RecordData(source, channels=channels, workers=r.workers, max_bad=r.max_bad, cache_bytes=r.cache_bytes)


def usual_size(data: BatchData) -> int:
    """Short side of the frames in pixels; 0 when none can be read."""
    source: Any = data.source
    try:
        return min(source.shape())
    except BadFile:
        return 0
