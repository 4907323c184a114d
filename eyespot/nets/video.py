"""One interface over the encoders of clips, and what they are called.

A clip is [T, C, H, W] as the data holds it, so a batch is [B, T, C, H, W]: frames are the second axis everywhere, and
the nets turn them behind the channels for themselves. Pixels are in [0, 1]; the backbone normalises.

    >>> net = video_backbone("r3d_10", image_size=56)
    >>> net(torch.rand(2, 8, 3, 56, 56)).shape                 # pooled over time and space
    torch.Size([2, 128])
    >>> net.forward_volume(torch.rand(2, 8, 3, 56, 56)).shape  # [B, D, t, h, w]
    torch.Size([2, 128, 1, 4, 4])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eyespot.errors import UserError, nearest, unknown
from eyespot.nets.backbones import Backbone, evaluating


class VideoBackbone(Backbone):
    """An encoder of clips [B, T, C, H, W] in [0, 1], around a net that takes normalised [B, C, T, H, W] and gives a
    volume [B, D, t, h, w] or features [B, D].

    Attributes:
        frames: T that it is built and probed for; convolutional nets and the transformers take others too.
        stride: pixels per cell of the volume; `time_stride`: frames per cell.
    """

    modality: ClassVar[str] = "video"

    def __init__(self, net: nn.Module, *, frames: int = 16, **common: Any):
        if frames < 1:
            raise UserError(f"frames={frames} must be at least 1.")
        self.frames = frames
        self.time_stride = 0
        super().__init__(net, **common)

    def normalize(self, x: Tensor) -> Tensor:
        """Clips [B, T, C, H, W] in [0, 1], standardised."""
        if x.dim() != 5:
            raise UserError(f"The backbone {self.name} takes clips [B, T, C, H, W], not {list(x.shape)}.")
        if x.shape[2] != self.channels:
            raise UserError(
                f"The clips have {x.shape[2]} channels but the backbone {self.name} takes {self.channels}; build it "
                f"with channels={x.shape[2]} (clips are [B, T, C, H, W])."
            )
        if not x.is_floating_point():
            raise UserError(f"The pixels are {x.dtype}; a backbone takes floating point numbers in [0, 1].")
        return ((x - self.mean) / self.std).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """The volume [B, D, t, h, w], or [B, D] of a net that has none."""
        # a quarter faster on a CPU than channels first, whatever the layout of the weights
        pixels = self.normalize(x).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        out = self.net(pixels)
        if not isinstance(out, Tensor) or out.dim() not in (2, 5):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"The module {self.name} returns {shape}; wrap it so that it returns [B, D] or [B, D, t, h, w]."
            )
        return out

    def pool(self, features: Tensor) -> Tensor:
        return features if features.dim() == 2 else features.mean((2, 3, 4))

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return self._volume(features).mean(2)

    def forward_volume(self, x: Tensor) -> Tensor:
        """Features [B, D, t, h, w] of clips [B, T, C, H, W] in [0, 1]."""
        return self._volume(self.features(x))

    def forward_dense(self, x: Tensor) -> Tensor:
        """Feature map [B, D, h, w] of clips [B, T, C, H, W], the mean over time."""
        return self.feature_map(self.features(x), (x.shape[3], x.shape[4]))

    def _volume(self, features: Tensor) -> Tensor:
        if features.dim() == 2:
            raise UserError(f"{self.name} gives one vector a clip and has no feature map; use another backbone.")
        return features

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        return described | {"modality": self.modality, "options": self.options | {"frames": self.frames}}

    def _probe(self) -> tuple[int, int]:
        like = next((p for p in self.net.parameters()), self.mean)
        self.to(like.device)
        side = self.image_size
        clip = torch.zeros(1, self.frames, self.channels, side, side, dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad(), evaluating(self):
                features = self.features(clip)
                width = self.pool(features).shape[1]
        except (RuntimeError, AssertionError, IndexError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The backbone {self.name} does not take {self.frames} frames of {side} x {side} pixels ({reason}); "
                "choose another image_size, frames or backbone."
            ) from error
        if features.dim() == 2:
            return width, 0
        self.time_stride = max(1, round(self.frames / features.shape[2]))
        return width, round(side / features.shape[-1])


# --- by name ----------------------------------------------------------------------------------------------------------
MODALITY = "video"
NETS: dict[str, dict[str, Any]] = {
    "r3d_10": {"width": 16, "blocks": (1, 1, 1, 1)},
    "r3d_18": {"width": 64, "blocks": (2, 2, 2, 2)},
    "r3d_50": {"width": 64, "blocks": (3, 4, 6, 3)},
    "r2plus1d_10": {"width": 16, "blocks": (1, 1, 1, 1), "factored": True},
    "r2plus1d_18": {"width": 64, "blocks": (2, 2, 2, 2), "factored": True},
    "s3dg": {"width": 0.25, "gating": True},
    "c3d_light": {"width": 16},
    "video_vit_nano": {"dim": 64, "depth": 3, "heads": 2},
    "video_vit_micro": {"dim": 128, "depth": 4, "heads": 4},
    "video_vit_small": {"dim": 384, "depth": 12, "heads": 6},
    "video_vit_base": {"dim": 768, "depth": 12, "heads": 12},
}
"""The nets by name and their arguments. Small ones run on one core: r3d_10 has a quarter of R3D's width and a block a
stage, c3d_light a quarter of the paper's (`width=64`), s3dg too (`width=1`)."""
DEFAULT = "r3d_10"
FRAMES = 16


def _kind(name: str) -> Callable[..., nn.Module]:
    from eyespot.nets import video_cnn, video_vit

    if name.startswith("video_vit"):
        return video_vit.TubeletViT
    special = {"r3d_50": video_cnn.SlowR3D, "s3dg": video_cnn.S3D, "c3d_light": video_cnn.LightC3D}
    return special.get(name, video_cnn.R3D)


def build(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> VideoBackbone:
    """One of `NETS`; `options` change its arguments and `frames`, the length of a clip that it is tried on."""
    if pretrained:
        raise UserError(f"There are no pretrained weights of '{name}'; train it, or pass a module of your own.")
    make, options = _kind(name), dict(options)
    frames = int(options.pop("frames", FRAMES))
    valid = [p for p in inspect.signature(make).parameters if p not in ("channels", "image_size")]
    for option in options:
        if option not in valid:
            raise UserError(f"'{name}' has no option '{option}'; {nearest(option, [*valid, 'frames'])}")
    # a description comes back from JSON with lists
    arguments = NETS[name] | {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    sizes = {"image_size": common["image_size"], "frames": frames} if name.startswith("video_vit") else {}
    return VideoBackbone(
        make(common["channels"], **arguments, **sizes), name=name, frames=frames, options=options, **common
    )


def video_backbone(
    name: str | nn.Module = DEFAULT,
    *,
    channels: int = 3,
    image_size: int = 56,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> VideoBackbone:
    """An encoder of clips by name, or around a module that takes normalised [B, C, T, H, W].

    Args:
        name: one of `NETS`.
        channels, image_size: of a frame.
        mean, std: per channel, of pixels in [0, 1]; default ImageNet's for 3 channels, else 0.5.
        options: `frames`, and of the net: `width`, `blocks` of the convolutional ones; `dim`, `depth`, `heads`,
            `patch`, `tubelet` of the transformers.

    Raises:
        UserError: unknown name (the nearest ones are named), or an option that the net does not take.
    """
    if isinstance(name, VideoBackbone):
        return name
    common: dict[str, Any] = {"channels": channels, "image_size": image_size, "mean": mean, "std": std}
    if isinstance(name, nn.Module):
        return VideoBackbone(name, name=f"module:{type(name).__name__}", **options, **common)
    if name not in NETS:
        raise unknown("backbone of clips", name, NETS)
    if min(channels, image_size) < 1:
        raise UserError(f"channels={channels} and image_size={image_size} must both be at least 1.")
    return build(name, False, options, common)
