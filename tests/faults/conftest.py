"""Pictures, and the run that nothing disturbs."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import arena

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


def draw(root: Path, n: int = 24) -> Path:
    """Pictures of noise in two class folders."""
    g = torch.Generator().manual_seed(0)
    for i in range(n):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=g, dtype=torch.uint8)
        place = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place)
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures"))


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
