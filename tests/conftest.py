"""Helpers of all tests: recorded numbers, real data where it is at hand, one thread.

How they are used:

    @pytest.mark.golden
    def test_loss(golden):
        arrays, params = golden("slotcon__grouping_losses")

    def test_reads_parquet(shared_data):
        folder = shared_data("cifar10")      # skips, with the reason, where the data is not at hand
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Sums depend on the number of threads, and several tests run side by side.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The first example pays for imports, and a busy machine is no failure.
settings.register_profile("eyespot", deadline=None)
settings.load_profile("eyespot")


def golden_folder() -> Path:
    """`$EYESPOT_GOLDEN`, else tests/golden."""
    return Path(os.environ.get("EYESPOT_GOLDEN") or ROOT / "tests" / "golden")


def read_golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and parameters of one set of recorded numbers; shapes are read from the files, never assumed."""
    base = golden_folder() / name
    with np.load(base.with_suffix(".npz"), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return arrays, json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))["params"]


def find_shared_data(name: str) -> Path:
    """The folder of a real data set: below `$EYESPOT_DATA`, else ../shared/data beside the repository."""
    root = Path(os.environ.get("EYESPOT_DATA") or ROOT.parent / "shared" / "data")
    if not (root / name).is_dir():
        pytest.skip(f"the data set '{name}' is not in {root} (set EYESPOT_DATA to the folder that holds it)")
    return root / name


@pytest.fixture
def golden() -> Callable[[str], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    return read_golden


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    return find_shared_data


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
