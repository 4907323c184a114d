"""The layers of a backbone from the pixels upwards, for rates that fall towards them.

    transformers   0: patches, tokens, positions; 1..n: the blocks; n + 1: the norms after them
    ResNets        0: the stem; 1..n: the stages
    timm's others  the groups that timm names: mostly stem and stages
    any module     0: what stands before the first part that has parts itself; then one such part after the other

A head that is put on top has the number after the last layer.
"""

from __future__ import annotations

import re
from typing import Any

from timm.models import group_parameters
from torch import nn

from eyespot.nets.backbones import Backbone
from eyespot.nets.small import SmallResNet
from eyespot.nets.vit import ViTBackbone

BLOCK = re.compile(r"(?:^|\.)(?:blocks\.|encoder_layer_)(\d+)\.")
BEFORE = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "conv_proj", "class_token")


def layers(backbone: Backbone) -> tuple[dict[str, int], int]:
    """The layer of every parameter of a backbone, and the number that a head on top of it has.

    Returns:
        {name as in `backbone.named_parameters()`: layer from 0}, and n + 1 for the last layer n (for transformers the
        norms after the blocks count as part of the head, as in MAE, He et al., CVPR 2022, arXiv 2111.06377, section A).
    """
    from eyespot.nets.zoo import TorchvisionViT

    net = backbone.net
    if isinstance(backbone, ViTBackbone | TorchvisionViT):
        found = _of_transformer(net)
        return found, max(found.values())
    if isinstance(net, SmallResNet):
        found = _of_small_resnet(net)
    elif hasattr(net, "group_matcher"):
        groups: Any = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
        found = {f"net.{name}": int(layer) for name, layer in groups.items()}
    else:
        found = _of_module(net)
    return found, max(found.values(), default=0) + 1


def rate_scales(backbone: Backbone, decay: float) -> dict[str, float]:
    """The share of the learning rate of every parameter: decay^(n + 1 - layer), 1 for a head on layer n + 1.

    BEiT (Bao et al., ICLR 2022, arXiv 2106.08254) and MAE (arXiv 2111.06377, section A) fine-tune with it.
    """
    found, top = layers(backbone)
    return {name: decay ** (top - layer) for name, layer in found.items()}


def _of_transformer(net: nn.Module) -> dict[str, int]:
    blocks = {n: int(m.group(1)) for n, _ in net.named_parameters() if (m := BLOCK.search(n))}
    after = max(blocks.values(), default=-1) + 2

    def layer(name: str) -> int:
        if name in blocks:
            return blocks[name] + 1
        return 0 if any(part in name for part in BEFORE) else after

    return {f"net.{name}": layer(name) for name, _ in net.named_parameters()}


def _of_small_resnet(net: SmallResNet) -> dict[str, int]:
    """A stage is the blocks of one width."""
    widths = [block.conv1.out_channels for block in net.blocks]  # type: ignore[union-attr]
    stages = sorted(set(widths))  # type: ignore[type-var]

    def layer(name: str) -> int:
        block = BLOCK.search(name)
        return stages.index(widths[int(block.group(1))]) + 1 if block else 0

    return {f"net.{name}": layer(name) for name, _ in net.named_parameters()}


def _of_module(net: nn.Module) -> dict[str, int]:
    """Parts with parts of their own are layers, in their order; single modules belong to the layer before them."""
    found: dict[str, int] = {f"net.{name}": 0 for name, _ in net.named_parameters(recurse=False)}
    number = 0
    for prefix, part in _parts(net):
        number += any(list(m.parameters()) for m in part.children()) and bool(found)
        found |= {f"net.{prefix}.{name}": number for name, _ in part.named_parameters()}
    return found


def _parts(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children that hold parameters; where one child alone has parts, it is opened: a stem and a list of blocks."""
    parts = [(name, m) for name, m in net.named_children() if any(True for _ in m.parameters())]
    holders = [(name, m) for name, m in parts if any(True for c in m.children() for _ in c.parameters())]
    if len(holders) == 1 and isinstance(holders[0][1], nn.Sequential | nn.ModuleList):
        outer, inner = holders[0]
        opened = [(f"{outer}.{name}", m) for name, m in _parts(inner)]
        at = parts.index(holders[0])
        return [*parts[:at], *opened, *parts[at + 1 :]]
    return parts
