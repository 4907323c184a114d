"""Heads that stand on a backbone: projectors, predictors, prototype layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyespot.errors import UserError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, h, w]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _stack(
    dims: tuple[int, ...],
    linear: Callable[..., nn.Module],
    norms: dict[str, Callable[..., nn.Module]],
    norm: str | None,
    act: str,
    last_norm: bool | str,
    bias: bool,
    last_bias: bool | None,
) -> nn.Sequential:
    if len(dims) < 2:
        raise UserError(f"A head needs at least two widths (in, out), not {dims}.")
    if (norm is not None and norm not in norms) or act not in ACTIVATIONS:
        raise UserError(f"norm={norm!r}, act={act!r} are not known; use {[*norms, None]} and {list(ACTIVATIONS)}.")
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(dims)):
        last = i == len(dims) - 2
        normed = norm is not None and (bool(last_norm) or not last)
        # a bias before batch norm is cancelled by it, unless the last layer asks for one
        wants = bias if not last or last_bias is None else last_bias
        layers.append(linear(a, b, bias=wants and not (normed and norm == "batch")))
        if normed and norm is not None:
            plain = last and last_norm == "plain"
            layers.append(norms[norm](b, **({_AFFINE[norm]: False} if plain else {})))
        if not last:
            layers.append(ACTIVATIONS[act]())
    return nn.Sequential(*layers)


_AFFINE = {"batch": "affine", "layer": "elementwise_affine"}


def mlp(
    *dims: int,
    norm: str | None = "batch",
    act: str = "relu",
    last_norm: bool | str = False,
    bias: bool = True,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """Linear layers [B, dims[0]] -> [B, dims[-1]] with norm and activation between them.

    Args:
        dims: widths, input first: `mlp(512, 2048, 128)` has one hidden layer.
        norm: "batch", "layer" or None, after every linear layer but the last.
        act: "relu" or "gelu".
        last_norm: the norm after the last layer too; "plain" leaves out its scale and shift.
        bias: of the linear layers; before a batch norm there never is one, since the norm cancels it.
        last_bias: of the last layer, when other than `bias`.
    """
    norms: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    return _stack(dims, nn.Linear, norms, norm, act, last_norm, bias, last_bias)


def conv_mlp(
    *dims: int,
    norm: str | None = "batch",
    act: str = "relu",
    last_norm: bool | str = False,
    bias: bool = True,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """`mlp` at every place of a map: [B, dims[0], h, w] -> [B, dims[-1], h, w], by 1x1 convolutions."""

    def conv(a: int, b: int, bias: bool) -> nn.Module:
        return nn.Conv2d(a, b, 1, bias=bias)

    norms: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "layer": _ChannelNorm}
    return _stack(dims, conv, norms, norm, act, last_norm, bias, last_bias)


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have unit length: [..., D] -> [..., K] (weight norm with gain 1).

    The direction is the parameter; the gain is frozen at 1 as in DINO, so it is no parameter at all.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=-1))


class DinoHead(nn.Module):
    """DINO's head: MLP with GELU, bottleneck, unit length, K prototypes of unit length (Caron et al., ICCV 2021).

    [..., D] -> logits [..., K]; works on class tokens and on patch tokens alike.

    Args:
        width_in: D.
        prototypes: K.
        hidden: width of the hidden layers.
        bottleneck: width of the normalised embedding.
        layers: linear layers before the prototypes.
        norm: "batch" or None (default), inside the MLP.
    """

    def __init__(
        self,
        width_in: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: str | None = None,
    ):
        super().__init__()
        self.mlp = mlp(width_in, *[hidden] * (layers - 1), bottleneck, norm=norm, act="gelu")
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last = WeightNormLinear(bottleneck, prototypes)

    def embed(self, x: Tensor) -> Tensor:
        """The embedding of unit length that the prototypes see: [..., D] -> [..., bottleneck]."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embed(x))


class Prototypes(nn.Module):
    """Cosine similarity with K learned directions: [..., D] -> [..., K] (SwAV, SlotCon and others).

    Args:
        normalize_input: whether the input is brought to unit length too.
    """

    def __init__(self, width_in: int, prototypes: int, normalize_input: bool = True):
        super().__init__()
        self.normalize_input = normalize_input
        self.weight = nn.Parameter(torch.randn(prototypes, width_in))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1) if self.normalize_input else x
        return F.linear(x, F.normalize(self.weight, dim=-1))


class PixelShuffleDecoder(nn.Sequential):
    """One 1x1 convolution and pixel shuffle: map [B, dim, h, w] -> pictures [B, channels, h * stride, w * stride].

    The decoder of SimMIM (Xie et al., CVPR 2022) and MFM (Xie et al., ICLR 2023).
    """

    def __init__(self, dim: int, stride: int, channels: int = 3):
        if stride < 1:
            raise UserError(f"A decoder needs the stride of a feature map, not {stride}; use a backbone with a map.")
        parts: list[Any] = [nn.Conv2d(dim, stride * stride * channels, 1), nn.PixelShuffle(stride)]
        super().__init__(*parts)
