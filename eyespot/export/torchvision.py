"""A safetensors file under torchvision's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.models.resnet import ResNet
from torch import Tensor, nn

from eyespot.export.foreign import Foreign, is_vit, put_small_stem, refusal, vit_shape, write_and_load
from eyespot.export.written import Written, facts, weight_state
from eyespot.nets import zoo
from eyespot.nets.backbones import Backbone
from eyespot.nets.naming import TORCHVISION_VIT, Tensors, from_timm, to_timm

MAPS = ("vgg", "alexnet", "squeezenet")
"""Nets that do not average their map before the classifier."""


def write(net: Backbone, path: Path, about: dict[str, Any], _any_size: bool) -> Written:
    """The file, and the net that torchvision built and loaded it into.

    Raises:
        UserError: torchvision does not have the net.
    """
    foreign, tensors = torchvision_net(net)
    known = facts(net, "torchvision", False, about)
    return write_and_load(net, path, foreign, tensors, known, f"torchvision {torchvision.__version__}")


def torchvision_net(net: Backbone) -> tuple[Foreign, Tensors]:
    """The same net as torchvision builds it, with random weights, and our tensors under its names."""
    state = weight_state(net)
    if not is_vit(net):
        foreign = _convolutional(net)
        put_small_stem(net, foreign)
        return foreign, state
    named = from_timm(to_timm(state), TORCHVISION_VIT)
    if named is None:
        raise refusal(net, "torchvision", "its transformers have a class token, and neither registers nor layer scale")
    return _transformer(net), named


def _transformer(net: Any) -> Foreign:
    shape = vit_shape(net)
    arguments = {"image_size": net.image_size, "patch_size": shape.patch, "num_layers": shape.depth}
    arguments |= {"num_heads": shape.heads, "hidden_dim": shape.width, "mlp_dim": shape.hidden}
    words = ", ".join(f"{k}={v}" for k, v in arguments.items())
    model = torchvision.models.VisionTransformer(**arguments)
    build = f"torchvision.models.VisionTransformer({words})"
    foreign = Foreign(model, build, "VisionTransformer", arguments, ["net.heads = torch.nn.Sequential()"])
    model.heads = nn.Sequential()
    if net.channels != 3:
        model.conv_proj = nn.Conv2d(net.channels, shape.width, shape.patch, shape.patch)
        sizes = f"{net.channels}, {shape.width}, {shape.patch}, {shape.patch}"
        foreign.steps.append(f"net.conv_proj = torch.nn.Conv2d({sizes})")
    if getattr(net, "pooling", "native") == "avg":
        foreign.steps.append("tokens = lambda x: torch.cat([net.class_token.expand(len(x), -1, -1), x], 1)")
        foreign.read = "net.encoder(tokens(net._process_input(x)))[:, 1:].mean(1)"
        foreign.reading = _mean_of_patches
    return foreign


def _mean_of_patches(net: Any, x: Tensor) -> Tensor:
    tokens = torch.cat([net.class_token.expand(len(x), -1, -1), net._process_input(x)], 1)
    return net.encoder(tokens)[:, 1:].mean(1)


def _convolutional(net: Backbone) -> Foreign:
    """A convolutional net whose classifier is taken off."""
    theirs = net.name.startswith("torchvision/") or not zoo.in_timm(net.name)
    name = net.name.removeprefix("torchvision/").partition(".")[0]
    if name not in zoo.torchvision_names() or not (theirs or isinstance(net.net, ResNet)):
        raise refusal(net, "torchvision")
    arguments = {k: v for k, v in net.options.items() if k != "small_stem"} if theirs else {}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False}
    model = torchvision.models.get_model(name, weights=None, **arguments)
    words = "".join(f", {k}={v!r}" for k, v in arguments.items())
    foreign = Foreign(model, f'torchvision.models.get_model("{name}", weights=None{words})', name, arguments)
    for head in [n for n, _ in model.named_children() if n in ("classifier", "fc", "head")]:
        setattr(model, head, nn.Identity())
        foreign.steps.append(f"net.{head} = torch.nn.Identity()")
    if net.channels != 3 and not net.options.get("small_stem"):
        _other_channels(net, foreign)
    if name.startswith(MAPS):
        foreign.read, foreign.reading = "net.features(x).mean((2, 3))", lambda m, x: m.features(x).mean((2, 3))
    return foreign


def _other_channels(net: Backbone, foreign: Foreign) -> None:
    """torchvision has no argument for channels."""
    path, old = next((n, m) for n, m in foreign.model.named_modules() if isinstance(m, nn.Conv2d))
    size: Any = (net.channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    parent, _, leaf = path.rpartition(".")
    setattr(foreign.model.get_submodule(parent), leaf, nn.Conv2d(*size, bias=old.bias is not None))
    words = f"{', '.join(str(v) for v in size)}, bias={old.bias is not None}"
    foreign.steps.append(f'setattr(net.get_submodule("{parent}"), "{leaf}", torch.nn.Conv2d({words}))')
