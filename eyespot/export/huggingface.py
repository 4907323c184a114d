"""A Hugging Face folder: config.json, model.safetensors and preprocessor_config.json, for transformers' AutoModel.

ResNets and plain vision transformers become transformers' own; every other net that timm has goes through its wrapper
of timm's nets.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eyespot.errors import MissingExtra
from eyespot.export.foreign import is_vit, refusal, vit_shape
from eyespot.export.timm import timm_net
from eyespot.export.written import Written, column, equal_tensors, facts, weight_state
from eyespot.nets.architectures import RESNETS
from eyespot.nets.backbones import Backbone
from eyespot.nets.files import disk_errors
from eyespot.nets.naming import HF_DINOV2, HF_RESNET, HF_VIT, Tensors, from_timm, to_timm
from eyespot.nets.vit import ViTBackbone

WRAPPED = "timm_model."


@dataclass
class Said:
    """The net in transformers' words."""

    config: dict[str, Any]
    tensors: Tensors
    read: str
    """Features of the model's output `out`, in Python."""
    reading: Callable[[Any], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    """Of AutoModel.from_pretrained."""


def write(net: Backbone, path: Path, about: dict[str, Any], _any_size: bool) -> Written:
    """The folder, and the model that transformers loaded from it.

    Raises:
        MissingExtra: transformers is not installed.
        UserError: it does not have the net.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "huggingface", "--format huggingface") from error
    said = _resnet(net) or _vit(net) or _wrapped(net)
    path.mkdir(exist_ok=True)
    _write_files(path, said, facts(net, "huggingface", False, about))
    with _quiet():
        model, loading = transformers.AutoModel.from_pretrained(
            path, local_files_only=True, output_loading_info=True, **said.options
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading.get(kind):
            raise refusal(net, "transformers", f"{kind}: {', '.join(sorted(str(k) for k in loading[kind])[:3])}")
    model.eval()

    def features(pixels: Tensor) -> Tensor:
        return said.reading(model(net.normalize(pixels)))

    ours = to_timm(weight_state(net))
    theirs = to_timm({k.removeprefix(WRAPPED): v for k, v in model.state_dict().items()})
    matched = equal_tensors(ours, _without_class_position(theirs, ours))
    notes = [f"its model_type is {said.config['model_type']}"]
    reader = f"transformers {transformers.__version__}"
    return Written(reader, features, matched, len(ours), _usage(path, net, said), notes=notes)


# --- in transformers' words -------------------------------------------------------------------------------------------
def _resnet(net: Backbone) -> Said | None:
    """A plain ResNet of timm or torchvision with the usual stem; None for all others."""
    name = net.name.removeprefix("torchvision/").partition(".")[0]
    usual = set(net.options) <= {"small_stem", "layers", "zero_init_last", "drop_path_rate"}
    if name not in RESNETS.values() or not usual or net.options.get("small_stem"):
        return None
    state = weight_state(net)
    tensors = from_timm(state, HF_RESNET)
    if tensors is None:
        return None
    bottleneck = "layer1.0.conv3.weight" in state
    stages = [sorted({n.split(".")[1] for n in state if n.startswith(f"layer{s}.")}) for s in (1, 2, 3, 4)]
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": net.channels,
        "embedding_size": 64,
        "hidden_sizes": [64 * (4 if bottleneck else 1) * 2**stage for stage in range(4)],
        "depths": [len(blocks) for blocks in stages],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    return Said(config, tensors, "out.pooler_output.flatten(1)", lambda out: out.pooler_output.flatten(1))


def _vit(net: Any) -> Said | None:
    """A vision transformer with a class token, as ViT, DINOv2 or DINOv2 with registers; None for all others."""
    if not is_vit(net):
        return None
    state = to_timm(weight_state(net))
    pooling = _vit_pooling(net)
    if "cls_token" not in state or pooling is None:
        return None
    config = _vit_config(net, state)
    if "blocks.0.ls1.gamma" not in state:
        tensors = from_timm(state, HF_VIT) if "reg_token" not in state and _class_has_position(net) else None
        kind, model, options = "vit", "ViTModel", {"add_pooling_layer": False}
    else:
        tensors, kind, model = _as_dinov2(net, state)
        options = {}
    if tensors is None:
        return None
    config |= {"model_type": kind, "architectures": [model]}
    return Said(config, tensors, *pooling, options)


def _vit_pooling(net: Any) -> tuple[str, Callable[[Any], Tensor]] | None:
    """How features are read from the tokens after the last norm."""
    inner = net.net
    if not isinstance(net, ViTBackbone):
        return "out.last_hidden_state[:, 0]", lambda out: out.last_hidden_state[:, 0]
    block, prefix = inner.blocks[0], net.prefix
    gelu = isinstance(getattr(block.mlp, "act", None), nn.GELU) and block.mlp.act.approximate == "none"
    plain = gelu and all(isinstance(m, nn.Identity) for m in (inner.norm_pre, inner.fc_norm))
    if not plain or not isinstance(inner.norm, nn.LayerNorm) or inner.attn_pool is not None:
        return None
    if net.pooling == "native" and inner.global_pool == "token":
        return "out.last_hidden_state[:, 0]", lambda out: out.last_hidden_state[:, 0]
    if net.pooling == "avg" or (inner.global_pool == "avg" and not inner.pool_include_prefix):
        return f"out.last_hidden_state[:, {prefix}:].mean(1)", lambda out: out.last_hidden_state[:, prefix:].mean(1)
    return None


def _class_has_position(net: Any) -> bool:
    return not getattr(net.net, "no_embed_class", False)


def _vit_config(net: Any, state: Tensors) -> dict[str, Any]:
    shape = vit_shape(net)
    norm = net.net.norm if isinstance(net, ViTBackbone) else net.net.encoder.ln
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.hidden,
        "mlp_ratio": shape.hidden / shape.width if shape.hidden % shape.width else shape.hidden // shape.width,
        "patch_size": shape.patch,
        "image_size": net.image_size,
        "num_channels": net.channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "hidden_act": "gelu",
        "layer_norm_eps": norm.eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _as_dinov2(net: Any, state: Tensors) -> tuple[Tensors | None, str, str]:
    """With layer scale. transformers has a mask token besides, and a position of the class token, where timm with
    registers has none: both are zero."""
    registers = "reg_token" in state
    if _class_has_position(net) is registers:
        return None, "", ""
    width = state["cls_token"].shape[-1]
    if registers:
        state = state | {"pos_embed": torch.cat([torch.zeros(1, 1, width), state["pos_embed"]], 1)}
    tensors = from_timm(state, HF_DINOV2)
    if tensors is not None:
        tensors["embeddings.mask_token"] = torch.zeros(1, width)
    kind = "dinov2_with_registers" if registers else "dinov2"
    return tensors, kind, "Dinov2WithRegistersModel" if registers else "Dinov2Model"


def _without_class_position(theirs: Tensors, ours: Tensors) -> Tensors:
    have, want = theirs.get("pos_embed"), ours.get("pos_embed")
    if have is not None and want is not None and have.shape[1] == want.shape[1] + 1 and not have[:, 0].any():
        return theirs | {"pos_embed": have[:, 1:]}
    return theirs


def _wrapped(net: Backbone) -> Said:
    """Any net that timm builds, by transformers' wrapper."""
    foreign = timm_net(net, "transformers")
    if foreign.steps:
        raise refusal(net, "transformers", "its stem for small pictures cannot be said in a config")
    shape = [net.channels, net.image_size, net.image_size]
    published = {"input_size": shape, "mean": net.mean.flatten().tolist(), "std": net.std.flatten().tolist()}
    published |= {"interpolation": "bilinear", "crop_pct": 1.0 if net.image_size <= 64 else 0.875, "num_classes": 0}
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": foreign.architecture,
        "model_args": foreign.arguments,
        "num_classes": 0,
        "num_features": net.embed_dim,
        "pretrained_cfg": published | {"first_conv": "", "classifier": ""},
    }
    read = foreign.read.replace("net.forward_features(x)", "out.last_hidden_state").replace(
        "net(x)", "out.pooler_output"
    )
    if "net." in read:
        raise refusal(net, "transformers", "its pooling cannot be said in a config")
    pooled = "pooler_output" in read

    def reading(out: Any) -> Tensor:
        if pooled:
            return out.pooler_output
        return foreign.reading(_Features(), out.last_hidden_state)

    return Said(config, to_timm(weight_state(net)), read, reading)


class _Features:
    """Stands where `foreign.reading` asks timm's net for its features, which the wrapper has given already."""

    @staticmethod
    def forward_features(features: Tensor) -> Tensor:
        return features


# --- files ------------------------------------------------------------------------------------------------------------
def _write_files(path: Path, said: Said, known: dict[str, Any]) -> None:
    config = said.config | {"dtype": "float32", "eyespot": known | {"features": said.read}}
    size = known["image_size"]
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": known["channels"] == 3,
        "do_resize": True,
        "size": {"shortest_edge": known["resize_shorter_side"]},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": known["mean"],
        "image_std": known["std"],
    }
    for name, value in (("config.json", config), ("preprocessor_config.json", preprocessing)):
        (path / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    with disk_errors(path):
        save_file({k: v.contiguous() for k, v in said.tensors.items()}, path / "model.safetensors", {"format": "pt"})


def _usage(path: Path, net: Backbone, said: Said) -> str:
    options = "".join(f", {k}={v!r}" for k, v in said.options.items())
    mean, std = (column(v.flatten().tolist()) for v in (net.mean, net.std))
    return (
        "import torch\nfrom transformers import AutoModel\n\n"
        f'net = AutoModel.from_pretrained("{path.name}"{options})\n'
        f"mean, std = {mean}, {std}\n"
        f"out = net((pixels - mean) / std)  # pixels [B, {net.channels}, H, W] in [0, 1]\n"
        f"features = {said.read}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers prints a bar and a table when it loads; what they would say is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
