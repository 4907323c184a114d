"""`eyespot doctor`: what this installation and machine have, what is missing, and what helps."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from eyespot.data.memory import cores, free_memory
from eyespot.methods import catalog

CORE = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pyarrow", "safetensors", "tyro")
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHARED = 2e9, 2e9, 512e6
"""Bytes below which a word of advice is given."""
DEVELOPMENT = ("dev", "docs")
"""Extras for work on eyespot itself."""


def doctor(out: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """Versions, devices, threads, free disk and memory, missing extras, and advice.

    Args:
        out: folder whose free disk space is looked at.

    Returns:
        {"versions", "devices", "threads", "disk_free_mb", "memory_free_mb", "shared_memory_free_mb", "extras",
        "advice"}; None for what the system does not tell, and for packages that are not installed.
    """
    found: dict[str, Any] = {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in ("eyespot", *CORE)},
        "platform": platform.platform(),
        **_torch(),
        "disk_free_mb": _megabytes(_disk(Path(out))),
        "memory_free_mb": _megabytes(free_memory()),
        "shared_memory_free_mb": _megabytes(_disk(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None),
        "extras": extras(),
    }
    return found | {"advice": advice(found) + catalog.problems(load_all=True)}


def extras() -> dict[str, list[str]]:
    """For each extra of the installed eyespot the packages that are missing; an empty list is complete."""
    missing: dict[str, list[str]] = {}
    for requirement in requires("eyespot") or ():
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if marker is None or name is None or marker.group(1) in DEVELOPMENT or name.group() == "eyespot":
            continue
        absent = missing.setdefault(marker.group(1), [])
        if _version(name.group()) is None:
            absent.append(name.group())
    return dict(sorted(missing.items()))


def advice(found: dict[str, Any]) -> list[str]:
    """One sentence for everything that will slow a run or stop it."""
    said = [f"{name} is not installed: pip install eyespot again" for name, v in found["versions"].items() if v is None]
    devices, threads = found["devices"], found["threads"]
    if devices == ["cpu"]:
        said.append("there is no GPU: take small networks and pictures (resnet8, --image-size 32), see `eyespot demo`")
    if threads["torch"] < threads["usable_cores"]:
        said.append(
            f"torch uses {threads['torch']} of {threads['usable_cores']} cores: unset OMP_NUM_THREADS to use all"
        )
    for key, least, what in (
        ("disk_free_mb", LITTLE_DISK, "free some disk space, or give --out on another disk"),
        ("memory_free_mb", LITTLE_MEMORY, "close other programs, or take a smaller --batch-size"),
        ("shared_memory_free_mb", LITTLE_SHARED, "enlarge /dev/shm (containers: --shm-size 2g), or --workers 0"),
    ):
        if found[key] is not None and found[key] < least / 2**20:
            said.append(f"{key.removesuffix('_mb').replace('_', ' ')} is {found[key]} MB: {what}")
    return said


def _torch() -> dict[str, Any]:
    """Devices and threads; without torch only what the system says."""
    threads: dict[str, Any] = {"cores": os.cpu_count(), "usable_cores": cores(), "torch": 0}
    threads |= {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    if importlib.util.find_spec("torch") is None:
        return {"devices": [], "threads": threads}
    import torch

    threads["torch"] = torch.get_num_threads()
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"devices": [*devices, "cpu"], "threads": threads}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _disk(path: Path) -> int | None:
    place = next((p for p in [path, *path.absolute().parents] if p.exists()), None)
    return None if place is None else shutil.disk_usage(place).free


def _megabytes(value: int | None) -> int | None:
    return None if value is None else round(value / 2**20)
