"""The library's own nets; the small ones are sized for two processor cores at 32 px.

    resnet8     3 stages of one basic block, widths 32 / 64 / 128, stride-2 stem: a 4 x 4 map at 32 px
    resnet14    the same with two blocks a stage
    vit_nano    dim 64, depth 3, 2 heads
    vit_micro   dim 128, depth 4, 4 heads
    vit_mini    dim 192, depth 8, 3 heads
    slot_conv, slot_conv_small    Slot Attention's encoder, 4 convolutions of 64; 3 of 32 at half the resolution
    monet_conv  the encoder of MONet's components, which also sees a mask; a stride of 16
    vit_tiny, vit_small, vit_base      the usual 192 / 384 / 768 wide nets of 12 blocks, but for any picture size

The transformers take patches of 4 pixels up to 64 px, 8 up to 128 px, else 16, and carry the frozen sine-cosine
positions and the initialisation of MAE (`positions="learned"` for learned ones).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eyespot.errors import UserError, nearest
from eyespot.nets.backbones import Backbone
from eyespot.nets.monet import ComponentBackbone, ComponentConv
from eyespot.nets.slots import SlotConv
from eyespot.nets.vit import ViTBackbone, init_as_mae, sincos_positions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """Stages of basic blocks, each twice as wide as the one before and (but the first) at half its resolution.

    Args:
        channels: of the pictures.
        width: channels of the first stage.
        blocks: basic blocks a stage.
        stages: number of stages.
        stem_stride: stride of the first convolution.
    """

    def __init__(self, channels: int, width: int = 32, blocks: int = 1, stages: int = 3, stem_stride: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers, before = [], width
        for stage in range(stages):
            for block in range(blocks):
                layers.append(BasicBlock(before, width << stage, 2 if stage and not block else 1))
                before = width << stage
        self.blocks = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width * 2^(stages - 1), h, w] of normalised pixels."""
        return self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))


def small_vit(
    channels: int,
    image_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    patch: int | None = None,
    positions: str = "sincos",
    class_token: bool = True,
    registers: int = 0,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """A timm VisionTransformer without head, for any picture size that its patch divides."""
    patch = patch or (4 if image_size <= 64 else 8 if image_size <= 128 else 16)
    if positions not in ("sincos", "learned"):
        raise UserError(f"positions='{positions}' is not known; use 'sincos' or 'learned'.")
    if dim % heads:
        raise UserError(f"dim={dim} is not a multiple of heads={heads}; choose heads that divide it.")
    if image_size % patch:
        raise UserError(f"The size {image_size} is not a multiple of the patch, {patch} pixels; choose another.")
    net = VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="token" if class_token else "avg",
        fc_norm=False,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )
    init_as_mae(net)
    if positions == "sincos":
        with torch.no_grad():
            net.pos_embed.copy_(sincos_positions(dim, image_size // patch, net.num_prefix_tokens)[None])  # type: ignore[union-attr]
        net.pos_embed.requires_grad_(False)  # type: ignore[union-attr]
    return net


MODALITY = "image"
NETS: dict[str, dict[str, Any]] = {
    "resnet8": {"width": 32, "blocks": 1},
    "resnet14": {"width": 32, "blocks": 2},
    "slot_conv": {"width": 64, "layers": 4},
    "slot_conv_small": {"width": 32, "layers": 3, "stride": 2},
    "monet_conv": {},
    "vit_nano": {"dim": 64, "depth": 3, "heads": 2},
    "vit_micro": {"dim": 128, "depth": 4, "heads": 4},
    "vit_mini": {"dim": 192, "depth": 8, "heads": 3},
    "vit_tiny": {"dim": 192, "depth": 12, "heads": 3},
    "vit_small": {"dim": 384, "depth": 12, "heads": 6},
    "vit_base": {"dim": 768, "depth": 12, "heads": 12},
}


def build(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> Backbone:
    """One of `NETS`; `options` change its defaults, for transformers also `pooling` ("avg" or "native")."""
    if pretrained:
        raise UserError(f"There are no pretrained weights of '{name}'; train it, or take a timm name.")
    is_vit = name.startswith("vit")
    kind = _class(name)
    takes = inspect.signature(small_vit if is_vit else kind).parameters
    valid = [p for p in takes if p not in ("channels", "image_size")] + (["pooling"] if is_vit else [])
    for option in options:
        if option not in valid:
            raise UserError(f"'{name}' has no option '{option}'; {nearest(option, valid)}")
    arguments = {**NETS[name], **options}
    if not is_vit:
        wrapper = ComponentBackbone if kind is ComponentConv else Backbone
        return wrapper(kind(common["channels"], **arguments), name=name, options=options, **common)
    pooling = arguments.pop("pooling", "avg")
    net = small_vit(common["channels"], common["image_size"], **arguments)
    # noted, so that the same weights can be built for another picture size
    options = {**options, "patch": net.patch_embed.patch_size[0]}
    return ViTBackbone(net, name=name, pooling=pooling, options=options, **common)


def _class(name: str) -> Any:
    """The class of a net that is no transformer."""
    return SlotConv if name.startswith("slot_conv") else ComponentConv if name == "monet_conv" else SmallResNet
