"""Bytes or a file to one tensor, with every odd kind of picture handled on purpose.

    kind                          result
    ----------------------------  ---------------------------------------------------------------------------------
    grey, 1 bit                   [1, H, W]
    palette                       colour [3, H, W], with the transparency that it names
    opacity (also in palettes)    composited over white, the page that such pictures are drawn for; channels=4 (grey:
                                  channels=2) keeps opacity as the last channel
    CMYK, YCbCr, HSV              converted to RGB; colour profiles are not applied
    EXIF orientation              turned upright
    animated                      the first picture
    16 bit (grey, colour, TIFF)   float32 in [0, 1]: stored value / 65535 (PNG of grey with opacity: 8 bits)
    floats (.npy, TIFF)           float32; must be in [0, 1]
    .npy                          [H, W] or [H, W, C] of any number of channels
    TIFF of many bands            [C, H, W]
    truncated, damaged, empty     BadFile with the reason: half a picture is no sample
    more than MAX_PIXELS          BadFile before a pixel is decoded

Files are recognised by content; the name decides only whether a folder's file is looked at.
"""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eyespot.data.picture import MAX_PIXELS, READ_ERRORS, Picture, open_picture

LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601)."""


class BadFile(Exception):
    """A sample that cannot be used: `path` says which, `reason` why, in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def reason_of(error: BaseException) -> str:
    """Why a decoder failed, in one line that is the same on every run."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    if not text or "cannot identify image file" in text:
        return "not a picture in a known format" if text else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def decode(
    raw: bytes | str | Path,
    *,
    name: str = "",
    channels: int | None = None,
    plan: dict[str, Any] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """One picture as a tensor.

    Args:
        raw: the encoded bytes, or the path of a file.
        name: what the picture is called in errors; the path if empty.
        channels: convert to this number; None keeps the picture's own (opacity composited over white).
        plan: what to decode, all in pixels of the upright picture: {"region": (top, left, height, width)} cuts, and
            {"short_side": s} shrinks the result antialiased until its shorter side is s (it never enlarges). A region
            that leaves the picture is moved and cut to fit.

    Returns:
        uint8 [C, H, W], or float32 [C, H, W] in [0, 1] where the picture has more than 8 bits.

    Raises:
        BadFile: the picture is missing, damaged, truncated, too large, or has another number of channels.
    """
    name = name or (str(raw) if isinstance(raw, str | Path) else "bytes")
    try:
        with ExitStack() as stack:
            stream = io.BytesIO(raw) if isinstance(raw, bytes) else stack.enter_context(open(raw, "rb"))
            return tensor_of(open_picture(stream, max_pixels), channels, plan)
    except READ_ERRORS as error:
        raise BadFile(name, reason_of(error)) from error


def shape_of(raw: bytes | str | Path, *, name: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int, int, bool]:
    """(channels, height, width, more than 8 bits) as `decode` would give them, from the header alone."""
    try:
        with ExitStack() as stack:
            stream = io.BytesIO(raw) if isinstance(raw, bytes) else stack.enter_context(open(raw, "rb"))
            picture = open_picture(stream, max_pixels)
    except READ_ERRORS as error:
        raise BadFile(name or str(raw)[:80], reason_of(error)) from error
    return picture.channels - picture.alpha, picture.height, picture.width, picture.deep


def tensor_of(picture: Picture, channels: int | None = None, plan: dict[str, Any] | None = None) -> Tensor:
    """The pixels of an opened picture, upright, planned and with the channels asked for. Raises ValueError."""
    plan = plan or {}
    whole = plan.get("region") is None
    array = picture.pixels(plan.get("short_side") if whole else None)
    if not whole:
        array = _cut(array, plan["region"])
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    if not planes.flags.writeable:
        planes = planes.copy()
    return shrink(with_channels(torch.from_numpy(planes), channels, picture), plan.get("short_side"))


def apply_plan(image: Tensor, plan: dict[str, Any] | None) -> Tensor:
    """The same plan on a picture [C, H, W] that is decoded already."""
    plan = plan or {}
    if plan.get("region") is not None:
        image = torch.from_numpy(_cut(image.numpy().transpose(1, 2, 0), plan["region"])).permute(2, 0, 1).contiguous()
    return shrink(image, plan.get("short_side"))


def _cut(array: np.ndarray, region: tuple[int, int, int, int]) -> np.ndarray:
    full_height, full_width = array.shape[:2]
    top, left, height, width = (int(v) for v in region)
    height, width = max(1, min(height, full_height)), max(1, min(width, full_width))
    top, left = max(0, min(top, full_height - height)), max(0, min(left, full_width - width))
    return array[top : top + height, left : left + width]


def shrink(image: Tensor, short_side: int | None) -> Tensor:
    """[C, H, W] with the shorter side at most `short_side`, antialiased, in the same type."""
    height, width = image.shape[-2:]
    if short_side is None or min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else resized.clamp(0, 1)


def with_channels(image: Tensor, channels: int | None, picture: Picture | None = None) -> Tensor:
    """[C, H, W] converted to `channels`: grey and colour into each other, opacity kept or composited over white.

    Raises:
        ValueError: the picture has another number of channels that cannot be converted.
    """
    alpha = picture is not None and picture.alpha
    if alpha and channels == image.shape[0]:
        return image
    if alpha and channels == 4:  # grey with opacity
        return torch.cat([image[:1].expand(3, -1, -1), image[1:]])
    if alpha:
        image = _over_white(image)
    have = image.shape[0]
    if channels is None or channels == have:
        return image
    if have == 1 and channels == 3:
        return image.expand(3, -1, -1).contiguous()
    if have == 3 and channels == 1:
        return _grey(image)
    if channels == 4 and have in (1, 3) and picture is not None and not picture.bands:
        opaque = torch.full_like(image[:1], 255 if image.dtype == torch.uint8 else 1)
        return torch.cat([image.expand(3, -1, -1), opaque])
    raise ValueError(f"has {have} channels where {channels} are asked for")


def _grey(image: Tensor) -> Tensor:
    weights = torch.tensor(LUMA).view(3, 1, 1)
    grey = (image.float() * weights).sum(0, keepdim=True)
    return grey.round().to(torch.uint8) if image.dtype == torch.uint8 else grey.clamp(0, 1)


def _over_white(image: Tensor) -> Tensor:
    """Colour and opacity [C + 1, H, W] to colour [C, H, W]."""
    if image.dtype != torch.uint8:
        return (1 - image[-1:] * (1 - image[:-1])).clamp(0, 1)
    opacity = image[-1:].to(torch.int32)
    return (255 - (opacity * (255 - image[:-1].to(torch.int32)) + 127) // 255).to(torch.uint8)
