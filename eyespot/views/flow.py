"""Optical flow between frames: how far each pixel of the first has moved in the second, without any learned part.

    lk           pyramidal Lucas-Kanade at every pixel, in torch: needs nothing more and runs anywhere
    dis          dense inverse search of OpenCV (extra `flow`); the best of the three, and fast
    farneback    polynomial expansion of OpenCV (extra `flow`)

Flow is (u, v) = (right, down) in pixels. Mirroring frames left to right negates u.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eyespot.errors import MissingExtra, unknown

Flow = Literal["lk", "dis", "farneback"]
METHODS = ("lk", "dis", "farneback")
LUMA = (0.299, 0.587, 0.114)
SMALLEST = 12
"""Shorter side of the coarsest picture of the pyramid."""


@torch.no_grad()
def clip_flow(clips: Tensor, method: Flow = "lk", finest: int = 1) -> Tensor:
    """Flow from each frame to the next: float32 [B, T - 1, 2, H, W] of clips [B, T, C, H, W], uint8 or in [0, 1].

    Args:
        method, finest: see `optical_flow`.
    """
    x = clips.float() / (255 if clips.dtype == torch.uint8 else 1)
    if x.shape[2] == 3:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(2, keepdim=True)
    grey = x.mean(2)
    a, b = grey[:, :-1].flatten(0, 1), grey[:, 1:].flatten(0, 1)
    return optical_flow(a, b, method, finest).unflatten(0, (len(clips), -1))


@torch.no_grad()
def optical_flow(a: Tensor, b: Tensor, method: Flow = "lk", finest: int = 1) -> Tensor:
    """Flow from a to b: float32 [N, 2, H, W] of grey pictures [N, H, W] in [0, 1].

    Args:
        method: see the head of this file.
        finest: for lk, see `lucas_kanade`.

    Raises:
        UserError: unknown method. MissingExtra: OpenCV is not installed.
    """
    if method not in METHODS:
        raise unknown("optical flow", method, METHODS)
    if method == "lk":
        return lucas_kanade(a, b, finest=finest)
    find = _opencv(method)
    pairs = zip(*((x.clamp(0, 1) * 255).round().byte().cpu().numpy() for x in (a, b)), strict=True)
    found = [find(np.ascontiguousarray(first), np.ascontiguousarray(second)) for first, second in pairs]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float().to(a.device)


def _opencv(method: str) -> Any:
    """A function of two uint8 pictures [H, W] that gives flow [H, W, 2]."""
    try:
        cv2: Any = importlib.import_module("cv2")  # its stubs differ from release to release
    except ModuleNotFoundError as error:
        raise MissingExtra("cv2", "flow", f"The optical flow '{method}'") from error
    if method == "dis":
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return lambda a, b: dis.calc(a, b, None)
    return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


# --- Lucas-Kanade -----------------------------------------------------------------------------------------------------
def lucas_kanade(
    a: Tensor, b: Tensor, *, steps: int = 2, radius: int = 3, damping: float = 1e-3, finest: int = 1
) -> Tensor:
    """Dense flow from a to b by least squares over a window, from coarse to fine (Lucas and Kanade 1981).

    Args:
        a, b: float [N, H, W] in [0, 1].
        steps: refinements at each scale; one moves a pixel by at most one pixel of that scale.
        radius: of the window, whose side is 2 r + 1 pixels.
        finest: the finest scale that is refined, 1 for all pixels, 2 for half of them a side.
        damping: added to the squared gradients, of a picture in [0, 1]: plain ground keeps the flow of coarser scales.

    Returns:
        [N, 2, H, W], (u, v) in pixels.
    """
    whole = a.shape[-2:]
    if finest > 1:
        a, b = (F.avg_pool2d(x[:, None], finest)[:, 0] for x in (a, b))
    first, second = [a[:, None]], [b[:, None]]
    while min(first[-1].shape[-2:]) >= 2 * SMALLEST:
        first.append(F.avg_pool2d(first[-1], 2))
        second.append(F.avg_pool2d(second[-1], 2))
    flow = a.new_zeros(len(a), 2, *first[-1].shape[-2:])
    for x, y in zip(reversed(first), reversed(second), strict=True):
        flow = _refine(x, y, _scaled(flow, x.shape[-2:]), steps, radius, damping)
    return _scaled(flow, whole)


def _scaled(flow: Tensor, size: Sequence[int]) -> Tensor:
    """Flow [N, 2, h, w] for pictures of another size (H, W)."""
    if flow.shape[-2:] == tuple(size):
        return flow
    scale = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]])[:, None, None]
    return F.interpolate(flow, list(size), mode="bilinear", align_corners=False) * scale


def _refine(x: Tensor, y: Tensor, flow: Tensor, steps: int, radius: int, damping: float) -> Tensor:
    """Gauss-Newton steps at one scale; gradients are those of x, so their products are summed once."""
    dx, dy = _gradient(x)
    xx, xy, yy = _window(torch.cat([dx * dx, dx * dy, dy * dy], 1), radius).split(1, 1)
    xx, yy = xx + damping, yy + damping
    inverse = (xx * yy - xy * xy).reciprocal()
    for _ in range(steps):
        change = (warp(y, flow) - x) * _inside(flow)
        px, py = _window(torch.cat([dx * change, dy * change], 1), radius).split(1, 1)
        step = torch.cat([xy * py - yy * px, xy * px - xx * py], 1) * inverse
        flow = flow + step.clamp(-1, 1)
    return _window(flow, 1)


def _inside(flow: Tensor) -> Tensor:
    """Which pixels the flow keeps in the picture, [N, 1, H, W]: those that left it say nothing."""
    height, width = flow.shape[-2:]
    u = torch.arange(width, device=flow.device) + flow[:, :1]
    v = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]
    return ((u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)).to(flow.dtype)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences, right and down, of [N, 1, H, W]."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return right, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _window(x: Tensor, radius: int) -> Tensor:
    """Means over windows of side 2 r + 1; at the border over what is there."""
    side = 2 * radius + 1
    across = F.avg_pool2d(x, (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(across, (side, 1), 1, (radius, 0), count_include_pad=False)


def warp(y: Tensor, flow: Tensor) -> Tensor:
    """y [N, C, H, W] read at each place moved by the flow [N, 2, H, W]; what lies outside repeats the border."""
    height, width = y.shape[-2:]
    rows = torch.arange(height, device=y.device, dtype=y.dtype)[:, None]
    columns = torch.arange(width, device=y.device, dtype=y.dtype)
    grid = torch.stack([(columns + flow[:, 0] + 0.5) / width, (rows + flow[:, 1] + 0.5) / height], -1) * 2 - 1
    return F.grid_sample(y, grid, mode="bilinear", padding_mode="border", align_corners=False)
