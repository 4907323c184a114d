"""A safetensors file under timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from eyespot.export.foreign import Foreign, is_vit, put_small_stem, refusal, vit_shape, write_and_load
from eyespot.export.written import Written, facts, weight_state
from eyespot.nets import small, zoo
from eyespot.nets.backbones import Backbone
from eyespot.nets.naming import to_timm
from eyespot.nets.vit import ViTBackbone

VIT = "vit_base_patch16_224"
"""The plain vision transformer of which timm makes every size by arguments."""
SHARED = ("resnet", "resnext", "wide_resnet")
"""torchvision's nets that timm has under the same names of net and tensors."""


def write(net: Backbone, path: Path, about: dict[str, Any], _any_size: bool) -> Written:
    """The file, and the net that timm built and loaded it into.

    Raises:
        UserError: timm does not have the net.
    """
    known = facts(net, "timm", False, about)
    reader = f"timm {timm.__version__}"
    return write_and_load(net, path, timm_net(net), to_timm(weight_state(net)), known, reader)


def timm_net(net: Backbone, library: str = "timm") -> Foreign:
    """The same net as timm builds it, with random weights, and how its features are read.

    Args:
        library: what the error names.

    Raises:
        UserError: timm does not have the net.
    """
    named = _name_and_arguments(net)
    if named is None:
        raise refusal(net, library)
    name, arguments = named
    arguments = {"in_chans": net.channels, **arguments}
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    words = "".join(f", {k}={v!r}" for k, v in arguments.items())
    foreign = Foreign(model, f'timm.create_model("{name}", num_classes=0{words})', name, arguments)
    put_small_stem(net, foreign)
    _set_reading(net, foreign)
    return foreign


def _name_and_arguments(net: Backbone) -> tuple[str, dict[str, Any]] | None:
    plain = net.name.removeprefix("torchvision/")
    if is_vit(net) and (net.name in small.NETS or isinstance(net, zoo.TorchvisionViT)):
        return VIT, _sizes(net)
    if isinstance(net, ViTBackbone | zoo.TimmBackbone):
        return net.name.partition(".")[0], _options(net) | _pooling(net)
    if type(net) is Backbone and plain.startswith(SHARED) and zoo.in_timm(plain):
        return plain, {}
    return None


def _options(net: Backbone) -> dict[str, Any]:
    """The options that the net was built with, and its size where that is fixed."""
    options = {k: v for k, v in net.options.items() if k not in ("small_stem", "pooling")}
    fixed = getattr(timm.get_pretrained_cfg(net.name), "fixed_input_size", False)
    return options | ({"img_size": net.image_size} if fixed and hasattr(net.net, "patch_embed") else {})


def _sizes(net: Any) -> dict[str, Any]:
    shape = vit_shape(net)
    sizes: dict[str, Any] = {"img_size": net.image_size, "patch_size": shape.patch, "embed_dim": shape.width}
    sizes |= {"depth": shape.depth, "num_heads": shape.heads}
    if shape.hidden != 4 * shape.width:
        sizes["mlp_ratio"] = shape.hidden / shape.width
    if isinstance(net, zoo.TorchvisionViT):
        return sizes
    if net.net.cls_token is None:
        sizes |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if net.net.num_reg_tokens:
        sizes["reg_tokens"] = net.net.num_reg_tokens
    return sizes | _pooling(net)


def _pooling(net: Backbone) -> dict[str, Any]:
    """Arguments with which timm's forward pools as the backbone does."""
    if not isinstance(net, ViTBackbone) or net.pooling != "avg":
        return {}
    token = net.net.global_pool == "token" and isinstance(net.net.fc_norm, nn.Identity)
    return {"global_pool": "avg", "fc_norm": False} if token else {}


def _set_reading(net: Backbone, foreign: Foreign) -> None:
    """How pooled features are read where they are not what timm's forward gives."""
    if isinstance(net, ViTBackbone):
        if net.pooling == "avg" and net.net.attn_pool is not None:
            prefix = net.prefix
            foreign.read = f"net.fc_norm(net.forward_features(x)[:, {prefix}:].mean(1))"
            foreign.reading = lambda m, x: m.fc_norm(m.forward_features(x)[:, prefix:].mean(1))
    elif isinstance(net, zoo.TimmBackbone):
        axes = _averaged_axes(net)
        if axes is not None:
            foreign.read = f"net.forward_features(x).mean({axes})"
            foreign.reading = lambda m, x: m.forward_features(x).mean(axes)


def _averaged_axes(net: zoo.TimmBackbone) -> Any:
    """The axes of timm's features that the backbone averages; None where it reads timm's own pooling."""
    if net.native:
        return None
    pixels = torch.zeros(1, net.channels, net.image_size, net.image_size)
    with torch.no_grad():
        features = net.features(pixels)
    if features.dim() == 3:
        return 1
    return (2, 3) if net._map(features).shape == features.shape else (1, 2)
