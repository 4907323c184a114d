"""Crop, antialiased resize and mirror in one step, for a batch or for pictures of any sizes; rotation.

Two paths give what `torchvision.transforms.v2.functional.resized_crop(antialias=True)` gives:

* matrices: resizing is separable and linear, so a crop, its antialiased resize and its mirror are one matrix an axis
  and picture, and a batch is two batched products. Fastest for small pictures, and the batched path on a GPU, where
  the crops of a ragged batch are packed into a bounded canvas first. Results are not rounded to grey levels.
* native: one antialiased `interpolate` a picture, in uint8 on the CPU, by a few threads. Fastest for larger pictures.

Which path a picture takes depends on its own size, never on its batch, so a view is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Images = Tensor | Sequence[Tensor]

CACHE = 1 << 18
"""Numbers that a piece of work on the CPU touches at once: about 1 MB of float32 stays in the second-level cache."""
CANVAS = 1 << 26
"""Numbers of one packed canvas on a GPU: 256 MB of float32."""
MATRIX_WORK = 2 * 64**3
"""Products per channel up to which matrices beat the native resize on a CPU: 64 x 64 to 64 x 64."""
LARGEST_CROP = 1 << 20
"""Pixels of a crop beyond which it is resized alone on a GPU too, so that the canvas stays bounded."""


def piece(per_row: int, device: torch.device) -> int:
    """How many rows of `per_row` numbers to work on at once."""
    most = CACHE * torch.get_num_threads() if device.type == "cpu" else CANVAS
    return max(1, most // max(per_row, 1))


def kernel(distance: Tensor, interpolation: str) -> Tensor:
    """The antialiasing filter in place: triangle, or Keys' cubic with a = -0.5, over distances >= 0."""
    if interpolation == "bilinear":
        return distance.neg_().add_(1.0).clamp_(min=0.0)
    x = distance
    near = ((1.5 * x - 2.5) * x) * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def axis_weights(start: Tensor, length: Tensor, mirror: Tensor, n: int, size: int, interpolation: str) -> Tensor:
    """One matrix a picture that crops, resizes and mirrors along an axis.

    Args:
        start, length: [B] the crop along this axis, in pixels, of a floating type.
        mirror: bool [B].
        n, size: pixels of the source and of the view along this axis.
        interpolation: "bilinear" or "bicubic", both antialiased: the filter widens when the picture shrinks.

    Returns:
        [B, size, n], rows sum to 1, zero outside the crop.
    """
    scale = (length / size)[:, None]
    out = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    centre = scale * torch.where(mirror[:, None], size - out, out)
    at = torch.arange(n, device=start.device, dtype=start.dtype) - start[:, None]
    inside = ((at >= 0) & (at < length[:, None])).to(start.dtype)
    distance = ((at + 0.5)[:, None, :] - centre[:, :, None]).abs_().mul_(scale.clamp_min(1.0).reciprocal()[..., None])
    weights = kernel(distance, interpolation).mul_(inside[:, None, :])
    return weights.div_(weights.sum(-1, keepdim=True))


def by_matrices(
    images: Tensor, boxes: Tensor, flip: Tensor, vflip: Tensor, size: int, interpolation: str, dtype: torch.dtype
) -> Tensor:
    """Views of pictures of one size by two batched products.

    Args:
        images: uint8 or floating [B, C, H, W].
        boxes: [B, 4] (top, left, height, width), on the same device.
        flip, vflip: bool [B].
        size: side S of the views.
        dtype: floating type of the result.

    Returns:
        [B, C, S, S] in [0, 1], not rounded.
    """
    batch, channels, height, width = images.shape
    out = torch.empty(batch, channels, size, size, dtype=dtype, device=images.device)
    top, left, tall, wide = boxes.to(dtype).unbind(1)
    step = piece(max(channels * height * width, size * (height + width)), images.device)
    for a in range(0, batch, step):
        rows = slice(a, min(a + step, batch))
        x = images[rows].to(dtype).reshape(-1, channels * height, width)
        across = axis_weights(left[rows], wide[rows], flip[rows], width, size, interpolation)
        down = axis_weights(top[rows], tall[rows], vflip[rows], height, size, interpolation)
        if not images.is_floating_point():
            down.mul_(1 / 255)
        x = torch.bmm(x, across.transpose(1, 2)).view(-1, channels, height, size)
        torch.matmul(down[:, None], x, out=out[rows])
    return out.clamp_(0, 1) if interpolation == "bicubic" else out


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Antialiased resize of [..., C, H, W]; uint8 stays uint8 on the CPU, else floating in [0, 1]."""
    x = image if image.dim() == 4 else image[None]
    if tuple(x.shape[-2:]) != size:
        if x.device.type != "cpu":
            x = to_unit(x)
        x = F.interpolate(x, size=size, mode=interpolation, antialias=True, align_corners=False)
        if interpolation == "bicubic" and x.is_floating_point():
            x = x.clamp(0, 1)
    return x if image.dim() == 4 else x[0]


def nearest(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, H, W] of any type at another size; a pixel takes the value at its middle."""

    def middles(have: int, want: int) -> Tensor:
        return ((torch.arange(want, device=image.device) + 0.5) * (have / want)).long()

    rows, columns = (middles(*sides) for sides in zip(image.shape[-2:], size, strict=True))
    return image[:, rows[:, None], columns]


def to_unit(x: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; float64 stays, other floating types become float32."""
    if x.dtype == torch.uint8:
        return x.to(torch.float32).mul_(1 / 255)
    return x if x.dtype == torch.float64 else x.float()


def native(
    images: Images,
    boxes: np.ndarray,
    flip: np.ndarray,
    vflip: np.ndarray,
    size: int,
    interpolation: str,
    device: torch.device,
) -> Tensor:
    """Views of pictures of any sizes, one resize a picture: [B, C, S, S], uint8 where the pictures are and stay so."""

    def one(i: int) -> Tensor:
        top, left, height, width = boxes[i].tolist()
        crop = images[i][:, top : top + height, left : left + width].to(device, non_blocking=True)
        view = resize(crop, (size, size), interpolation)
        sides = [side for side, mirrored in ((-2, vflip[i]), (-1, flip[i])) if mirrored]
        return view.flip(sides) if sides else view

    parts = each(one, len(boxes), threads=images[0].dtype == torch.uint8 and device.type == "cpu")
    if any(part.dtype != parts[0].dtype for part in parts):
        parts = [to_unit(part) for part in parts]
    return torch.stack(parts)


def each(one: Callable[[int], Tensor], count: int, threads: bool) -> list[Tensor]:
    """`one(i)` for every i, by threads where the work inside is single-threaded and leaves Python alone."""
    workers = min(torch.get_num_threads(), count // 4) if threads else 1
    if workers <= 1:
        return [one(i) for i in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, range(count)))


def pack(images: Images, boxes: np.ndarray, device: torch.device) -> Tensor:
    """The crops of ragged pictures in the top left corners of one canvas [B, C, H, W], zero elsewhere."""
    tall, wide = boxes[:, 2:].max(0).tolist()
    shape = (len(boxes), images[0].shape[0], tall, wide)
    canvas = torch.zeros(shape, dtype=images[0].dtype, device=images[0].device)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        canvas[i, :, :height, :width] = images[i][:, top : top + height, left : left + width]
    return canvas.to(device, non_blocking=True)


def by_canvas(
    images: Sequence[Tensor],
    boxes: np.ndarray,
    flip: np.ndarray,
    vflip: np.ndarray,
    size: int,
    interpolation: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Views of pictures of any sizes by `by_matrices` over packed crops, crops of like size together."""
    order = np.argsort(boxes[:, 2] * boxes[:, 3], kind="stable")
    step = piece(images[0].shape[0] * int(boxes[:, 2].max()) * int(boxes[:, 3].max()), device)
    out = torch.empty(len(boxes), images[0].shape[0], size, size, dtype=dtype, device=device)
    for a in range(0, len(order), step):
        rows = order[a : a + step]
        canvas = pack([images[i] for i in rows.tolist()], boxes[rows], device)
        local = torch.from_numpy(boxes[rows] * np.array([0, 0, 1, 1])).to(device)
        mirror = torch.from_numpy(np.stack([flip[rows], vflip[rows]])).to(device)
        part = by_matrices(canvas, local, mirror[0], mirror[1], size, interpolation, dtype)
        out[torch.from_numpy(rows).to(device)] = part
    return out


def resized_crops(
    images: Images,
    boxes: np.ndarray,
    flip: np.ndarray,
    vflip: np.ndarray,
    size: int,
    interpolation: str = "bilinear",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Crop, antialiased resize to size x size and mirror of every picture.

    Args:
        images: uint8 or floating [B, C, H, W], or a list of B pictures [C, H, W].
        boxes: int64 [B, 4] (top, left, height, width).
        flip, vflip: bool [B], mirrored left-right, up-down.
        device: where the views are made.

    Returns:
        [B, C, S, S]: uint8 when all pictures were resized natively in uint8, else floating in [0, 1].
    """
    device = torch.device(device)
    dtype = torch.float64 if images[0].dtype == torch.float64 else torch.float32
    small = _small(images, boxes, size, device)
    if small.all() and isinstance(images, Tensor):
        mirror = torch.from_numpy(np.stack([flip, vflip])).to(device)
        where = torch.from_numpy(boxes).to(device)
        return by_matrices(images.to(device), where, mirror[0], mirror[1], size, interpolation, dtype)
    if not small.any():
        return native(images, boxes, flip, vflip, size, interpolation, device)
    out = torch.empty(len(boxes), images[0].shape[0], size, size, dtype=dtype, device=device)
    for chosen, canvas in ((small, True), (~small, False)):
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        pictures = [images[i] for i in rows.tolist()]
        geometry = (boxes[rows], flip[rows], vflip[rows], size, interpolation)
        part = by_canvas(pictures, *geometry, device, dtype) if canvas else native(pictures, *geometry, device)
        out[torch.from_numpy(rows).to(device)] = to_unit(part).to(dtype)
    return out


def _small(images: Images, boxes: np.ndarray, size: int, device: torch.device) -> np.ndarray:
    """Which pictures the matrices take, bool [B]."""
    if device.type != "cpu":
        return boxes[:, 2] * boxes[:, 3] <= LARGEST_CROP
    if isinstance(images, Tensor):
        height, width = images.shape[-2:]
        return np.full(len(boxes), height * size * (width + size) <= MATRIX_WORK)
    sides = np.array([image.shape[-2:] for image in images])
    return sides[:, 0] * size * (sides[:, 1] + size) <= MATRIX_WORK


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Pictures turned counter-clockwise about their centres, bilinear, zero outside, as torchvision's `rotate`.

    Args:
        x: [B, C, S, S] floating.
        angle: [B] degrees.
    """
    radians = torch.deg2rad(angle.to(x.dtype))
    cos, sin, zero = torch.cos(radians), torch.sin(radians), torch.zeros_like(radians)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    out = torch.empty_like(x)
    step = piece(2 * x[0].numel(), x.device)
    for a in range(0, len(x), step):
        rows = slice(a, a + step)
        grid = F.affine_grid(theta[rows], list(x[rows].shape), align_corners=False)
        out[rows] = F.grid_sample(x[rows], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out
