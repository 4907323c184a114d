"""One still picture of any kind, opened but not yet decoded: what its header says, and how to get its pixels.

`open_picture` reads headers only, so that a picture too large to decode is refused before a pixel is made.
"""

from __future__ import annotations

import functools
import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from PIL import Image

from eyespot.data.native import native_jpeg
from eyespot.data.tiff import has_hidden_bands, read_bands

MAX_PIXELS = 1 << 27
"""Largest height x width that is decoded: 134 million pixels. Compressed files can claim any size."""
MAX_CHANNELS = 4096

# Read by content, looked for by name. Formats that start other programs (EPS) or are no still picture are left out.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | {".npy"}
"""Names that are taken for pictures in a folder, in lower case."""

READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # pillow: broken PNG
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    NotImplementedError,
    AttributeError,  # pillow: damaged tags
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    tokenize.TokenError,  # numpy: a damaged header
    Image.DecompressionBombError,
)
"""What decoders raise on damaged files."""


@dataclass
class Picture:
    """What a header says. `pixels(short_side)` decodes to upright [H, W, channels]: uint8, or float32 in [0, 1] for
    more than 8 bits. `short_side` is a hint to decoders that shrink cheaply; they stay at or above it."""

    height: int
    """Height and width are those of the upright picture."""
    width: int
    channels: int
    pixels: Callable[[int | None], np.ndarray]
    alpha: bool = False
    """Whether the last channel is opacity."""
    deep: bool = False
    """Whether a value has more than 8 bits."""
    bands: bool = False
    """Whether the channels are measurements rather than grey or colour."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without pillow's warnings about damaged files: these are recorded as bad files. Main thread only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\..*")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def unit(array: np.ndarray) -> np.ndarray:
    """Stored values as uint8, or as float32 in [0, 1]: 16 bits are divided by 65535, floats must be there already."""
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    if kind == "u" and array.dtype.itemsize == 2:
        return array.astype(np.float32) / np.float32(65535)
    if kind != "f":
        raise ValueError(f"values of type {array.dtype} have no known range; store uint8, uint16 or floats in [0, 1]")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("holds values that are not finite")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"floats must be in [0, 1], found {low:.4g} to {high:.4g}")
    return array.astype(np.float32).clip(0, 1)


def refuse_too_large(height: int, width: int, channels: int = 1, max_pixels: int = MAX_PIXELS) -> None:
    if height < 1 or width < 1 or channels < 1:
        raise ValueError(f"has no pixels ({height} x {width} x {channels})")
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than the {max_pixels} that are decoded")
    if channels > MAX_CHANNELS:
        raise ValueError(f"{channels} channels are more than the {MAX_CHANNELS} that are decoded")


def open_picture(stream: IO[bytes], max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a stream of bytes that can seek, recognised by content. Raises one of `READ_ERRORS`."""
    head = stream.read(26)
    stream.seek(0)
    if not head:
        raise ValueError("the file is empty")
    if head.startswith(b"\x93NUMPY"):
        return _open_array(stream, max_pixels)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0") and has_hidden_bands(stream):
        return _open_bands(stream, max_pixels)
    if head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16 and head[25] in (2, 6):
        return _deep_png(stream, max_pixels)
    if head.startswith(b"\xff\xd8"):
        frame = _plain_jpeg(stream)
        stream.seek(0)
        if frame is not None:
            return _open_jpeg(stream, frame, max_pixels)
    return _open_pillow(stream, max_pixels)


def _plain_jpeg(stream: IO[bytes]) -> tuple[int, int, int] | None:
    """Height, width and channels of a grey or YCbCr JPEG of 8 bits without EXIF data; None for any other."""
    stream.seek(2)
    for _ in range(64):
        mark = stream.read(4)
        if len(mark) < 4 or mark[0] != 0xFF:
            return None
        kind, length = mark[1], int.from_bytes(mark[2:], "big")
        if kind in (0xC0, 0xC1, 0xC2):  # the frame: baseline, extended or progressive
            frame = stream.read(6)
            if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return None
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            return (*size, frame[5]) if min(size) > 0 else None
        tables = kind in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= kind <= 0xEF
        if not tables or kind in (0xE1, 0xEE):  # EXIF data, Adobe's colour transform
            return None
        stream.seek(length - 2, 1)
    return None


def _open_jpeg(stream: IO[bytes], frame: tuple[int, int, int], max_pixels: int) -> Picture:
    height, width, channels = frame
    refuse_too_large(height, width, channels, max_pixels)

    def pixels(short_side: int | None) -> np.ndarray:
        shrinks = short_side is not None and short_side < min(height, width)
        array = None if shrinks else native_jpeg(stream)
        if array is not None:
            return array
        stream.seek(0)  # pillow shrinks while it decodes, and says what is wrong with a damaged file
        return _open_pillow(stream, max_pixels).pixels(short_side)

    return Picture(height, width, channels, pixels)


def _open_array(stream: IO[bytes], max_pixels: int) -> Picture:
    """A numpy file: [H, W] or [H, W, C], of uint8, uint16, bool or floats in [0, 1]."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("holds Python objects; store plain numbers")
    if len(shape) not in (2, 3):
        raise ValueError(f"an array of shape {tuple(shape)} is no picture; store (height, width, channels)")
    height, width, channels = (*shape, 1)[:3]
    refuse_too_large(height, width, channels, max_pixels)

    def pixels(short_side: int | None) -> np.ndarray:
        expected = height * width * channels * dtype.itemsize
        data = stream.read(expected)
        if len(data) < expected:
            raise ValueError(f"the array is truncated: {len(data)} of {expected} bytes")
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return unit(array.reshape(height, width, channels))

    return Picture(height, width, channels, pixels, deep=dtype.itemsize > 1, bands=True)


def upright(array: np.ndarray, turn: int) -> np.ndarray:
    """[H, W, C] by EXIF orientation: 2-4 mirror or turn by 180 degrees, 5-8 exchange the axes too."""
    if turn >= 5:
        array = array.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _open_bands(stream: IO[bytes], max_pixels: int) -> Picture:
    """A TIFF with more bands or bits than pillow gives."""
    bands = read_bands(stream)
    refuse_too_large(bands.height, bands.width, bands.channels, max_pixels)
    seen = (bands.height, bands.width) if bands.turn < 5 else (bands.width, bands.height)
    return Picture(
        *seen,
        bands.channels,
        lambda short_side: upright(unit(bands.pixels(stream)), bands.turn),
        alpha=bands.alpha,
        deep=bands.dtype.itemsize > 1,
        bands=not bands.alpha and bands.channels != 3,
    )


def _turn(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; damaged EXIF data does not make a picture bad."""
    try:
        value = image.getexif().get(274, 1)
    except READ_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _early_turn(image: Image.Image) -> int:
    """The same before the pixels are decoded: pillow turns TIFF files itself, and decodes PNG files to look further."""
    known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    return _turn(image) if known else 1


def _target_mode(image: Image.Image) -> str:
    """The mode among L, LA, RGB, RGBA, I, I;16 and F that keeps what the picture holds."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return mode
    clear = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if mode in ("1", "L", "LA", "La"):
        return "LA" if clear else "L"
    return "RGBA" if clear else "RGB"


def _planes(image: Image.Image, target: str) -> np.ndarray:
    """A loaded pillow image as upright [H, W, C], uint8 or float32."""
    turn = _turn(image)
    array = np.asarray(image if target == image.mode else image.convert(target))
    if array.dtype == np.int32:
        if array.size and (array.min() < 0 or array.max() > 65535):
            raise ValueError("32-bit integers have no known range; store 16 bits or floats in [0, 1]")
        array = array.astype(np.uint16)
    return upright(unit(array if array.ndim == 3 else array[:, :, None]), turn)


@functools.cache
def _readable() -> tuple[str, ...]:
    """The formats that this pillow has: it loads its plug-ins when told, and may be built without some."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_pillow(stream: IO[bytes], max_pixels: int) -> Picture:
    return _of_pillow(Image.open(stream, formats=_readable()), max_pixels)


def _of_pillow(image: Image.Image, max_pixels: int) -> Picture:
    width, height = image.size
    refuse_too_large(height, width, 1, max_pixels)
    target = _target_mode(image)

    def pixels(short_side: int | None) -> np.ndarray:
        if short_side is not None and image.format in ("JPEG", "MPO"):
            share = short_side / min(width, height)
            if share < 1:
                image.draft(image.mode, (int(width * share) + 1, int(height * share) + 1))
        image.load()  # the first picture of an animation
        return _planes(image, target)

    seen = (height, width) if _early_turn(image) < 5 else (width, height)
    return Picture(
        *seen,
        {"LA": 2, "RGB": 3, "RGBA": 4}.get(target, 1),
        pixels,
        alpha=target in ("LA", "RGBA"),
        deep=target.startswith("I") or target == "F",
    )


def _deep_png(stream: IO[bytes], max_pixels: int) -> Picture:
    """A PNG of 16-bit colour, of which pillow gives the high byte of every value, and the low byte when asked for
    values stored the other way round."""
    picture = _open_pillow(stream, max_pixels)

    def pixels(short_side: int | None) -> np.ndarray:
        high = picture.pixels(None)
        stream.seek(0)
        image: Any = Image.open(stream, formats=("PNG",))
        tile, args = image.tile[0], f"{image.mode};16L"
        image.tile = [tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)]
        image.load()
        low = upright(np.asarray(image), _turn(image))
        return unit(high.astype(np.uint16) * np.uint16(256) + low)

    return replace(picture, pixels=pixels, deep=True)


def from_pillow(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Picture:
    """A pillow image that a data set gave, open or in memory. Raises one of `READ_ERRORS`."""
    return _of_pillow(image, max_pixels)
