"""Which net weights belong to: guessed from the shapes of tensors, or said by the config.json of transformers or timm.

A guess is only ever shown: how many heads an attention has cannot be seen in its weights. A config.json is taken at its
word, and what it cannot say in the terms of a timm net is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eyespot.errors import UserError
from eyespot.nets.naming import Tensors

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
"""Kind of block and blocks a stage of the plain ResNets (He et al., CVPR 2016)."""
VARIANTS: dict[tuple[str, tuple[int, ...]], str] = {
    ("resnet50", (128, 4, 3, 3)): "resnext50_32x4d",
    ("resnet50", (128, 128, 3, 3)): "wide_resnet50_2",
}
"""Nets of the same depth by the shape of their first 3x3 convolution."""
VITS = {(192, 12): "vit_tiny", (384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large"}
"""Width and depth of the usual vision transformers."""
OWN_VITS = {(64, 3): "vit_nano", (128, 4): "vit_micro", (192, 8): "vit_mini"}
"""Those of eyespot's small ones, see `eyespot.nets.small`."""
HF_VITS = ("vit", "vit_mae", "vit_msn")
HF_DINOV2 = {"dinov2": "vit_base_patch14_dinov2", "dinov2_with_registers": "vit_base_patch14_reg4_dinov2"}
HF_KNOWN = ("resnet", *HF_VITS, *HF_DINOV2, "timm_wrapper")

LARGEST = 65_536
"""Most layers, heads or width that a description may ask for."""
FACTORY = ("pretrained", "weights", "checkpoint", "cache")
"""Arguments that begin so make a library fetch or open files; no description of a net may carry them."""
FACTORY_WORDS = ("features_only", "out_indices", "scriptable", "exportable", "no_jit", "progress", "kwargs_filter")


@dataclass(frozen=True)
class Architecture:
    """A net by name and options, as `eyespot.nets.backbones.backbone` takes them, and what its weights expect."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    words: str = ""
    notes: tuple[str, ...] = ()


# --- from the shapes --------------------------------------------------------------------------------------------------
def guess(tensors: Tensors) -> Architecture | None:
    """The ResNet or vision transformer whose tensors, under timm's names, have these shapes."""
    return _guess_resnet(tensors) or _guess_vit(tensors)


def _guess_resnet(tensors: Tensors) -> Architecture | None:
    if not {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= set(tensors):
        return None
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    depths = tuple(_count(tensors, f"layer{stage}.") for stage in (1, 2, 3, 4))
    name = RESNETS.get((kind, depths))
    middle = tuple(tensors["layer1.0.conv2.weight"].shape)
    if kind == "bottleneck" and middle != (64, 64, 3, 3):
        name = VARIANTS.get((name or "", middle))
    return None if name is None else Architecture(name, words=f"a {name}")


def _guess_vit(tensors: Tensors) -> Architecture | None:
    patches = tensors.get("patch_embed.proj.weight")
    if patches is None or patches.dim() != 4 or "blocks.0.norm1.weight" not in tensors:
        return None
    width, patch, depth = patches.shape[0], patches.shape[-1], _count(tensors, "blocks.")
    plain = "blocks.0.ls1.gamma" not in tensors
    words = f"a vision transformer of width {width}, {depth} blocks and patches of {patch} pixels"
    if not plain or (width, depth) not in VITS | OWN_VITS:
        return None
    own = OWN_VITS.get((width, depth))
    return Architecture(own or f"{VITS[width, depth]}_patch{patch}_224", words=words)


def _count(tensors: Tensors, prefix: str) -> int:
    """How many numbered parts stand behind a prefix."""
    return len({n[len(prefix) :].partition(".")[0] for n in tensors if n.startswith(prefix)})


# --- from a config.json -----------------------------------------------------------------------------------------------
def checked_options(options: Any, where: str) -> dict[str, Any]:
    """Options of a net from a file: numbers, words and lists, and none that makes a library fetch or open files.

    Raises:
        UserError: another kind of value, or such an option.
    """
    if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise UserError(f"The options of the net in '{where}' are no JSON object; fetch or save it again.")
    for key, value in options.items():
        if isinstance(value, int) and value > LARGEST:
            raise UserError(f"'{where}' has {key}={value}, more than {LARGEST:,}; it describes no net.")
        if key.startswith(FACTORY) or key in FACTORY_WORDS or not _plain(value):
            raise UserError(f"'{where}' has the option '{key}', which describes no net; it was not used.")
    return options


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, int | float | str | bool)


def from_config(config: Mapping[str, Any], where: str) -> Architecture | None:
    """The timm net that a config.json of transformers or timm describes; None for a kind that is not known.

    Raises:
        UserError: a known kind with something that timm's net does not have.
    """
    kind = config.get("model_type")
    try:
        if kind == "resnet":
            return _from_resnet(config, where)
        if kind in HF_VITS:
            return _from_vit(config, where)
        if kind in HF_DINOV2:
            return _from_dinov2(config, where)
        if kind == "timm_wrapper" or (kind is None and "architecture" in config):
            return _from_timm(config, where)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{where}' lacks or garbles {error}; fetch or save it again.") from error
    return None


def _refuse(where: str, key: str, value: Any) -> UserError:
    text = json.dumps(value)[:80]
    return UserError(f"'{where}' says {key} {text}, which no timm net has; name the net with --backbone.")


def _expect(config: Mapping[str, Any], where: str, **wanted: Sequence[Any]) -> None:
    for key, valid in wanted.items():
        if config.get(key, valid[0]) not in valid:
            raise _refuse(where, key, config[key])


def _from_resnet(config: Mapping[str, Any], where: str) -> Architecture:
    _expect(
        config,
        where,
        hidden_act=("relu",),
        downsample_in_first_stage=(False,),
        downsample_in_bottleneck=(False,),
        embedding_size=(64,),
        layer_type=("bottleneck", "basic"),
    )
    kind = config.get("layer_type", "bottleneck")
    depths = tuple(int(d) for d in config.get("depths", (3, 4, 6, 3)))
    expansion = 4 if kind == "bottleneck" else 1
    widths = [64 * expansion * 2**stage for stage in range(4)]
    _expect(config, where, hidden_sizes=(widths,))
    options: dict[str, Any] = {"small_stem": False}
    if (kind, depths) not in RESNETS:
        options["layers"] = list(depths)
    base = "resnet50" if kind == "bottleneck" else "resnet18"
    return Architecture(RESNETS.get((kind, depths), base), options)


def _vit_options(config: Mapping[str, Any], patch: int) -> dict[str, Any]:
    return {
        "embed_dim": int(config.get("hidden_size", 768)),
        "depth": int(config.get("num_hidden_layers", 12)),
        "num_heads": int(config.get("num_attention_heads", 12)),
        "patch_size": int(config.get("patch_size", patch)),
        "qkv_bias": bool(config.get("qkv_bias", True)),
    }


def _norm_note(config: Mapping[str, Any], usual: float) -> tuple[str, ...]:
    eps = float(config.get("layer_norm_eps", usual))
    return () if eps == 1e-6 else (f"its layer norms have epsilon {eps:g}, the net's have 1e-06",)


def _from_vit(config: Mapping[str, Any], where: str) -> Architecture:
    _expect(config, where, hidden_act=("gelu",))
    options = _vit_options(config, 16)
    options["mlp_ratio"] = int(config.get("intermediate_size", 3072)) / options["embed_dim"]
    return Architecture("vit_base_patch16_224", options, notes=_norm_note(config, 1e-12))


def _from_dinov2(config: Mapping[str, Any], where: str) -> Architecture:
    _expect(config, where, hidden_act=("gelu",), use_swiglu_ffn=(False,))
    options = _vit_options(config, 14)
    options["mlp_ratio"] = float(config.get("mlp_ratio", 4))
    if config["model_type"] == "dinov2_with_registers":
        options["reg_tokens"] = int(config.get("num_register_tokens", 4))
    return Architecture(HF_DINOV2[config["model_type"]], options, notes=_norm_note(config, 1e-6))


def _from_timm(config: Mapping[str, Any], where: str) -> Architecture:
    given = checked_options(config.get("model_args") or {}, where)
    options = {k: v for k, v in given.items() if k not in ("img_size", "in_chans", "num_classes", "dynamic_img_size")}
    published = config.get("pretrained_cfg") or {}
    mean, std = statistics(published.get("mean")), statistics(published.get("std"))
    return Architecture(str(config["architecture"]), options, mean, std)


def statistics(value: Any) -> tuple[float, ...] | None:
    """A mean or deviation for each channel, when that is what `value` is."""
    listed = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    return tuple(float(v) for v in value) if listed and value else None
