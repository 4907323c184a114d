"""Pictures of a run, because people look: PNG files in its `pictures/`, drawn at the end from at most 16 pictures.

views.png         pictures and what the method makes of them: the positive pairs as the network sees them
neighbours.png    nearest neighbours of 16 pictures among 256, by random weights and by the trained ones
mined.png         for methods that mine pairs before training (`mined`): some of them, side by side
segments.png      for methods that divide pictures into groups (`segments`): which group wins where
NAME.png          what a method itself shows (`Method.pictures`): clips, clouds, masks and reconstructions
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from eyespot.data.batches import BatchData
from eyespot.data.loader import Data
from eyespot.draws import Draws, epoch_permutation
from eyespot.evaluate.models import random_twin
from eyespot.evaluate.neighbours import neighbours_picture
from eyespot.methods.method import Method
from eyespot.nets.backbones import Backbone, evaluating
from eyespot.runs import replacing
from eyespot.train.fit import plans_of
from eyespot.train.step import on_device
from eyespot.views.image import clean

SHOWN, SEARCHED = 16, 256
MOST_VIEWS = 8
SIDE, GAP, HEAD = 96, 4, 20
PAPER, INK = 255, (40, 40, 40)
SHADE = 0.55
"""How much a group's colour covers the picture."""


def draw_pictures(method: Method, data: BatchData, folder: Path, image_size: int, seed: int) -> list[Path]:
    """Draw what there is to draw; the method is left in the mode it was in.

    Args:
        method: trained; where it is.
        data: the training samples.
        folder: of the run.
        seed: of the run: the views are those of its first epoch.

    Returns:
        The files written.
    """
    out = folder / "pictures"
    out.mkdir(exist_ok=True)
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    rows = np.sort(epoch_permutation(seed, 0, len(data), "pictures")[:SHOWN])
    batch = data.batch(rows, plans=plans_of(method, data, rows, Draws(seed, index=rows)))
    files = _of_method(method, batch, out, seed, device)
    return (
        [*files, *_of_images(method, data, batch, out, image_size, seed, device)] if isinstance(data, Data) else files
    )


def _of_method(method: Method, batch: dict[str, Any], out: Path, seed: int, device: torch.device) -> list[Path]:
    """What the method itself shows."""
    draws = Draws(seed, 0, 0, batch["key"], device)
    with torch.no_grad(), evaluating(method):
        shown = method.pictures(on_device(dict(batch), device), draws)
    files = []
    for name, columns in shown.items():
        values = [value.detach().float().cpu() for value in columns.values()]
        files.append(save(grid(list(columns), values), out / f"{name}.png"))
    return files


def _of_images(
    method: Method, data: Data, batch: dict[str, Any], out: Path, image_size: int, seed: int, device: torch.device
) -> list[Path]:
    """What there is to see of methods that learn from pictures."""
    host: Any = getattr(method, "host", method)
    pictures = clean(batch["image"], image_size)
    files = []
    seen = list(views_of(method, batch, seed, device))
    if seen:
        columns = [("picture", pictures), *seen[:MOST_VIEWS]]
        files.append(save(grid([name for name, _ in columns], [values for _, values in columns]), out / "views.png"))
    if callable(getattr(host, "mined", None)) and (mined := host.mined(data, SHOWN)):
        files.append(save(grid(list(mined), list(mined.values())), out / "mined.png"))
    if callable(getattr(host, "segments", None)):
        files.append(save(segments_picture(host, pictures), out / "segments.png"))
    net = host.backbone
    if isinstance(net, Backbone) and len(data) > 1 and (before := random_twin(net, seed)) is not None:
        file = out / "neighbours.png"
        neighbours_picture(
            before,
            net,
            data,
            file,
            queries=SHOWN,
            most=SEARCHED,
            image_size=image_size,
            device=device,
            seed=seed,
        )
        files.append(file)
    return files


def save(image: Image.Image, path: Path) -> Path:
    with replacing(path) as part:
        image.save(part, format="PNG", compress_level=1)
    return path


# --- views ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def views_of(method: Method, batch: Mapping[str, Any], seed: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Names and pixels [B, C, h, w] of the views that a method makes of a batch in the first epoch."""
    draws = Draws(seed, 0, 0, batch["key"], device)
    views = method.views(on_device(dict(batch), device), draws)
    channels = batch["image"][0].shape[0]
    for name, value in _tensors("", views):
        if value.dim() == 4 and value.shape[:2] == (len(batch["image"]), channels) and value.is_floating_point():
            yield name, value.float().cpu()


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(f"{name} {key}".strip(), inner)
    elif isinstance(value, list | tuple):
        for k, inner in enumerate(value):
            yield from _tensors(f"{name} {k + 1}".strip(), inner)


# --- groups ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def segments_picture(method: Any, pictures: Tensor) -> Image.Image:
    """Pictures [B, C, S, S], the groups that win each cell in colours, and both on each other."""
    weight = next(method.parameters())
    with evaluating(method):
        found = method.segments(pictures.to(weight.device, weight.dtype)).cpu()
    colours = torch.tensor([_colour(k) for k in range(int(method.groups))])
    painted = colours[found].permute(0, 3, 1, 2)
    painted = F.interpolate(painted, pictures.shape[-2:], mode="nearest")
    plain = _colourful(pictures).float()
    used = int(found.unique().numel())
    heads = ["picture", f"{used} of {method.groups}", "both"]
    return grid(heads, [plain, painted, torch.lerp(plain.mean(1, keepdim=True).expand_as(plain), painted, SHADE)])


def _colour(k: int) -> tuple[float, float, float]:
    """Colours that differ for small numbers: hues by the golden ratio, three strengths and two brightnesses."""
    return colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.9, 0.6, 0.35)[k // 8 % 3], (1.0, 0.7)[k // 24 % 2])


# --- drawing --------------------------------------------------------------------------------------------------
def grid(heads: Sequence[str], columns: Sequence[Tensor]) -> Image.Image:
    """Pictures in two halves side by side, one row each, under the names of the columns [B, C, h, w] in [0, 1]."""
    count = len(columns[0])
    rows = -(-count // 2)
    wide = len(columns) * (SIDE + GAP) + 3 * GAP
    image = Image.new("RGB", (2 * wide, HEAD + rows * (SIDE + GAP)), (PAPER,) * 3)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for half in range(2 if count > rows else 1):
        for c, (head, values) in enumerate(zip(heads, columns, strict=True)):
            x = half * wide + c * (SIDE + GAP) + GAP
            draw.text((x, GAP), head[:14], INK, font=font)
            for r, i in enumerate(range(half * rows, min(count, (half + 1) * rows))):
                image.paste(_tile(values[i]), (x, HEAD + r * (SIDE + GAP)))
    return image


def _tile(pixels: Tensor) -> Image.Image:
    """A picture [C, h, w] as SIDE x SIDE; small ones are shown with their pixels."""
    values = (_colourful(pixels[None])[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    how = Image.Resampling.NEAREST if max(pixels.shape[-2:]) <= SIDE else Image.Resampling.BOX
    return Image.fromarray(values.contiguous().numpy()).resize((SIDE, SIDE), how)


def _colourful(pixels: Tensor) -> Tensor:
    """[B, C, h, w] with three channels: the first three, or the first one three times."""
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
