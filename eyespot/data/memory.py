"""How much memory there is to cache in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

GIB = 1 << 30


def free_memory() -> int:
    """Bytes that this process may still use: what the machine has, or what its container allows if that is less."""
    free = 4 * GIB
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # the word "max" where there is none
        used = int((group / "memory.current").read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):  # cached files, given back when needed
                used -= int(line.split()[1])
        free = min(free, max(limit - used, 0))
    return free


def cache_budget(processes: int = 1) -> int:
    """Bytes of one process's cache of decoded pictures: 2 GiB, or a quarter of the free memory if that is less."""
    return min(2 * GIB, free_memory() // 4) // max(processes, 1)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
