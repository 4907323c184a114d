"""Frames out of an encoded clip, by PyAV (the `video` extra): only the frames that are asked for are kept.

    about(clip)                                  # frames, frames a second, size: from the header, nothing is decoded
    read_windows(clip, [(40, 8, 2), (96, 8, 2)]) # uint8 [2, 8, C, H, W]

Frames are numbered by their time: frame n is what is shown at n / fps. To reach one, the decoder goes to the last key
frame before it and drops what lies between; windows near each other are decoded in one go. A window that runs over the
end goes on at the beginning. Clips that a phone has turned are turned upright.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.data.decode import BadFile, reason_of
from eyespot.data.picture import MAX_PIXELS
from eyespot.errors import MissingExtra, UserError

Window = tuple[int, int, int]
"""(first frame, number of frames, step between them)."""
FORMATS = {1: "gray", 3: "rgb24"}
APART = 48
"""Frames between two wanted ones from which on seeking is cheaper than decoding what lies between."""
SHORTFALL = 3
"""Frames that a clip may end before its header says; they are filled with its last one."""
LONGEST = 1 << 31
"""No clip has as many frames; a header that says so is wrong."""


@dataclass(frozen=True)
class Clip:
    """What the header of a clip says."""

    frames: int
    fps: float
    width: int
    height: int


def about(clip: bytes | str | Path, name: str = "") -> Clip:
    """Length, rate and size of a clip; nothing is decoded.

    Raises:
        BadFile: it is missing, damaged or empty, or has no moving picture.
        MissingExtra: PyAV is not installed.
    """
    with _opened(clip, name) as (container, stream):
        return _about(container, stream)


def read_windows(
    clip: bytes | str | Path,
    windows: Sequence[Window] | None,
    *,
    name: str = "",
    channels: int = 3,
    short_side: int | None = None,
    frames: int = 16,
) -> Tensor:
    """The frames of some windows of a clip.

    Args:
        clip: the encoded bytes, or the path of a file.
        windows: of one length; what lies beyond the end goes on at the beginning. None: `frames` evenly spaced frames
            of the whole clip, each from the middle of its share.
        name: what the clip is called in errors; the path if empty.
        channels: 3, or 1 for grey.
        short_side: frames are shrunk to this shorter side as they are decoded, never enlarged.

    Returns:
        uint8 [T, C, H, W] of one window, [W, T, C, H, W] of several.

    Raises:
        BadFile: as in `about`, or the clip ends long before its header says.
    """
    if channels not in FORMATS:
        raise UserError(f"A clip has 3 channels, or 1 of grey, not {channels}; leave the number out.")
    with _opened(clip, name) as (container, stream):
        info = _about(container, stream)
        chosen = evenly(info.frames, frames) if windows is None else [window_frames(w, info.frames) for w in windows]
        wanted = np.unique(np.concatenate(chosen))
        found = _decode(container, stream, info, wanted, FORMATS[channels], short_side)
    place = np.searchsorted(wanted, np.stack(chosen))
    out = torch.stack(found)[torch.from_numpy(place)]
    return out[0] if len(chosen) == 1 else out


def window_frames(window: Window, length: int) -> np.ndarray:
    """The frame numbers of a window, int64 [T]; a clip that is too short is looped."""
    start, count, step = (int(v) for v in window)
    return (start + step * np.arange(count, dtype=np.int64)) % length


def evenly(length: int, count: int) -> list[np.ndarray]:
    """`count` frames spread over a clip of `length`, as one window; short clips repeat frames."""
    return [np.floor((np.arange(count) + 0.5) * length / count).astype(np.int64).clip(0, length - 1)]


@contextmanager
def _opened(clip: bytes | str | Path, name: str) -> Iterator[tuple[Any, Any]]:
    """Container and picture stream; what PyAV raises inside becomes a BadFile."""
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError as error:
        raise MissingExtra("av", "video", "Reading video") from error
    name = name or (str(clip) if isinstance(clip, str | Path) else "bytes")
    try:
        with av.open(io.BytesIO(clip) if isinstance(clip, bytes) else str(clip)) as container:
            streams = [s for s in container.streams.video if not _is_cover(s)]
            if not streams:
                raise BadFile(name, "holds no moving picture")
            streams[0].thread_type = "NONE"  # the loader's processes share the work already
            yield container, streams[0]
    except (FFmpegError, OSError, ValueError, EOFError, MemoryError) as error:
        raise BadFile(name, _reason(error)) from error


def _reason(error: BaseException) -> str:
    """Why it failed, in PyAV's words, without the number and the file's name."""
    words = getattr(error, "strerror", None)
    return str(words).lower() if words else reason_of(error)


def _is_cover(stream: Any) -> bool:
    """Whether it is the still picture of a sound file."""
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _about(container: Any, stream: Any) -> Clip:
    width, height = stream.codec_context.width, stream.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"frames of {width} x {height} pixels")
    fps = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)
    if not 0 < fps < math.inf:
        raise ValueError("no frame rate")
    length = stream.frames
    if length <= 0 and stream.duration:
        length = round(float(stream.duration * stream.time_base) * fps)
    if length <= 0 and container.duration:
        length = round(container.duration / 1e6 * fps)
    if length <= 0:
        length = sum(1 for packet in container.demux(stream) if packet.size)
        if length:
            container.seek(0)
    if not 0 < length < LONGEST:
        raise ValueError("holds no frames")
    return Clip(int(length), fps, int(width), int(height))


def _decode(
    container: Any, stream: Any, info: Clip, wanted: np.ndarray, kind: str, short_side: int | None
) -> list[Tensor]:
    """The frames with the numbers `wanted`, ascending: uint8 [C, H, W] each. Raises ValueError."""
    found: list[Tensor] = []
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > APART) + 1):
        found += _run(container, stream, info, run, kind, short_side)
    return found


def _run(
    container: Any, stream: Any, info: Clip, wanted: np.ndarray, kind: str, short_side: int | None
) -> list[Tensor]:
    """Frames that lie near each other, decoded in one go."""
    _seek(container, stream, info, int(wanted[0]))
    found: list[Tensor] = []
    shown, number = None, int(wanted[0]) if wanted[0] > APART else 0
    for frame in container.decode(stream):
        number = _number(frame, stream, info, number)
        # a frame is shown until the next one: what was wanted before this one is the one before
        while len(found) < len(wanted) and wanted[len(found)] < number:
            found.append(_pixels(shown if shown is not None else frame, kind, short_side))
        if len(found) == len(wanted):
            return found
        shown, number = frame, number + 1
    if shown is None:
        raise ValueError("no frame can be decoded")
    while len(found) < len(wanted):
        if wanted[len(found)] > number - 1 + SHORTFALL:
            raise ValueError(f"ends at frame {number} of {info.frames}: it is cut off")
        found.append(_pixels(shown, kind, short_side))
    return found


def _seek(container: Any, stream: Any, info: Clip, number: int) -> None:
    """To the last key frame at or before a frame; always, as the decoder may stand anywhere."""
    start = stream.start_time or 0
    if number == 0 and container.format.name in ("h264", "hevc", "mpegvideo", "m4v"):
        return  # a bare stream has no times and cannot seek; it is opened anew for every read
    try:
        container.seek(start + int(number / info.fps / stream.time_base), stream=stream, backward=True)
    except OSError as error:  # PyAV says that it is not permitted
        raise ValueError("cannot be sought in; perhaps it is cut off") from error


def _number(frame: Any, stream: Any, info: Clip, following: int) -> int:
    """Which frame this is: by its time, else the one after the last."""
    if frame.pts is None:
        return following
    return round(float((frame.pts - (stream.start_time or 0)) * stream.time_base) * info.fps)


def _pixels(frame: Any, kind: str, short_side: int | None) -> Tensor:
    """uint8 [C, H, W]."""
    width, height = frame.width, frame.height
    if short_side is not None and min(width, height) > short_side:
        scale = short_side / min(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    array = frame.to_ndarray(format=kind, width=width, height=height, interpolation="AREA")
    array = upright(array, int(getattr(frame, "rotation", 0)))
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def upright(array: np.ndarray, degrees: int) -> np.ndarray:
    """A frame [H, W] or [H, W, C] turned counter-clockwise by the quarter turns that its file asks for."""
    return np.rot90(array, round(degrees / 90) % 4)
