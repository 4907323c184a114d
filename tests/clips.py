"""Small clips, written by PyAV: a textured square that moves over a textured ground."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CODECS = {"mp4": "mpeg4", "avi": "mpeg4", "mkv": "mpeg4", "mov": "mpeg4", "webm": "libvpx"}


def texture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A random texture without single pixels, float64 in [0, 1]."""
    x = np.random.default_rng(seed).random(shape)
    for axis in (0, 1):
        x = sum(np.roll(x, k, axis) for k in range(-2, 3)) / 5
    return (x - x.min()) / (x.max() - x.min())


def frames(
    steps: int = 24, size: tuple[int, int] = (32, 48), speed: tuple[float, float] = (0.5, 1.0), seed: int = 0
) -> np.ndarray:
    """uint8 [T, H, W, 3]; in each the number of the frame is written into its upper left corner as a brightness."""
    ground = 0.15 + 0.5 * texture((*size, 3), seed)
    side = size[0] // 3
    square = 0.3 + 0.7 * texture((side, side, 3), seed + 1)
    out = np.empty((steps, *size, 3))
    for t in range(steps):
        out[t] = ground
        top, left = (round(2 + t * v) % (n - side) for v, n in zip(speed, size, strict=True))
        out[t, top : top + side, left : left + side] = square
        out[t, :8, :8] = (20 + 8 * (t % 28)) / 255
    return (out * 255).round().astype(np.uint8)


def number(frame: Any) -> int:
    """The number that `frames` wrote into a frame [C, H, W] (or [H, W]), as far as compression left it."""
    corner = np.asarray(frame)[..., 1:6, 1:6].astype(np.float64).mean()
    return round((corner - 20) / 8)


def encode(video: np.ndarray, kind: str = "mp4", fps: int = 12, gop: int = 8, codec: str = "") -> bytes:
    """The bytes of a clip, frames uint8 [T, H, W, 3]; a key frame every `gop` frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"mkv": "matroska"}.get(kind, kind)) as out:
        stream = out.add_stream(codec or CODECS[kind], rate=fps)
        stream.width, stream.height = video.shape[2], video.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, fps)
        for picture in video:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def sound(seconds: float = 0.5) -> bytes:
    """A file with a tone and no picture."""
    import av

    buffer, rate = io.BytesIO(), 8000
    with av.open(buffer, "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        wave = (8000 * np.sin(np.arange(int(seconds * rate)) / 5)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def write_folder(root: Path, classes: tuple[str, ...] = ("fast", "slow"), each: int = 6, **about: Any) -> Path:
    """Class folders of clips; in the first class the square moves, in the others it hardly does."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            speed = (0.5 + 0.1 * i, 1.5) if k == 0 else (0.0, 0.1)
            video = frames(speed=speed, seed=100 * k + i, **about)
            (root / name / f"{i:02d}.mp4").write_bytes(encode(video))
    return root
