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


# --- evidence: which methods' recorded numbers were reproduced ------------------------------------------------------
EVIDENCE = ROOT / "eyespot" / "methods" / "evidence.json"
SHARED_NUMBERS: dict[str, tuple[str, ...]] = {
    "simclr": ("joint_embedding_bases__losses", "loss_simclr"),
    "moco_v2": ("joint_embedding_bases__losses", "loss_moco"),
    "byol": ("joint_embedding_bases__losses", "loss_byol_one_direction"),
    "barlow_twins": ("joint_embedding_bases__losses", "loss_barlow"),
    "dino": ("joint_embedding_bases__losses", "loss_dino"),
    "moco_v3": ("joint_embedding_bases__losses", "loss_mocov3_one_direction"),
    "simsiam": ("joint_embedding_bases__losses", "loss_simsiam_one_direction"),
    "swav": ("joint_embedding_bases__losses", "loss_swav", "sinkhorn1", "sinkhorn2"),
    "vicreg": ("joint_embedding_bases__losses", "loss_vicreg", "loss_vicreg_inv", "loss_vicreg_var", "loss_vicreg_cov"),
    "w_mse": ("joint_embedding_bases__losses", "loss_wmse_on_given", "whitened_z1"),
    "mae": ("masked_bases__losses", "mae_loss"),
    "simmim": ("masked_bases__losses", "sim_loss"),
    "i_jepa": ("masked_bases__losses", "ij_loss"),
    "ibot": ("masked_bases__losses", "ib_loss_cls", "ib_loss_patch", "ib_center_new", "ib_center2_new"),
    "dinov2": ("masked_bases__losses", "koleo"),
    "apc": ("speech_review__objectives", "apc_l1_shift3", "apc_pred", "apc_input"),
    "slot_attention": ("scene_survey__slot_attention", "slots", "attention_iter1", "attention_iter3"),
    "monet": ("scene_survey__losses", "gmioo_mask", "gmioo_log_mask"),
}
"""A set of several methods, and what in it is this method's; other sets carry their method's name: METHOD__WHAT."""
Numbers = set[tuple[str, str]]
read_by_test = pytest.StashKey[Numbers]()
agreed, failed = pytest.StashKey[Numbers](), pytest.StashKey[Numbers]()


class Watched(dict):
    """Recorded arrays that note which of them a test reads."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray], read: Numbers):
        super().__init__(arrays)
        self.name, self.read = name, read

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add((self.name, key))
        return super().__getitem__(key)

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "write to eyespot/methods/evidence.json which methods agree with their recorded numbers (with -m golden)"
    parser.addoption("--record-evidence", action="store_true", help=text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.when == "call" and read_by_test in item.stash:
        outcome = item.config.stash.setdefault(agreed if report.passed else failed, set())
        outcome |= item.stash[read_by_test]
    return report


def numbers_of(method: str) -> Numbers:
    """All recorded arrays that are a method's."""
    shared, *keys = SHARED_NUMBERS.get(method, ("",))
    found = {(shared, key) for key in keys}
    for path in golden_folder().glob(f"{method}__*.npz"):
        found |= {(path.stem, key) for key in read_golden(path.stem)[0]}
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A method agrees when tests that passed have read every array of it, and no test that read one failed."""
    if not session.config.getoption("--record-evidence"):
        return
    from eyespot.methods import catalog

    recorded = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    good, bad = (session.config.stash.get(key, set()) for key in (agreed, failed))
    for method in catalog.entries():
        if numbers := numbers_of(method):
            recorded.setdefault(method, {})["golden"] = numbers <= good and not numbers & bad
            for name, key in sorted(numbers - good):
                print(f"\n{method}: no test that passed has read '{key}' of {name}", end="")
    EVIDENCE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def find_shared_data(name: str) -> Path:
    """The folder of a real data set: below `$EYESPOT_DATA`, else ../shared/data beside the repository."""
    root = Path(os.environ.get("EYESPOT_DATA") or ROOT.parent / "shared" / "data")
    if not (root / name).is_dir():
        pytest.skip(f"the data set '{name}' is not in {root} (set EYESPOT_DATA to the folder that holds it)")
    return root / name


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    read = request.node.stash.setdefault(read_by_test, set())

    def watched(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, params = read_golden(name)
        return Watched(name, arrays, read), params

    return watched


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    return find_shared_data


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
