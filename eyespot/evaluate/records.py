"""Results kept in a run: one JSON file a result under `evaluations/`, each written in one step.

A file is named PROTOCOL-vVERSION-DATA-KEY.json, where the key stands for everything that makes results differ: the
samples, the picture size, the seed, the settings. Measuring the same again replaces the file; two evaluations at once
do not disturb each other. A file holds

    {"version": 1, "date": "2026-01-31T12:00:00+00:00", "eyespot": "0.1.0", "settings": {...}, "result": {...}}

with the result as `evaluate` returns it, and settings that must agree where results are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eyespot.errors import UserError
from eyespot.runs import read_json, write_json

VERSION = 1
FOLDER = "evaluations"
FIXED = ("protocol", "version", "floor", "n_train", "n_test", "classes", "seconds", "run", "config")
"""The keys of a result that are no metrics."""
PLAIN = ("effective_rank", "uniformity", "alignment", "spread", "MSE")
PLAIN += ("rsum", "image_to_text_median_rank", "text_to_image_median_rank")
PLAIN += tuple(
    f"{by}{what}{mean}" for by in ("", "own_", "pgo_") for what in ("translation", "rotation") for mean in ("", "_mean")
)
"""The metrics that are no percentages."""


@dataclass(frozen=True)
class Record:
    """One result of a run."""

    date: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """Results with equal keys may be compared: protocol, version, samples, settings."""
        config = self.result["config"]
        settings = json.dumps(dict(self.settings), sort_keys=True)
        return self.result["protocol"], self.result["version"], config.get("data_id"), settings


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, in their order; the first is the one that stands for it."""
    return {k: v for k, v in result.items() if k not in FIXED}


def data_name(config: Mapping[str, Any]) -> str:
    """What the data of a result is called: the name given, else the last part of its path."""
    named = config.get("name") or config.get("test_data") or config.get("data") or "data"
    return Path(str(named)).name or str(named)


def keep(folder: Path, result: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
    """Write a result into the run in `folder`.

    Args:
        settings: what must agree where results are compared.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    config = result["config"]
    differ = [config.get(k) for k in ("data_id", "image_size", "seed", "weights", "name")]
    key = hashlib.blake2b(json.dumps([differ, dict(settings)]).encode(), digest_size=4).hexdigest()
    called = re.sub(r"[^\w.-]+", "-", data_name(config))[:40].strip(".-") or "data"
    path = folder / FOLDER / f"{result['protocol']}-v{result['version']}-{called}-{key}.json"
    path.parent.mkdir(exist_ok=True)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"version": VERSION, "date": date, "eyespot": _eyespot(), "settings": dict(settings)}
    write_json(path, about | {"result": dict(result)})
    return path


def read(folder: Path) -> list[Record]:
    """The results kept in a run, the oldest first.

    Raises:
        UserError: a file is damaged or newer than this eyespot.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        value = read_json(path)
        if not isinstance(value, dict) or not {"version", "date", "settings", "result"} <= set(value):
            raise UserError(f"'{path}' is no result of eyespot evaluate; delete it and evaluate the run again.")
        if value["version"] > VERSION:
            raise UserError(f"'{path}' was written by a newer eyespot; update eyespot.")
        found.append(Record(value["date"], value["settings"], value["result"]))
    return sorted(found, key=lambda r: r.date)


def _eyespot() -> str:
    try:
        return version("eyespot")
    except PackageNotFoundError:
        return "unknown"
