"""Method, heads and backbone from what config.json says, for a new run and for reading an old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eyespot.errors import UserError
from eyespot.methods import catalog
from eyespot.methods.compose import Composed
from eyespot.methods.method import Info, Method
from eyespot.nets.backbones import Backbone, backbone
from eyespot.runs import read_json
from eyespot.settings import no_stray_settings, settings
from eyespot.train.checkpoint import load_checkpoint


def build_method(
    name: str,
    kind: str,
    net: Any,
    given: Mapping[str, Any] | Sequence[str],
    info: Info,
    image_size: int,
    plugins: Sequence[str] = (),
) -> Method:
    """A method with its plug-ins.

    Args:
        given: the method's arguments, and the plug-ins' as `plugin.key`; words of --set or a mapping.

    Raises:
        UserError: an argument that does not exist or does not fit.
    """
    entry, cls = catalog.find(name, kind), catalog.load(name, kind)
    found = catalog.plugins(plugins, entry)
    no_stray_settings(given, [p.name for p in found])
    values = settings(given, entry.fields, entry.name)
    method = cls(net, cls.Config(**(values | {"image_size": image_size})), info)
    if not found:
        return method
    made = []
    for about in found:
        plugin_cls = catalog.load(about.name, "plugin")
        own = settings(given, about.fields, about.name, about.prefix)
        made.append(plugin_cls(method, plugin_cls.Config(**(own | {"image_size": image_size}))))
    return Composed(method, made)


def arguments(method: Method) -> dict[str, Any]:
    """All arguments of a method, resolved."""
    return dataclasses.asdict(method.config)


def rebuild_backbone(description: Mapping[str, Any]) -> Backbone:
    """The untrained net that a description names."""
    if str(description["name"]).startswith("module:"):
        raise UserError(
            f"The run's backbone is the own module '{description['name'][7:]}'; build it and load its weights with "
            "eyespot.nets.backbones.load_backbone(folder, module=...)."
        )
    keys = ("channels", "image_size", "mean", "std")
    return backbone(description["name"], **{k: description[k] for k in keys}, **description["options"])


def info_from_json(value: Mapping[str, Any]) -> Info:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Info(**fields)


def load_method(folder: str | Path) -> Method:
    """The whole method of a run, from config.json and checkpoint.pt.

    Raises:
        UserError: the run has no checkpoint, or it does not fit.
    """
    folder = Path(folder)
    if not (folder / "checkpoint.pt").exists():
        raise UserError(f"'{folder}' has no checkpoint.pt yet; continue the run with --resume.")
    method = fresh_method(folder)
    state = load_checkpoint(folder / "checkpoint.pt")["method"]
    floating = next((v.dtype for v in state.values() if v.is_floating_point()), torch.float32)
    method.to(floating)
    method.load_state_dict(state)
    return method


def fresh_method(folder: str | Path) -> Method:
    """The method of a run as it is built, with weights from torch's generator."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    method = build_method(
        config["method"],
        config["kind"],
        rebuild_backbone(config["backbone"]),
        {k: v for k, v in config["arguments"].items() if k != "image_size"},
        info_from_json(config["info"]),
        config["image_size"],
        config["plugins"],
    )
    method.prepared = read_prepared(folder)
    return method


def read_prepared(folder: Path) -> dict[str, Tensor]:
    """What `prepare` left, or nothing."""
    from safetensors.torch import load_file

    path = folder / "prepared.safetensors"
    return load_file(path) if path.exists() else {}
