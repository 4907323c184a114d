"""What makes batches come faster, for data as it is read now."""

from __future__ import annotations

from typing import Any

from eyespot.data.cache import expected_bytes
from eyespot.data.folder import FileSource
from eyespot.data.loader import Data
from eyespot.data.memory import cores, free_memory
from eyespot.process import world_size

ROOM = 0.6
"""Share of the free memory that decoded pictures may take."""


def remedies(data: Any) -> list[str]:
    """What helps a run that waits for its data, the cheapest first; empty for pictures in memory and for other data.

    Every option that is named exists, and differs from what the run has.
    """
    if not isinstance(data, Data) or data.cached:
        return []
    found, processes = [], world_size()
    usable = max(1, cores() // processes)
    if data.workers < usable:
        found.append(f"more workers (--workers {usable})")
    need = processes * expected_bytes(data.shapes, data.channels, len(data))
    free = free_memory()
    if need < ROOM * free:
        gigabytes = 1.05 * need / 1e9
        found.append(
            f"decoded pictures in memory (--cache {gigabytes:.1f}, of {free / 1e9:.0f} GB that are free)"
            if gigabytes >= 0.05
            else "decoded pictures in memory (leave --cache out)"
        )
    if data.plan is not None:
        side = data.plan["short_side"]
        found.append(f"smaller pictures on disk (no view needs a shorter side of more than {side} px)")
    if isinstance(data.source, FileSource):
        found.append("Parquet or tars instead of loose files, where the disk is slow or far away")
    if not found:
        found.append(f"more cores, for {data.workers} workers decode on {usable} already")
    return found
