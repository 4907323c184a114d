"""One interface over every encoder: timm and torchvision names, the library's own small nets, any `nn.Module`.

A backbone takes pixels in [0, 1] and normalises them itself, so that views, saved weights and evaluation can never
disagree about it.

    >>> net = backbone("resnet18", image_size=32)          # 3x3 stride-1 stem, no max-pool, as usual at 32 px
    >>> net(torch.rand(2, 3, 32, 32)).shape                # pooled features
    torch.Size([2, 512])
    >>> net.forward_dense(torch.rand(2, 3, 32, 32)).shape  # feature map
    torch.Size([2, 512, 4, 4])
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eyespot.errors import UserError, unknown
from eyespot.nets.architectures import checked_options
from eyespot.nets.files import disk_errors
from eyespot.runs import replacing, write_text

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VERSION = 1
WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"


class Backbone(nn.Module):
    """An encoder of pixels in [0, 1]. Subclasses say how `net` gives features; this one wraps a plain module whose
    forward returns [B, D] or a map [B, D, h, w] (pooled by its mean).

    Attributes:
        embed_dim: D, width of the features.
        stride: pixels per cell of the feature map (0 when there is no map).
        options: JSON-able arguments that rebuild it, see `backbone`.
    """

    mean: Tensor
    std: Tensor
    modality: ClassVar[str] = "image"
    """What `forward` takes, see `eyespot.modality`."""

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        channels: int,
        image_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.net: Any = net
        self.name, self.channels, self.image_size = name, channels, image_size
        self.options = dict(options or {})
        for key, value in (("mean", mean), ("std", std)):
            self.register_buffer(key, _statistics(key, value, channels))
        self.embed_dim, self.stride = self._probe()

    # --- what a subclass may replace --------------------------------------------------------------------------
    def features(self, x: Tensor) -> Tensor:
        """What the net gives before pooling, of pixels in [0, 1]."""
        out = self.net(self.normalize(x))
        if not isinstance(out, Tensor) or out.dim() not in (2, 4):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"The module {self.name} returns {shape}; wrap it so that it returns features [B, D] or [B, D, h, w]."
            )
        return out

    def pool(self, features: Tensor) -> Tensor:
        """Pooled features [B, D] of what `features` gave."""
        return features if features.dim() == 2 else features.mean((2, 3))

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The map [B, D, h, w] of what `features` gave for pictures of `size` (H, W)."""
        if features.dim() == 2:
            raise UserError(f"{self.name} gives one vector a picture and has no feature map; use another backbone.")
        return features

    # --- the interface ----------------------------------------------------------------------------------------
    def normalize(self, x: Tensor) -> Tensor:
        """Pixels [B, C, H, W] in [0, 1], standardised by the backbone's own mean and deviation."""
        if x.shape[1] != self.channels:
            raise UserError(
                f"The pictures have {x.shape[1]} channels but the backbone {self.name} takes {self.channels}; "
                f"build it with channels={x.shape[1]}."
            )
        if not x.is_floating_point():
            raise UserError(f"The pixels are {x.dtype}; a backbone takes floating point numbers in [0, 1].")
        return ((x - self.mean) / self.std).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [B, D] of pixels [B, C, H, W] in [0, 1]."""
        return self.pool(self.features(x))

    def forward_dense(self, x: Tensor) -> Tensor:
        """Feature map [B, D, h, w] of pixels [B, C, H, W] in [0, 1]."""
        return self.feature_map(self.features(x), (x.shape[2], x.shape[3]))

    def describe(self) -> dict[str, Any]:
        """What `backbone.json` holds: all that is needed to rebuild the net."""
        return {
            "version": VERSION,
            "name": self.name,
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": [float(v) for v in self.mean.flatten()],
            "std": [float(v) for v in self.std.flatten()],
            "embed_dim": self.embed_dim,
            "options": self.options,
        }

    def _probe(self) -> tuple[int, int]:
        """Width of the features and stride of the map, by one forward pass in evaluation mode."""
        like = next((p for p in self.net.parameters()), self.mean)
        self.to(like.device)
        side = self.image_size
        pixels = torch.zeros(1, self.channels, side, side, dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad(), evaluating(self):
                features = self.features(pixels)
                width = self.pool(features).shape[1]
                mapped = None if features.dim() == 2 else self.feature_map(features, (side, side))
        except (RuntimeError, AssertionError, IndexError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The backbone {self.name} does not take {self.channels} x {side} x {side} pixels ({reason}); choose "
                "another image_size or backbone."
            ) from error
        return width, 0 if mapped is None else round(side / mapped.shape[-1])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, afterwards every submodule in the mode it had."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _statistics(key: str, value: Sequence[float] | None, channels: int) -> Tensor:
    if value is None:
        imagenet = IMAGENET_MEAN if key == "mean" else IMAGENET_STD
        value = imagenet if channels == 3 else (0.5,) * channels
    if len(value) != channels:
        raise UserError(f"{key} has {len(value)} numbers but there are {channels} channels; give one a channel.")
    if key == "std" and min(value) <= 0:
        raise UserError(f"std has the value {min(value)}; every channel's deviation must be above 0.")
    return torch.tensor([float(v) for v in value]).view(-1, 1, 1)


def backbone(
    name: str | nn.Module,
    *,
    channels: int = 3,
    image_size: int = 224,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Backbone:
    """A backbone by name, or around a module.

    Args:
        name: one of the library's own (`resnet8`, `vit_micro`, see `eyespot.nets.small`), any timm name, a torchvision
            name that timm does not have or `torchvision/NAME`, or an `nn.Module` that returns [B, D] or [B, D, h, w].
        channels: channels of the pictures.
        image_size: side of the pictures in pixels; nets with a fixed size are built for it.
        pretrained: load the weights that timm or torchvision publish (needs the network or their cache).
        mean, std: per channel, of pixels in [0, 1]; default ImageNet's for 3 channels, else 0.5.
        options: for the net itself, such as `drop_path_rate=0.1` or `patch_size=4`; for ResNets `small_stem` (3x3
            stride-1 convolution, no max-pool; None: at sizes up to 64 px when the weights are not pretrained).

    Raises:
        UserError: unknown name (the nearest ones are named), option the net does not take, weights not to be had.
    """
    if channels < 1 or image_size < 1:
        raise UserError(f"channels={channels} and image_size={image_size} must both be at least 1.")
    common: dict[str, Any] = {"channels": channels, "image_size": image_size, "mean": mean, "std": std}
    if isinstance(name, nn.Module):
        return _around(name, pretrained, options, common)
    build = _builder(name)
    if not pretrained:
        return build(name, False, options, common)
    try:
        return build(name, True, options, common)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
        raise UserError(
            f"The pretrained weights of '{name}' cannot be had ({reason}); connect to the network once, or train "
            "from scratch without pretrained."
        ) from error


FAMILIES = ("small", "audio")
"""Modules of `eyespot.nets` with nets of our own: each has NETS, by name, MODALITY and `build`."""
Build = Callable[[str, bool, dict[str, Any], dict[str, Any]], Backbone]


def _builder(name: str) -> Build:
    """Who builds `name`. Imported here: the libraries cost seconds, and the builders' classes derive from Backbone."""
    from eyespot.nets import zoo

    family = _family(name)
    if family is not None:
        return family.build
    if name.startswith("torchvision/"):
        if name.split("/", 1)[1] in zoo.torchvision_names():
            return zoo.build_torchvision
    elif zoo.in_timm(name):
        return zoo.build_timm
    elif name in zoo.torchvision_names():
        return zoo.build_torchvision
    raise unknown("backbone", name, backbone_names())


def _family(name: str) -> Any:
    """The module that has a net of our own by this name, or None."""
    modules = (importlib.import_module(f"eyespot.nets.{family}") for family in FAMILIES)
    return next((module for module in modules if name in module.NETS), None)


def modality_of_name(name: str) -> str:
    """What the net of this name takes, see `eyespot.modality`; an unknown name takes pictures."""
    family = _family(name)
    return "image" if family is None else family.MODALITY


def check_name(name: str) -> None:
    """Nothing, when `backbone` knows the name.

    Raises:
        UserError: it does not; with the nearest names.
    """
    _builder(name)


def backbone_names() -> list[str]:
    """Every name that `backbone` knows: own, timm's, torchvision's (with the prefix too)."""
    from eyespot.nets import zoo

    theirs = zoo.torchvision_names()
    own = [name for family in FAMILIES for name in importlib.import_module(f"eyespot.nets.{family}").NETS]
    return [*own, *zoo.timm_names(), *sorted(theirs), *(f"torchvision/{n}" for n in sorted(theirs))]


def published_size(name: str) -> int:
    """Side in pixels of the pictures that the published weights of a name were made for."""
    from eyespot.nets import zoo

    _builder(name)  # an unknown name ends here
    return zoo.published_size(name)


def _around(module: nn.Module, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> Backbone:
    if isinstance(module, Backbone):
        return module
    if pretrained or options:
        given = "pretrained" if pretrained else next(iter(options))
        raise UserError(f"{given} does not apply to an own module; set it up before it is passed.")
    return Backbone(module, name=f"module:{type(module).__name__}", **common)


# --- files --------------------------------------------------------------------------------------------------
def save_backbone(backbone: Backbone, folder: str | Path) -> None:
    """Writes `backbone.safetensors` and `backbone.json` into `folder`; each file is replaced in one go."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # clones: safetensors refuses tensors that share memory or are not contiguous
    tensors = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in backbone.state_dict().items()
    }
    description = json.dumps(backbone.describe(), indent=1)
    with replacing(folder / WEIGHTS) as part, disk_errors(part):
        save_file(tensors, part, {"description": description})
    write_text(folder / DESCRIPTION, description + "\n")


def load_backbone(folder: str | Path, module: nn.Module | None = None) -> Backbone:
    """The backbone saved in `folder`.

    Args:
        folder: holds `backbone.json` and `backbone.safetensors`.
        module: for an own `nn.Module`, which only its author can build, a fresh one of the same kind.

    Raises:
        UserError: files missing or damaged, or weights that do not fit the net (names what does not match).
    """
    folder = Path(folder)
    described = _read_description(folder / DESCRIPTION)
    common = {k: described[k] for k in ("channels", "image_size", "mean", "std")}
    name, options = described["name"], described["options"]
    if name.startswith("module:") and module is None:
        raise UserError(
            f"{folder} holds the weights of the own module '{name[7:]}'; build one and pass it as "
            "load_backbone(folder, module=...)."
        )
    net = backbone(module, **common) if module is not None else backbone(name, **common, **options)
    load_weights(net, folder / WEIGHTS)
    return net


def described_name(folder: Path) -> str:
    """The name of the net that is saved in `folder`."""
    return _read_description(folder / DESCRIPTION)["name"]


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {path.parent}; give a run folder or a folder of saved weights.")
    try:
        described = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON ({error}); the file is damaged.") from error
    return checked_description(described, str(path))


def checked_description(described: Any, where: str) -> dict[str, Any]:
    """What `Backbone.describe` gave and a file brought back; `where` names the file.

    Raises:
        UserError: parts are missing or of another kind, it is newer, or it asks for more than a net.
    """
    kinds: dict[str, Any] = {"version": int, "name": str, "channels": int, "image_size": int}
    kinds |= {"mean": list, "std": list, "options": dict}
    found = described if isinstance(described, dict) else {}
    wrong = sorted(key for key, kind in kinds.items() if not isinstance(found.get(key), kind))
    if wrong:
        raise UserError(f"{where} lacks {', '.join(wrong)}; it does not describe a backbone.")
    if found["version"] > VERSION:
        raise UserError(f"{where} has version {found['version']}, newer than {VERSION}; update eyespot.")
    checked_options(found["options"], where)
    return found


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Loads a safetensors file into the backbone, strictly: names and shapes must all agree."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The weights {path} do not exist; give a folder that holds {WEIGHTS}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}).") from error
    wanted = backbone.state_dict()
    wrong = [f"{k} is missing" for k in wanted if k not in tensors]
    wrong += [f"{k} is not in the net" for k in tensors if k not in wanted]
    wrong += [
        f"{k} is {list(tensors[k].shape)} instead of {list(v.shape)}"
        for k, v in wanted.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"The weights {path} do not fit {backbone.name}: {', '.join(wrong[:3])}{more}; "
            "build the backbone with the options it was saved with."
        )
    backbone.load_state_dict(tensors)
