"""Small pictures whose class is their pattern: stripes across, stripes down, checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("across", "checks", "down")


def picture(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] // 2 % 2
    pattern = {"across": rows, "down": columns, "checks": (rows + columns) % 2}[kind]
    colours = rng.integers(0, 256, (2, 3))
    return (colours[pattern] + rng.normal(0, 8, (size, size, 3))).clip(0, 255).astype(np.uint8)


def write_pictures(
    root: Path, per_class: int, seed: int = 0, classes: tuple[str, ...] = CLASSES, size: int = 16
) -> Path:
    """Class folders of PNG files."""
    rng = np.random.default_rng(seed)
    for kind in classes:
        (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.fromarray(picture(kind, rng, size)).save(root / kind / f"{i:03}.png")
    return root


@pytest.fixture
def write() -> Callable[..., Path]:
    return write_pictures


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training and a test folder, 20 and 8 pictures a class."""
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root / "train", 20), write_pictures(root / "test", 8, seed=1)
