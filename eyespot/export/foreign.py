"""Weights in a net that another library builds: written under its names, loaded back strictly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.export.written import Written, as_text, column, equal_tensors, weight_state
from eyespot.nets import zoo
from eyespot.nets.backbones import Backbone
from eyespot.nets.files import disk_errors
from eyespot.nets.naming import Tensors, to_timm
from eyespot.nets.vit import ViTBackbone

PROGRAMS = "use --format onnx, torchscript or torch_export"


@dataclass
class Foreign:
    """How another library builds the net and gives its features."""

    model: Any
    build: str
    """The call that made it, in Python."""
    architecture: str
    arguments: dict[str, Any]
    steps: list[str] = field(default_factory=list)
    """Lines that change the net after it was built."""
    read: str = "net(x)"
    """Features of normalised pixels `x`, in Python."""
    reading: Callable[[Any, Tensor], Tensor] = lambda net, x: net(x)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VitShape:
    """The sizes of a plain vision transformer."""

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    """Width inside the two-layer nets of the blocks."""


def vit_shape(net: Any) -> VitShape:
    """The sizes of a transformer, timm's or torchvision's."""
    inner = net.net
    if isinstance(net, zoo.TorchvisionViT):
        layers = inner.encoder.layers
        return VitShape(inner.hidden_dim, len(layers), layers[0].num_heads, inner.patch_size, inner.mlp_dim)
    block = inner.blocks[0]
    hidden = getattr(getattr(block.mlp, "fc1", None), "out_features", 4 * inner.embed_dim)
    return VitShape(inner.embed_dim, len(inner.blocks), block.attn.num_heads, net.patch, hidden)


def is_vit(net: Backbone) -> bool:
    return isinstance(net, ViTBackbone | zoo.TorchvisionViT)


def refusal(net: Backbone, library: str, why: str = "") -> UserError:
    """The error for a net that the library does not have."""
    kind = "own module" if net.name.startswith("module:") else "net"
    reason = f" ({why})" if why else ""
    return UserError(f"The {kind} '{net.name.removeprefix('module:')}' has no equal in {library}{reason}; {PROGRAMS}.")


def put_small_stem(net: Backbone, foreign: Foreign) -> None:
    """No library builds the stem for small pictures: it takes the place of the usual one."""
    if not net.options.get("small_stem"):
        return
    conv = foreign.model.conv1
    if isinstance(conv, nn.Sequential):
        foreign.steps.append("for part in net.conv1.modules():")
        foreign.steps.append("    if isinstance(part, torch.nn.Conv2d):\n        part.stride = (1, 1)")
    else:
        foreign.steps.append(f"net.conv1 = torch.nn.Conv2d({net.channels}, {conv.out_channels}, 3, 1, 1, bias=False)")
    foreign.steps.append("net.maxpool = torch.nn.Identity()")
    foreign.notes.append("its stem, for small pictures, has stride 1 and no max-pooling: two more lines of Python")
    zoo.set_small_stem(foreign.model, net.channels)


def write_and_load(
    net: Backbone, path: Path, foreign: Foreign, tensors: Tensors, known: dict[str, Any], reader: str
) -> Written:
    """Writes the tensors and loads them strictly into the library's own net.

    Args:
        tensors: under the library's names.
        known: facts for the file, see `eyespot.export.written.facts`.
        reader: library and version.
    """
    library = reader.partition(" ")[0]
    lines = [f"import {library}", "import torch", "from safetensors.torch import load_file", ""]
    lines += [f"net = {foreign.build}", *foreign.steps, f'net.load_state_dict(load_file("{path.name}"))', "net.eval()"]
    lines += [f"mean, std = {column(known['mean'])}, {column(known['std'])}"]
    lines += [f"x = (pixels - mean) / std  # pixels [B, {net.channels}, H, W] in [0, 1]", f"features = {foreign.read}"]
    known = known | {"architecture": foreign.architecture, "model_args": foreign.arguments, "features": foreign.read}
    model = foreign.model.eval()
    wrong = _differences(tensors, dict(model.state_dict()))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise refusal(net, library, f"its net of that name differs in {wrong[0]}{more}")
    with disk_errors(path):
        save_file(tensors, path, {**as_text(known), "format": "pt"})
    model.load_state_dict(load_file(path), strict=True)
    same = equal_tensors(to_timm(weight_state(net)), to_timm(dict(model.state_dict())))

    def features(pixels: Tensor) -> Tensor:
        return foreign.reading(model, net.normalize(pixels))

    return Written(reader, features, same, len(tensors), "\n".join(lines), notes=foreign.notes)


def _differences(ours: Tensors, theirs: Tensors) -> list[str]:
    """Names that only one side has, or that have another shape there."""
    names = sorted(set(ours) ^ set(theirs))
    return names + sorted(k for k in ours if k in theirs and ours[k].shape != theirs[k].shape)
