"""Pictures of every kind, made here."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eyespot.data.picture import quiet


def smooth(height: int, width: int, channels: int, top: int = 255, seed: int = 0) -> np.ndarray:
    """[H, W, C] float64 in [0, top] without sharp edges, so that JPEG keeps it; no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        0.5 + 0.25 * np.sin(x / (5 + k) + k + seed) + 0.24 * np.cos(y / (7 + k) + 0.2 * x / width)
        for k in range(channels)
    ]
    return np.stack(waves, -1) * top


def encode(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """The bytes of an array as pillow stores them."""
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits a value, [H, W, 1..4]."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return png(head, rows)


def png(head: bytes, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(folder: Path, files: dict[str, bytes | np.ndarray]) -> Path:
    """Files by relative path: bytes as they are, arrays encoded by their suffix."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray) and path.suffix == ".npy":
            np.save(path, content)
        elif isinstance(content, np.ndarray):
            Image.fromarray(content).save(path)
        else:
            path.write_bytes(content)
    return folder


def picture(seed: int = 0, height: int = 20, width: int = 24) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return smooth(height, width, 3, seed=seed).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(smooth=smooth, encode=encode, png=png, png16=png16, write=write, picture=picture)


def write_tar(path: Path, files: dict[str, bytes], when: float = 1e9) -> Path:
    """A tar of files by name, in this order; its time is long ago, so that its index is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.utime(path, (when, when))
    return path


@pytest.fixture(scope="session")
def tars() -> SimpleNamespace:
    return SimpleNamespace(write=write_tar)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing that is kept between two starts is shared with another test, or with the user."""
    monkeypatch.setenv("EYESPOT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_warnings():
    """As in a run: what is wrong with a file is in its BadFile, not in a warning."""
    with quiet():
        yield
