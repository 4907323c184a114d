"""Where a training may start from: a run, a file, a Hugging Face folder, published weights by name, a module.

The net is the one that the user named, else the one that the source says, else the recipe's. What of the source went
into it is in the `Report`, see `eyespot.nets.match`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from eyespot.errors import UserError
from eyespot.nets.architectures import HF_KNOWN, Architecture, checked_options, from_config, statistics
from eyespot.nets.backbones import (
    DESCRIPTION,
    WEIGHTS,
    Backbone,
    backbone,
    checked_description,
    published_size,
)
from eyespot.nets.files import is_weight_file, parse_described, read_described, read_tensors
from eyespot.nets.match import Report, load_matching
from eyespot.nets.naming import Tensors

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
METADATA = "eyespot"
"""Key under which files that `eyespot export` writes say what they hold."""

# what building a net from arguments that make no sense raises, in timm and torchvision
SENSELESS = (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Target:
    """What the net is to be."""

    channels: int
    image_size: int
    backbone: str | nn.Module | None = None
    """Named by the user."""
    fallback: str = "resnet18"
    """Taken when neither the user nor the source names one."""
    statistics: Callable[[], tuple[Sequence[float], Sequence[float]]] | None = None
    """Mean and deviation of the data, for channels that neither the source nor ImageNet has."""


@dataclass
class Source:
    """Weights, and what is known about the net they belong to."""

    label: str
    kind: str
    tensors: Tensors
    architecture: Architecture | None = None
    unknown: str = ""
    """Why the net cannot be built from the source alone."""
    notes: list[str] = field(default_factory=list)


def starting_backbone(start: Any, target: Target) -> tuple[Backbone, Report]:
    """The backbone that a training starts from.

    Args:
        start: folder of a run, a run (has `.path`), a file (.safetensors, or .pth, .pt, .bin read with weights_only), a
            Hugging Face folder, a timm name or torchvision/NAME (published weights: network or cache), or a module.

    Raises:
        UserError: it does not exist, is damaged, or does not fit the net; nothing in a file is ever executed.
    """
    if isinstance(start, nn.Module):
        return _around(start, target)
    source = open_source(start)
    net = _build(source, target)
    report = load_matching(net, source.tensors, source.label, source.kind)
    report.notes += source.notes
    if target.backbone is None and source.architecture is not None:
        report.notes += source.architecture.notes
    return net, report


def _around(module: nn.Module, target: Target) -> tuple[Backbone, Report]:
    if target.backbone is not None:
        raise UserError("init is a module, which is the backbone already; leave backbone out.")
    net = backbone(module, channels=target.channels, image_size=target.image_size)
    count = sum(v.is_floating_point() for v in net.net.state_dict().values())
    return net, Report(type(module).__name__, "module", net.name, total=count, matched=count)


def _build(source: Source, target: Target) -> Backbone:
    about = source.architecture
    common: dict[str, Any] = {"channels": target.channels, "image_size": target.image_size}
    common |= _statistics(about, target)
    if target.backbone is not None:
        return backbone(target.backbone, **common)
    if source.unknown:
        raise UserError(source.unknown)
    if about is None:
        return backbone(target.fallback, **common)
    try:
        return backbone(about.name, **common, **about.options)
    except SENSELESS as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The net that '{source.label}' describes cannot be built ({reason}).") from error


def _statistics(about: Architecture | None, target: Target) -> dict[str, Any]:
    """What the weights were trained with; ImageNet's for colour; else measured."""
    if about is not None and about.mean and about.std and len(about.mean) == len(about.std) == target.channels:
        return {"mean": about.mean, "std": about.std}
    if target.channels == 3 or target.statistics is None:
        return {}
    mean, std = target.statistics()
    return {"mean": tuple(float(v) for v in mean), "std": tuple(float(v) for v in std)}


# --- sources ----------------------------------------------------------------------------------------------------------
def open_source(start: Any) -> Source:
    """The weights that `start` names."""
    given = getattr(start, "path", start)
    if not isinstance(given, str | os.PathLike):
        raise UserError(
            f"A training cannot start from a {type(given).__name__}; give a run, a file, a folder or a name."
        )
    path = Path(given)
    if path.is_dir():
        return _open_folder(path)
    if path.exists():
        return _open_file(path)
    if not is_backbone_name(str(given)):
        raise UserError(f"'{given}' does not exist; give a run, a file, a folder or the name of a backbone.")
    return _published(str(given))


def is_backbone_name(start: Any) -> bool:
    """Whether it is a name, neither a path that exists nor one that is written as such."""
    if not isinstance(start, str) or Path(start).exists() or is_weight_file(start):
        return False
    return start.startswith("torchvision/") or os.sep not in start


def _open_folder(path: Path) -> Source:
    if (path / DESCRIPTION).is_file():
        described = read_described(path / DESCRIPTION)
        tensors, _ = read_tensors(path / WEIGHTS)
        return _described(str(path), "run", tensors, described, str(path / DESCRIPTION))
    if not (path / CONFIG).is_file():
        raise UserError(
            f"'{path}' holds neither a run ({DESCRIPTION}) nor a Hugging Face folder ({CONFIG} with "
            "model.safetensors); give one of them, or a file."
        )
    config = read_described(path / CONFIG)
    if "method" in config and "command" in config:
        raise UserError(
            f"The run in '{path}' has not been finished; finish it with --resume, or start from "
            f"'{path / 'checkpoint.pt'}'."
        )
    return _open_huggingface(path, config)


def _open_huggingface(path: Path, config: dict[str, Any]) -> Source:
    tensors = _huggingface_tensors(path)
    own = config.get(METADATA)
    if isinstance(own, dict) and isinstance(own.get("backbone"), dict):
        return _described(str(path), "huggingface", tensors, own["backbone"], str(path / CONFIG))
    source = Source(str(path), "huggingface", tensors)
    source.architecture = from_config(config, str(path / CONFIG))
    if source.architecture is None:
        source.unknown = (
            f"'{path / CONFIG}' is of the kind '{str(config.get('model_type'))[:40]}', not one of "
            f"{', '.join(HF_KNOWN)}; name the net with --backbone."
        )
        return source
    checked_options(source.architecture.options, str(path / CONFIG))
    preprocessing = path / "preprocessor_config.json"
    if preprocessing.is_file():
        found = read_described(preprocessing)
        mean, std = statistics(found.get("image_mean")), statistics(found.get("image_std"))
        about = source.architecture
        source.architecture = Architecture(about.name, about.options, mean, std, notes=about.notes)
    return source


def _huggingface_tensors(path: Path) -> Tensors:
    if (path / "model.safetensors").is_file():
        return read_tensors(path / "model.safetensors")[0]
    if (path / INDEX).is_file():
        parts = read_described(path / INDEX).get("weight_map")
        files = sorted({str(v) for v in parts.values()}) if isinstance(parts, dict) else []
        if not files or any(Path(f).name != f for f in files):
            raise UserError(f"'{path / INDEX}' names files outside its folder, or none; fetch it again.")
        return {k: v for f in files for k, v in read_tensors(path / f)[0].items()}
    if (path / "pytorch_model.bin").is_file():
        return read_tensors(path / "pytorch_model.bin")[0]
    raise UserError(f"'{path}' has a {CONFIG} but no model.safetensors; give the folder that holds the weights too.")


def _open_file(path: Path) -> Source:
    tensors, text = read_tensors(path)
    if METADATA in text:
        facts = parse_described(text[METADATA], str(path))
        if isinstance(facts.get("backbone"), dict):
            return _described(str(path), "file", tensors, facts["backbone"], str(path))
    if "description" in text and any(n.startswith("net.") for n in tensors):
        return _described(str(path), "file", tensors, parse_described(text["description"], str(path)), str(path))
    return Source(str(path), "file", tensors)


def _described(label: str, kind: str, tensors: Tensors, described: Mapping[str, Any], where: str) -> Source:
    """Weights that eyespot saved or exported, with its own description of the net."""
    about = checked_description(described, where)
    if any(n.startswith("net.") for n in tensors):
        tensors = {n.removeprefix("net."): v for n, v in tensors.items() if n.startswith("net.")}
    if about["name"].startswith("module:"):
        reason = (
            f"The backbone of '{label}' is the own module '{about['name'][7:]}'; build one and pass it as backbone."
        )
        return Source(label, kind, tensors, unknown=reason)
    options = dict(about["options"])
    patches = tensors.get("patch_embed.proj.weight")
    if patches is not None and _is_own_vit(about["name"]):  # older descriptions do not say the patch
        options.setdefault("patch", int(patches.shape[-1]))
    net = Architecture(about["name"], options, statistics(about["mean"]), statistics(about["std"]))
    return Source(label, kind, tensors, net)


def _is_own_vit(name: str) -> bool:
    from eyespot.nets import small

    return name in small.NETS and name.startswith("vit")


def _published(name: str) -> Source:
    """The weights that timm or torchvision publish under a name."""
    from eyespot.nets import small

    if name in small.NETS:
        raise UserError(
            f"There are no published weights of '{name}', one of eyespot's own nets; use --backbone {name} for an "
            "untrained one, or start from a run."
        )
    net = backbone(name, image_size=published_size(name), pretrained=True)
    mean, std = (tuple(float(v) for v in value.flatten()) for value in (net.mean, net.std))
    kind = "torchvision" if name.startswith("torchvision/") else "timm"
    return Source(name, kind, net.net.state_dict(), Architecture(name, dict(net.options), mean, std))
