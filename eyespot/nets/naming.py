"""Names of the same tensors in other libraries: timm's are the common ones, the others are translated to and from them.

ResNets: torchvision and timm share their names, transformers has its own. Vision transformers: timm, torchvision and
transformers (ViT, DINOv2 with and without registers) differ, and transformers keeps query, key and value apart.
Both spellings of transformers are read, that of its files and that of its modules since version 5; the files' is
written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Scheme:
    """Pairs of templates, ours (timm's) first. {0} and {1} stand for a number that timm counts from 0 or from 1 and the
    other library from 0; a name may go on after a dot."""

    name: str
    pairs: tuple[tuple[str, str], ...]

    def from_timm(self, name: str) -> str | None:
        """The other library's name of a timm name; None when the scheme has none."""
        return _translate(name, self.pairs, -1)

    def to_timm(self, name: str) -> str | None:
        return _translate(name, tuple((theirs, ours) for ours, theirs in self.pairs), 1)


def _translate(name: str, pairs: Iterable[tuple[str, str]], sign: int) -> str | None:
    for source, target in pairs:
        offsets = [int(base) for base in re.findall(r"\{([01])\}", source if sign < 0 else target)]
        pattern = re.sub(r"\\\{[01]\\\}", r"(\\d+)", re.escape(source))
        found = re.fullmatch(pattern + r"((?:\..+)?)", name)
        if found:
            numbers = [int(n) + sign * o for n, o in zip(found.groups()[:-1], offsets, strict=True)]
            return re.sub(r"\{[01]\}", "{}", target).format(*numbers) + found.groups()[-1]
    return None


HF_RESNET = Scheme(
    "transformers ResNet",
    (
        ("conv1", "embedder.embedder.convolution"),
        ("bn1", "embedder.embedder.normalization"),
        ("layer{1}.{0}.downsample.0", "encoder.stages.{1}.layers.{0}.shortcut.convolution"),
        ("layer{1}.{0}.downsample.1", "encoder.stages.{1}.layers.{0}.shortcut.normalization"),
        ("layer{1}.{0}.conv{1}", "encoder.stages.{1}.layers.{0}.layer.{1}.convolution"),
        ("layer{1}.{0}.bn{1}", "encoder.stages.{1}.layers.{0}.layer.{1}.normalization"),
    ),
)
_HF_EMBEDDINGS = (
    ("cls_token", "embeddings.cls_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
)
_HF_ATTENTION = (
    ("blocks.{0}.attn.q", "encoder.layer.{0}.attention.attention.query"),
    ("blocks.{0}.attn.k", "encoder.layer.{0}.attention.attention.key"),
    ("blocks.{0}.attn.v", "encoder.layer.{0}.attention.attention.value"),
    ("blocks.{0}.attn.proj", "encoder.layer.{0}.attention.output.dense"),
)
HF_VIT = Scheme(
    "transformers ViT",
    (
        *_HF_EMBEDDINGS,
        *_HF_ATTENTION,
        ("blocks.{0}.norm1", "encoder.layer.{0}.layernorm_before"),
        ("blocks.{0}.norm2", "encoder.layer.{0}.layernorm_after"),
        ("blocks.{0}.mlp.fc1", "encoder.layer.{0}.intermediate.dense"),
        ("blocks.{0}.mlp.fc2", "encoder.layer.{0}.output.dense"),
    ),
)
HF_DINOV2 = Scheme(
    "transformers DINOv2",
    (
        *_HF_EMBEDDINGS,
        *_HF_ATTENTION,
        ("blocks.{0}.ls1.gamma", "encoder.layer.{0}.layer_scale1.lambda1"),
        ("blocks.{0}.ls2.gamma", "encoder.layer.{0}.layer_scale2.lambda1"),
        ("blocks.{0}.norm1", "encoder.layer.{0}.norm1"),
        ("blocks.{0}.norm2", "encoder.layer.{0}.norm2"),
        ("blocks.{0}.mlp.fc1", "encoder.layer.{0}.mlp.fc1"),
        ("blocks.{0}.mlp.fc2", "encoder.layer.{0}.mlp.fc2"),
    ),
)
TORCHVISION_VIT = Scheme(
    "torchvision ViT",
    (
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj", "conv_proj"),
        ("blocks.{0}.norm1", "encoder.layers.encoder_layer_{0}.ln_1"),
        ("blocks.{0}.norm2", "encoder.layers.encoder_layer_{0}.ln_2"),
        ("blocks.{0}.attn.qkv.weight", "encoder.layers.encoder_layer_{0}.self_attention.in_proj_weight"),
        ("blocks.{0}.attn.qkv.bias", "encoder.layers.encoder_layer_{0}.self_attention.in_proj_bias"),
        ("blocks.{0}.attn.proj", "encoder.layers.encoder_layer_{0}.self_attention.out_proj"),
        ("blocks.{0}.mlp.fc1", "encoder.layers.encoder_layer_{0}.mlp.0"),
        ("blocks.{0}.mlp.fc2", "encoder.layers.encoder_layer_{0}.mlp.3"),
        ("norm", "encoder.ln"),
    ),
)
# how transformers 5 names its modules, and older files of torchvision and DINOv2: only read
_ALSO_READ = Scheme(
    "",
    (
        ("blocks.{0}.attn.q", "encoder.layer.{0}.attention.q_proj"),
        ("blocks.{0}.attn.k", "encoder.layer.{0}.attention.k_proj"),
        ("blocks.{0}.attn.v", "encoder.layer.{0}.attention.v_proj"),
        ("blocks.{0}.attn.proj", "encoder.layer.{0}.attention.o_proj"),
        ("blocks.{0}.mlp.fc1", "encoder.layer.{0}.mlp.fc1"),
        ("blocks.{0}.mlp.fc2", "encoder.layer.{0}.mlp.fc2"),
        ("blocks.{0}.mlp.fc1", "encoder.layers.encoder_layer_{0}.mlp.linear_1"),
        ("blocks.{0}.mlp.fc2", "encoder.layers.encoder_layer_{0}.mlp.linear_2"),
        ("reg_token", "register_tokens"),
    ),
)
FOREIGN = {
    "encoder.stages.": (HF_RESNET,),
    "embeddings.patch_embeddings.": (HF_VIT, HF_DINOV2, _ALSO_READ),
    "conv_proj.": (TORCHVISION_VIT, _ALSO_READ),
    "patch_embed.": (Scheme("timm", ()), Scheme("", _ALSO_READ.pairs[-1:])),
}
"""What begins a name in files of a library, and how its names are read. The first fitting line counts."""


def naming_of(names: Iterable[str]) -> str:
    """Whose names these are: "transformers ResNet", ...; "timm" for all that need no translation."""
    key = _key(names)
    if key is None:
        return "timm"
    dinov2 = key.startswith("embeddings") and any(".layer_scale1." in n for n in names)
    return HF_DINOV2.name if dinov2 else FOREIGN[key][0].name


def _key(names: Iterable[str]) -> str | None:
    listed = list(names)
    return next((key for key in FOREIGN if any(n.startswith(key) for n in listed)), None)


def timm_names(names: Iterable[str]) -> dict[str, str]:
    """The timm name of each name; names that no scheme knows stay as they are."""
    listed = list(names)
    key = _key(listed)
    if key is None:
        return {n: n for n in listed}
    modules = re.compile(r"^layers\.(\d+)\.")  # transformers 5 left "encoder.layer" out of its ViT

    def one(name: str) -> str:
        spelled = modules.sub(r"encoder.layer.\1.", name) if key.startswith("embeddings") else name
        return next((t for t in (s.to_timm(spelled) for s in FOREIGN[key]) if t is not None), name)

    return {n: one(n) for n in listed}


def to_timm(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors under timm's names; query, key and value become one."""
    names = timm_names(tensors)
    named = {names[n]: t for n, t in tensors.items()}
    for name in [n for n in named if re.search(r"\.attn\.q\.(weight|bias)$", n)]:
        parts = [name.replace(".attn.q.", f".attn.{p}.") for p in "qkv"]
        values = [named[p] for p in parts if p in named]
        if len(values) == 3 and len({v.shape for v in values}) == 1 and values[0].dim():
            named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(values)
            for part in parts:
                del named[part]
    return named


def from_timm(tensors: Mapping[str, Tensor], scheme: Scheme) -> Tensors | None:
    """Tensors under another library's names; None when one of them has no name there."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        pieces = [(name, tensor)]
        if ".attn.qkv." in name and scheme is not TORCHVISION_VIT:
            pieces = [(name.replace(".qkv.", f".{p}."), v) for p, v in zip("qkv", tensor.chunk(3), strict=True)]
        for piece, value in pieces:
            theirs = scheme.from_timm(piece)
            if theirs is None:
                return None
            named[theirs] = value
    return named
