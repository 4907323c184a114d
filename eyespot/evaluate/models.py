"""What can be evaluated: a run, a backbone by name, a module; and the same network with random weights, its floor."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.data.loader import Data
from eyespot.errors import UserError
from eyespot.nets.backbones import DESCRIPTION, Backbone, backbone, described_name, load_backbone, modality_of_name

T = TypeVar("T")

RECIPE_SIZE = 224
"""Side in pixels of the pictures that a named backbone sees, where they are that large."""


@dataclass(frozen=True)
class Model:
    """A network, and where its weights are from."""

    name: str
    """Run folder, or name of the backbone."""
    net: Backbone
    weights: str
    """"trained" (a run or a given module), "pretrained" (published) or "random"."""


def seeded(seed: int, make: Callable[[], T]) -> T:
    """What `make` returns when torch's CPU generator starts from `seed`; the generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def channels_of(model: Any, channels: int | None, pretrained: bool = False) -> int | None:
    """The channels pictures must be read with for this model, None where it takes what the data has.

    Raises:
        UserError: when `channels` is not what the model takes.
    """
    net = given_net(model)
    if net is None:
        return 3 if pretrained and channels is None else channels
    if channels is not None and channels != net.channels:
        raise UserError(f"The model takes {net.channels} channels, not {channels}; leave --channels out.")
    return net.channels


def given_net(model: Any) -> Backbone | None:
    """The backbone that a run folder, a run or a module holds; None for a name."""
    if isinstance(model, Backbone):
        return model
    if isinstance(model, nn.Module):
        own = getattr(model, "backbone", None)
        return own if isinstance(own, Backbone) else None
    folder = run_folder(model)
    return None if folder is None else load_backbone(folder)


def run_folder(model: Any) -> Path | None:
    """The folder of a run that `model` names or is; None for the name of a backbone.

    Raises:
        UserError: a path that does not exist, or a folder in which no run was finished.
    """
    path = getattr(model, "path", model)
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"A model cannot be a {type(model).__name__}; give a run folder, a run, the name of a backbone or a module."
        )
    folder = Path(path)
    if (folder / DESCRIPTION).is_file():
        return folder
    named = isinstance(path, str)
    if named and (path.startswith("torchvision/") or (os.sep not in path and not folder.is_dir())):
        return None
    if not folder.exists():
        raise UserError(f"There is no run '{path}'; give the --out folder of a pretrain, or the name of a backbone.")
    raise UserError(
        f"'{path}' holds no {DESCRIPTION}: no run has been finished there; finish it with --resume, or give another."
    )


def open_model(
    model: Any, data: BatchData, *, image_size: int | None = None, pretrained: bool = False, seed: int = 0
) -> Model:
    """The network that `model` stands for.

    Args:
        model: run folder, run (has `.path`), name of a backbone, `Backbone`, method (its backbone), or a plain module
            that returns [B, D] or [B, D, h, w].
        data: gives channels, size and statistics where the model does not say them.
        image_size: side of the pictures; None as trained, for a name from the pictures (at most 224).
        pretrained: for a name: the published weights instead of random ones.
        seed: of random weights.
    """
    net = given_net(model)
    if net is not None:
        return Model(_name(model, net), net, "trained")
    if isinstance(model, nn.Module):
        size = image_size or usual_size(data, modality.get("image"), False)
        return Model(type(model).__name__, backbone(model, channels=data.channels, image_size=size), "trained")
    mean = std = None
    if isinstance(data, Data) and data.channels != 3:
        mean, std = data.statistics()
    size = image_size or usual_size(data, modality_of(model), pretrained)
    net = seeded(
        seed,
        lambda: backbone(
            str(model), channels=data.channels, image_size=size, pretrained=pretrained, mean=mean, std=std
        ),
    )
    return Model(str(model), net, "pretrained" if pretrained else "random")


def _name(model: Any, net: Backbone) -> str:
    if isinstance(model, nn.Module):
        return net.name
    return str(getattr(model, "path", model))


def modality_of(model: Any) -> modality.Modality:
    """The modality of the inputs of what `open_model` takes; of a run only the description is read."""
    if isinstance(model, nn.Module):
        return modality.of_backbone(given_net(model))
    folder = run_folder(model)
    return modality.get(modality_of_name(str(model) if folder is None else described_name(folder)))


def usual_size(data: BatchData, kind: modality.Modality, pretrained: bool) -> int:
    """224, or what the samples give when they are smaller (a multiple of 16); published weights always see 224."""
    median = kind.usual_size(data) or RECIPE_SIZE
    return RECIPE_SIZE if pretrained or median >= RECIPE_SIZE else max(16, median // 16 * 16)


def random_twin(net: Backbone, seed: int = 0) -> Backbone | None:
    """The same architecture as it is before training, weights drawn by `seed`; None when that cannot be made.

    Nets by name are built again. In an own module every part that can reset its parameters does; a module with
    parameters that no part resets has no twin.
    """
    described = net.describe()
    if not net.name.startswith("module:"):
        common = {k: described[k] for k in ("channels", "image_size", "mean", "std")}
        return seeded(seed, lambda: backbone(net.name, **common, **net.options)).to(_device(net))
    twin = copy.deepcopy(net)
    return twin if seeded(seed, lambda: _reset(twin)) else None


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def _reset(module: nn.Module) -> bool:
    """Draw all parameters anew; whether every one of them was."""
    reset: set[int] = set()
    for part in module.modules():
        draw = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(draw):
            draw()
            reset |= {id(p) for p in part.parameters(recurse=False)}
    return all(id(p) in reset for p in module.parameters())
