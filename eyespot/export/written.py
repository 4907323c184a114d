"""What every format gives back, what it says in its file, and how the copy that was loaded back is compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eyespot.errors import UserError
from eyespot.nets.backbones import Backbone
from eyespot.nets.vit import ViTBackbone
from eyespot.nets.zoo import TorchvisionViT

VERSION = 1
Shape = tuple[int, int, int, int]


@dataclass
class Written:
    """A file or folder that was written and loaded back by the library that reads the format."""

    reader: str
    """Library and version that loaded it."""
    features: Callable[[Tensor], Tensor]
    """Its features [B, D] of pixels [B, C, H, W] in [0, 1]."""
    matched: int
    """Tensors that came back to the bit."""
    tensors: int
    """Tensors of the backbone that the format holds."""
    usage: str
    """Python that loads it and gives `features` of `pixels`."""
    dynamic: Sequence[str] = ()
    """Dimensions of a program that are open: batch, height, width."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Compared:
    """How far the copy is from the backbone."""

    difference: float
    """Largest absolute difference of a feature."""
    largest: float
    """Largest absolute feature."""
    shapes: list[str]


def facts(net: Backbone, format: str, inside: bool, about: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever uses the file must know.

    Args:
        inside: whether the program normalises by itself.
        about: what the caller knows of the run.
    """
    size = net.image_size
    shorter = size if size <= 64 else round(size / 0.875)  # as the evaluation view, eyespot.views.image.clean
    return {
        "version": VERSION,
        "format": format,
        **about,
        "channels": net.channels,
        "image_size": size,
        "pixel_range": [0, 1],
        "mean": [float(v) for v in net.mean.flatten()],
        "std": [float(v) for v in net.std.flatten()],
        "normalisation": "inside: give pixels in [0, 1]" if inside else "before the net: (pixels - mean) / std",
        "resize": f"shorter side to {shorter} pixels, bilinear, antialiased; then the middle {size} x {size}",
        "resize_shorter_side": shorter,
        "embed_dim": net.embed_dim,
        "backbone": net.describe(),
    }


def as_text(known: Mapping[str, Any]) -> dict[str, str]:
    """Facts as the text pairs that safetensors and ONNX carry: each by itself, and all under "eyespot"."""
    pairs = {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in known.items() if k not in ("version", "backbone")
    }
    return pairs | {"eyespot": json.dumps(known)}


def ready(net: Backbone) -> Backbone:
    """A copy on CPU, in float32 and evaluation mode."""
    return copy.deepcopy(net).to("cpu").float().eval().requires_grad_(False)


def takes_any_size(net: Backbone) -> bool:
    """Whether the same weights, unchanged, take pictures of other sizes: convolutional nets, not transformers."""
    config: Any = getattr(net.net, "pretrained_cfg", None) or {}
    fixed = config.get("fixed_input_size", False) if hasattr(config, "get") else False
    if fixed or isinstance(net, ViTBackbone | TorchvisionViT):
        return False
    try:
        with torch.no_grad():
            net(torch.zeros(1, net.channels, net.image_size + 32, net.image_size + 64))
    except (RuntimeError, UserError, AssertionError, IndexError, ValueError):
        return False
    return True


def shapes_to_compare(net: Backbone, any_size: bool) -> list[Shape]:
    """Two batch sizes, and where it is open another size too."""
    c, s = net.channels, net.image_size
    return [(2, c, s, s), (3, c, s + 32, s + 64) if any_size else (3, c, s, s), (1, c, s, s)]


@torch.no_grad()
def compare(net: Backbone, features: Callable[[Tensor], Tensor], shapes: Sequence[Shape]) -> Compared:
    """The copy beside the backbone on random pixels.

    Raises:
        UserError: features that are not finite, or of another shape.
    """
    draw = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    for shape in shapes:
        pixels = torch.rand(shape, generator=draw)
        wanted, got = net(pixels), features(pixels)
        if not bool(wanted.isfinite().all()):
            raise UserError(
                "The backbone gives features that are not finite, so its training broke; export another run."
            )
        if got.shape != wanted.shape:
            raise UserError(f"The exported copy gives features {list(got.shape)} in place of {list(wanted.shape)}.")
        far = (got.float() - wanted).abs().max()
        difference = max(difference, float(far if bool(far.isfinite()) else torch.inf))
        largest = max(largest, float(wanted.abs().max()))
    return Compared(difference, largest, [" x ".join(str(n) for n in shape) for shape in shapes])


def equal_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> int:
    """How many of our tensors came back with the same name and the same bits."""
    return sum(k in theirs and theirs[k].shape == v.shape and torch.equal(theirs[k].cpu(), v) for k, v in ours.items())


def column(values: Sequence[float]) -> str:
    """Numbers a channel, in Python that broadcasts over pictures."""
    return f"torch.tensor({[round(float(v), 6) for v in values]}).view(-1, 1, 1)"


def weight_state(net: Backbone) -> dict[str, Tensor]:
    """The tensors of the net itself, free of shared memory and unusual layouts."""
    return {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in net.net.state_dict().items()}
