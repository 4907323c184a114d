"""Backbones by timm or torchvision name."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import timm
import torch
import torchvision
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import ResNet as TorchvisionResNet

from eyespot.errors import UserError
from eyespot.nets.backbones import Backbone, evaluating
from eyespot.nets.network import cached_when_offline
from eyespot.nets.vit import ViTBackbone

SMALL = 64
"""Largest side in pixels at which ResNets get the small stem by themselves."""


# --- timm ---------------------------------------------------------------------------------------------------
def timm_names() -> list[str]:
    return timm.list_models()


def in_timm(name: str) -> bool:
    """Whether timm has the name, with or without the tag of its weights (`resnet18.a1_in1k`)."""
    return timm.is_model(name) and "/" not in name


def published_size(name: str) -> int:
    """Side of the pictures that the weights of a timm or torchvision name were made for.

    Raises:
        UserError: no weights are published.
    """
    if in_timm(name):
        config: Any = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise UserError(f"timm publishes no weights of '{name}'; train it, or choose another.")
        return int(config.input_size[-1])
    weights: Any = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
    return int(weights.DEFAULT.transforms.keywords["crop_size"])


class TimmBackbone(Backbone):
    """A timm net. Pooled features are those before its classifier where they are as wide as the map, else the mean
    of the map (nets that widen after pooling, such as MobileNetV3: their extra layers are left out)."""

    def __init__(self, net: nn.Module, **common: Any):
        self.native = getattr(net, "head_hidden_size", net.num_features) == net.num_features
        super().__init__(net, **common)
        if not self.native:
            self._freeze_unused()

    def features(self, x: Tensor) -> Tensor:
        out = self.net.forward_features(self.normalize(x))
        if not isinstance(out, Tensor):
            raise UserError(f"The timm net '{self.name}' gives no single feature tensor; choose another backbone.")
        return out

    def pool(self, features: Tensor) -> Tensor:
        if self.native:
            out = self.net.forward_head(features, pre_logits=True)
            return out.mean((2, 3)) if out.dim() == 4 else out
        return self._map(features).mean((2, 3)) if features.dim() == 4 else features.mean(1)

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        if features.dim() == 4:
            return self._map(features)
        if features.dim() != 3:
            raise UserError(f"The timm net '{self.name}' has no feature map; choose another backbone.")
        h, w = self._cells(features.shape[1], size)
        return features[:, features.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w))

    def _map(self, features: Tensor) -> Tensor:
        """[B, D, h, w]; some nets put the channels last."""
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC" or (
            features.shape[1] != self.net.num_features and features.shape[3] == self.net.num_features
        )
        return features.permute(0, 3, 1, 2) if last else features

    def _cells(self, tokens: int, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patch tokens; what comes before them (class, registers) is left out."""
        tokens -= int(getattr(self.net, "num_prefix_tokens", 0))
        for h in range(int(tokens**0.5), int(tokens**0.5) - 3, -1):  # nets without the attribute: a few extra tokens
            if size[0] == size[1] and h > 0 and 0 <= tokens - h * h <= 2:
                return h, h
        stride = round((size[0] * size[1] / tokens) ** 0.5)
        h, w = size[0] // stride, size[1] // stride
        if h * w != tokens:
            raise UserError(f"{tokens} tokens of '{self.name}' do not form a map of {size[0]} x {size[1]} pixels.")
        return h, w

    def _freeze_unused(self) -> None:
        """No gradient for layers after the map: unused parameters would end a distributed run."""
        pixels = torch.zeros(1, self.channels, self.image_size, self.image_size)
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        with evaluating(self):
            grads = torch.autograd.grad(self(pixels).sum(), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.requires_grad_(grad is not None)


def build_timm(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> Backbone:
    options = dict(options)
    pooling, small_stem = options.pop("pooling", "native"), options.pop("small_stem", None)
    with cached_when_offline() if pretrained else contextlib.nullcontext():
        net = _create(name, pretrained, common["channels"], common["image_size"], options)
    resolved = _resolve_stem(net, small_stem, pretrained, common, name)
    if pretrained:
        common = {**common, **_published_statistics(net, common)}
    # a distilled ViT has a token more than the class knows how to place, so it goes the general way
    if type(net) is VisionTransformer:
        return ViTBackbone(net, name=name, pooling=pooling, options={**options, **resolved}, **common)
    if pooling != "native":
        raise UserError(f"pooling='{pooling}' is only known of plain vision transformers, which '{name}' is not.")
    return TimmBackbone(net, name=name, options={**options, **resolved}, **common)


def _create(name: str, pretrained: bool, channels: int, image_size: int, options: dict[str, Any]) -> Any:
    """The net for this picture size: nets with a fixed size take `img_size`, some also bend to others later."""
    fixed = bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))
    size: dict[str, Any] = {"img_size": image_size}
    tries = [{**size, "dynamic_img_size": True}, size, {}] if fixed else [{}]
    refused: TypeError | None = None
    for extra in tries:
        try:
            return timm.create_model(
                name, pretrained=pretrained, num_classes=0, in_chans=channels, **{**extra, **options}
            )
        except TypeError as error:
            refused = refused or error
            if not any(f"'{key}'" in str(error) for key in extra):
                refused = error
                break
    raise UserError(f"'{name}' cannot be built with these options ({refused}).") from refused


def _published_statistics(net: nn.Module, common: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation that the published weights were trained with, where the user gave none."""
    cfg: Any = getattr(net, "pretrained_cfg", {})
    return {k: cfg[k] for k in ("mean", "std") if common[k] is None and len(cfg.get(k, ())) == common["channels"]}


# --- the stem of ResNets at small sizes ---------------------------------------------------------------------
def _resolve_stem(
    net: nn.Module, wanted: bool | None, pretrained: bool, common: dict[str, Any], name: str
) -> dict[str, bool]:
    """Changes the stem if wanted, or by itself at small sizes; what was done, for the saved options."""
    if not isinstance(net, (TimmResNet, TorchvisionResNet)):
        if wanted:
            raise UserError(f"small_stem is only known of ResNets, which '{name}' is not; leave it out.")
        return {}
    small = (common["image_size"] <= SMALL and not pretrained) if wanted is None else wanted
    if small:
        set_small_stem(net, common["channels"])
    return {"small_stem": small}


def set_small_stem(net: Any, channels: int) -> None:
    """3x3 stride-1 first convolution and no max-pool, as usual for ResNets at 32 px; deep stems get stride 1."""
    if isinstance(net.conv1, nn.Sequential):
        for module in net.conv1.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    else:
        net.conv1 = nn.Conv2d(channels, net.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


# --- torchvision --------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def torchvision_names() -> frozenset[str]:
    """Names of torchvision's classifiers."""
    return frozenset(torchvision.models.list_models(module=torchvision.models))


class TorchvisionViT(Backbone):
    """A torchvision vision transformer: class token as pooled features, patch tokens as map, one picture size."""

    def features(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"'{self.name}' was built for {self.image_size} pixels but got {x.shape[2]} x {x.shape[3]}; "
                f"build it with that image_size, or take a timm name."
            )
        cells = self.net.conv_proj(self.normalize(x)).flatten(2).transpose(1, 2)
        return self.net.encoder(torch.cat([self.net.class_token.expand(x.shape[0], -1, -1), cells], 1))

    def pool(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        side = round((features.shape[1] - 1) ** 0.5)
        return features[:, 1:].transpose(1, 2).unflatten(2, (side, side))


HEADS = ("avgpool", "classifier", "fc", "head", "flatten")
"""Children of torchvision's nets at which the part after the map begins."""


def trunk(net: nn.Module) -> nn.Sequential:
    """The part of a torchvision net that makes the map [B, D, h, w]: its children, in order, up to the pooling."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in net.named_children():
        if name in HEADS:
            break
        if not name.lower().startswith("aux"):
            parts[name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
    if isinstance(net, torchvision.models.DenseNet):
        parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)


def build_torchvision(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> Backbone:
    options = dict(options)
    small_stem = options.pop("small_stem", None)
    plain = name.removeprefix("torchvision/")
    arguments: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None, **options}
    if plain.startswith("vit"):
        arguments["image_size"] = common["image_size"]
    if plain == "maxvit_t":
        arguments["input_size"] = (common["image_size"],) * 2
    if plain in ("googlenet", "inception_v3"):
        arguments["init_weights"] = not pretrained
    try:
        net = torchvision.models.get_model(plain, **arguments)
    except TypeError as error:
        raise UserError(f"'{name}' cannot be built with these options ({error}).") from error
    if common["channels"] != 3:
        _set_channels(net, common["channels"], pretrained)
    options.update(_resolve_stem(net, small_stem, pretrained, common, name))
    if isinstance(net, torchvision.models.VisionTransformer):
        net.heads = nn.Sequential()
        return TorchvisionViT(net, name=name, options=options, **common)
    return Backbone(trunk(net), name=name, options=options, **common)


@torch.no_grad()
def _set_channels(net: nn.Module, channels: int, pretrained: bool) -> None:
    """The first convolution for another number of channels; learned weights are averaged over colour and rescaled."""
    path, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if pretrained:
        new.weight.copy_(old.weight.mean(1, keepdim=True) * 3 / channels)
    if new.bias is not None and old.bias is not None:
        new.bias.copy_(old.bias)
    parent, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new)
