"""TIFF pictures that pillow would cut down or refuse: more than four bands, or several bands of more than 8 bits.

Baseline TIFF 6.0 and little-endian BigTIFF in strips or tiles, chunky or planar, stored plain or deflated, with or
without horizontal differencing: what satellite and microscope software writes. The first page is read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

ORDER = "order"
PLAIN, DEFLATE = 1, (8, 32946)
KINDS = {1: "u", 2: "i", 3: "f"}
SCHEMES = {5: "LZW", 7: "JPEG", 34925: "LZMA", 50000: "Zstandard", 32773: "PackBits"}


def _tags(stream: IO[bytes]) -> dict[Any, Any]:
    stream.seek(0)
    head = stream.read(8)
    if head[2] == 43:
        head += stream.read(8)
    directory = ImageFileDirectory_v2(head)
    stream.seek(directory.next)
    directory.load(stream)
    return {**directory, ORDER: "<" if head[:2] == b"II" else ">"}


def _bits(tags: dict[Any, Any]) -> int:
    bits = tags.get(258, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def has_hidden_bands(stream: IO[bytes]) -> bool:
    """Whether pillow would drop bands or bits of this TIFF. The stream is left at its start."""
    tags = _tags(stream)
    stream.seek(0)
    bands, bits, extra = int(tags.get(277, 1)), _bits(tags), tags.get(338, ())
    # several bands of one colour, of which pillow knows only grey with opacity
    nameless = bands > 1 and tags.get(262, 1) in (0, 1) and not (bands == 2 and extra and extra[0] in (1, 2))
    nameless = nameless or (bands == 4 and bool(extra) and extra[0] == 0)
    return bands > 4 or nameless or (bands > 1 and bits > 8) or bits == 64


@dataclass
class Bands:
    """The layout of one multi-band TIFF page."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    alpha: bool
    turn: int
    tags: dict[Any, Any]

    def pixels(self, stream: IO[bytes]) -> np.ndarray:
        """[H, W, C] in the stored type and machine byte order."""
        rows, columns, offsets, sizes = self._segments()
        planar = self.tags.get(284, 1) == 2
        depth = 1 if planar else self.channels
        across, down = -(-self.width // columns), -(-self.height // rows)
        expected = across * down * (self.channels if planar else 1)
        if min(len(offsets), len(sizes)) < expected:
            raise ValueError(f"the TIFF lists {len(offsets)} of {expected} strips or tiles")
        out = np.zeros((self.height, self.width, self.channels), self.dtype.newbyteorder("="))
        for number in range(expected):
            plane, place = divmod(number, across * down)
            top, left = place // across * rows, place % across * columns
            # strips end with the picture, tiles are padded
            high = rows if 324 in self.tags else min(rows, self.height - top)
            part = self._segment(stream, offsets[number], sizes[number], (high, columns, depth))
            part = part[: self.height - top, : self.width - left]
            bands = slice(plane, plane + 1) if planar else slice(None)
            out[top : top + part.shape[0], left : left + part.shape[1], bands] = part
        return out

    def _segments(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        if 324 in self.tags:
            shape, places = (int(self.tags[323]), int(self.tags[322])), (self.tags[324], self.tags[325])
        else:
            rows = min(int(self.tags.get(278, self.height)), self.height)
            shape, places = (rows, self.width), (self.tags[273], self.tags[279])
        if min(shape) < 1 or shape[0] * shape[1] > 4 * max(self.height * self.width, 1 << 20):
            raise ValueError(f"the TIFF has strips or tiles of {shape[1]} x {shape[0]} pixels")
        return (*shape, *places)

    def _segment(self, stream: IO[bytes], offset: int, size: int, shape: tuple[int, int, int]) -> np.ndarray:
        expected = int(np.prod(shape)) * self.dtype.itemsize
        stream.seek(offset)
        data = stream.read(size)
        if len(data) < size:
            raise ValueError("the TIFF is truncated")
        if self.tags.get(259, PLAIN) in DEFLATE:
            data = zlib.decompressobj().decompress(data, expected)
        if len(data) < expected:
            raise ValueError(f"a strip or tile of the TIFF holds {len(data)} of {expected} bytes")
        array = np.frombuffer(data[:expected], self.dtype).reshape(shape).astype(self.dtype.newbyteorder("="))
        return np.cumsum(array, axis=1, dtype=array.dtype) if self.tags.get(317, 1) == 2 else array


def read_bands(stream: IO[bytes]) -> Bands:
    """The layout of a TIFF, without its pixels. Raises ValueError or LookupError where it is not supported."""
    tags = _tags(stream)
    channels, bits = int(tags.get(277, 1)), _bits(tags)
    scheme, predictor, meaning = tags.get(259, PLAIN), tags.get(317, 1), tags.get(262, 1)
    if scheme != PLAIN and scheme not in DEFLATE:
        raise ValueError(
            f"a multi-band TIFF with {SCHEMES.get(scheme, f'scheme {scheme}')} compression is not read; "
            "save it with deflate, or as .npy"
        )
    if predictor not in (1, 2) or meaning not in (0, 1, 2):
        raise ValueError(f"a multi-band TIFF with predictor {predictor} and colours of kind {meaning} is not read")
    kind = KINDS.get(tags.get(339, (1,))[0], "?")
    if kind == "?" or bits not in (8, 16, 32, 64):
        raise ValueError(f"a multi-band TIFF with {bits} bits of kind {tags.get(339)} is not read")
    dtype = np.dtype(f"{tags[ORDER]}{kind}{bits // 8}")
    extra = tags.get(338, ())
    alpha = channels in (2, 4) and len(extra) == 1 and extra[0] in (1, 2)
    turn = int(tags.get(274, 1))
    turn = turn if 1 <= turn <= 8 else 1
    return Bands(int(tags[257]), int(tags[256]), channels, dtype, alpha, turn, tags)
