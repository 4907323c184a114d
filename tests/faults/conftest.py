"""Pictures, and the run that nothing disturbs."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import arena

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return arena.draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def whole_run(pictures, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "log"
    assert arena.command(arena.words(pictures, folder / "run"), log, arena.busy) == 0, log.read_text()
    return folder / "run"


@pytest.fixture(scope="session")
def whole(whole_run):
    """Its final state."""
    return arena.final(whole_run)
