"""Convolutional nets of clips: normalised [B, C, T, H, W] to a volume [B, D, t, h, w]. Widths can be chosen.

R3D          3x3x3 residual blocks, or each convolution as 1x3x3 and 3x1x1 (R(2+1)D)      Tran et al., CVPR 2018
SlowR3D      bottlenecks, 3 frames deep in the last two stages alone: CVRL's R3D-50       Feichtenhofer et al. 2019
S3D          Inception modules of separable convolutions, with self gating (S3D-G)        Xie et al., ECCV 2018
LightC3D     one 3x3x3 convolution a stage, no batch norm                                 Tran et al., ICCV 2015
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyespot.errors import UserError

Triple = tuple[int, int, int]


def conv(width_in: int, width: int, kernel: Triple, stride: Triple = (1, 1, 1), bias: bool = False) -> nn.Conv3d:
    """A convolution that keeps the size but for its stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(width_in, width, kernel, stride, padding, bias=bias)


def conv_bn(width_in: int, width: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(conv(width_in, width, kernel, stride), nn.BatchNorm3d(width), nn.ReLU(inplace=True))


def init_he(net: nn.Module) -> None:
    """He initialisation of all convolutions."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# --- R3D and R(2+1)D --------------------------------------------------------------------------------------------------
def factored_width(width_in: int, width: int, time: int = 3, side: int = 3) -> int:
    """Channels between the two halves of a factored convolution, so that it has as many weights as the whole one:
    floor(t d^2 in out / (d^2 in + t out))."""
    return time * side * side * width_in * width // (side * side * width_in + time * width)


def conv3(width_in: int, width: int, stride: int, factored: bool) -> nn.Module:
    """A 3x3x3 convolution of the stride in all three directions, or its two halves."""
    if not factored:
        return conv(width_in, width, (3, 3, 3), (stride, stride, stride))
    middle = factored_width(width_in, width)
    across = conv_bn(width_in, middle, (1, 3, 3), (1, stride, stride))
    return nn.Sequential(across, conv(middle, width, (3, 1, 1), (stride, 1, 1)))


class Block(nn.Module):
    """Two 3x3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, factored: bool):
        super().__init__()
        self.conv1, self.bn1 = conv3(width_in, width, stride, factored), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = conv3(width, width, 1, factored), nn.BatchNorm3d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                conv(width_in, width, (1, 1, 1), (stride, stride, stride)), nn.BatchNorm3d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class R3D(nn.Module):
    """Four stages, each twice as wide as the one before and (but the first) at half its resolution in time and space.

    Args:
        channels: of a frame.
        width: channels of the first stage (64 in the papers).
        blocks: residual blocks of each stage: (2, 2, 2, 2) is R3D-18.
        factored: R(2+1)D's halves of every convolution.
    """

    def __init__(self, channels: int, width: int = 16, blocks: tuple[int, ...] = (1, 1, 1, 1), factored: bool = False):
        super().__init__()
        _check(width, blocks)
        if factored:
            middle = max(1, round(45 * width / 64))
            across = conv_bn(channels, middle, (1, 7, 7), (1, 2, 2))
            self.stem = nn.Sequential(across, conv_bn(middle, width, (3, 1, 1)))
        else:
            self.stem = conv_bn(channels, width, (3, 7, 7), (1, 2, 2))
        layers, before = [], width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(Block(before, width << stage, 2 if stage and not block else 1, factored))
                before = width << stage
        self.blocks = nn.Sequential(*layers)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, four times as wide at its end; the first convolution is `time` frames deep."""

    def __init__(self, width_in: int, width: int, stride: int, time: int):
        super().__init__()
        self.conv1 = conv_bn(width_in, width, (time, 1, 1))
        self.conv2 = conv_bn(width, width, (1, 3, 3), (1, stride, stride))
        self.conv3, self.bn3 = conv(width, 4 * width, (1, 1, 1)), nn.BatchNorm3d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != 4 * width:
            short = conv(width_in, 4 * width, (1, 1, 1), (1, stride, stride))
            self.shortcut = nn.Sequential(short, nn.BatchNorm3d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.conv3(self.conv2(self.conv1(x)))) + self.shortcut(x), inplace=True)


class SlowR3D(nn.Module):
    """CVRL's R3D-50: stem 5x7x7 of temporal stride 2, no temporal stride later (Qian et al., CVPR 2021, table 1).

    Args as for `R3D`; the volume is 32 `width` wide.
    """

    def __init__(self, channels: int, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)):
        super().__init__()
        _check(width, blocks)
        self.stem = conv_bn(channels, width, (5, 7, 7), (2, 2, 2))
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        layers, before = [], width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride, time = 2 if stage and not block else 1, 3 if stage > 1 else 1
                layers.append(Bottleneck(before, width << stage, stride, time))
                before = 4 * (width << stage)
        self.blocks = nn.Sequential(*layers)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pool(self.stem(x)))


def _check(width: int, blocks: tuple[int, ...]) -> None:
    if width < 1 or not blocks or min(blocks) < 1:
        raise UserError(f"width={width} and blocks={blocks} must be at least 1.")


# --- S3D-G ------------------------------------------------------------------------------------------------------------
class Gating(nn.Module):
    """Self gating: every channel times sigmoid(W mean(x) + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(x.mean((2, 3, 4))))[:, :, None, None, None]


def separable(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """1 x k x k, then k x 1 x 1."""
    across = conv_bn(width_in, width, (1, kernel, kernel), (1, stride, stride))
    return nn.Sequential(across, conv_bn(width, width, (kernel, 1, 1), (stride, 1, 1)))


class Inception(nn.Module):
    """Four branches side by side: 1x1, two of 1x1 and a separable convolution, pooling and 1x1; each gated."""

    def __init__(self, width_in: int, widths: tuple[int, ...], gating: bool):
        super().__init__()
        one, two_a, two_b, three_a, three_b, four = widths
        point: Triple = (1, 1, 1)
        branches = [
            nn.Sequential(conv_bn(width_in, one, point)),
            nn.Sequential(conv_bn(width_in, two_a, point), separable(two_a, two_b, 3)),
            nn.Sequential(conv_bn(width_in, three_a, point), separable(three_a, three_b, 3)),
            nn.Sequential(nn.MaxPool3d(3, 1, 1), conv_bn(width_in, four, point)),
        ]
        for branch, width in zip(branches, (one, two_b, three_b, four), strict=True):
            if gating:
                branch.append(Gating(width))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


INCEPTION: tuple[tuple[int, ...] | None, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,  # pooling 3x3x3, stride 2
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,  # pooling 2x2x2
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""Widths of the branches, from mixed 3b to 5c: 1x1; 1x1 and 3x3; 1x1 and 3x3; behind the pooling."""


class S3D(nn.Module):
    """S3D-G; the volume is 1024 times `width` wide, at an eighth of the time and a 32nd of the side.

    Args:
        channels: of a frame.
        width: all widths times this (1 in the paper).
        gating: of every branch; without it S3D.
    """

    def __init__(self, channels: int, width: float = 0.25, gating: bool = True):
        super().__init__()
        if width <= 0:
            raise UserError(f"width={width} must be above 0; 1 is the paper's.")

        def w(channels: int) -> int:
            return max(2, round(channels * width))

        small: Triple = (1, 3, 3)
        layers: list[nn.Module] = [separable(channels, w(64), 7, 2), nn.MaxPool3d(small, (1, 2, 2), (0, 1, 1))]
        layers += [conv_bn(w(64), w(64), (1, 1, 1)), separable(w(64), w(192), 3)]
        layers += [*([Gating(w(192))] if gating else []), nn.MaxPool3d(small, (1, 2, 2), (0, 1, 1))]
        before, pools = w(192), iter((nn.MaxPool3d(3, 2, 1), nn.MaxPool3d(2, 2, ceil_mode=True)))
        for widths in INCEPTION:
            if widths is None:
                layers.append(next(pools))
                continue
            scaled = tuple(w(v) for v in widths)
            layers.append(Inception(before, scaled, gating))
            before = scaled[0] + scaled[2] + scaled[4] + scaled[5]
        self.layers = nn.Sequential(*layers)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# --- C3D --------------------------------------------------------------------------------------------------------------
class LightC3D(nn.Module):
    """The light C3D of motion and appearance statistics: five 3x3x3 convolutions without batch norm, pooling 1x2x2 and
    four times 2x2x2 (Wang et al., CVPR 2019). 16 frames become one; 56 px become 4 x 4 places, and with five halvings
    112 px do.

    Args:
        channels: of a frame.
        width: of the first convolution (64 in the paper); the others have 2, 4, 4, 4 times as many.
        halvings: how many of the five poolings halve the sides (5 in the paper, for 112 px); the others only the time.
        std: of the normal weights (0.01 in the paper, for pixels of 0..255); None is He's.
    """

    def __init__(self, channels: int, width: int = 16, halvings: int = 4, std: float | None = None):
        super().__init__()
        _check(width, (1,))
        before, layers = channels, []
        for i, times in enumerate((1, 2, 4, 4, 4)):
            side = 2 if i < halvings else 1
            pool = (1 if i == 0 else 2, side, side)
            layers += [conv(before, times * width, (3, 3, 3), bias=True), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool3d(pool, pool, ceil_mode=True))
            before = times * width
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                if std is None:
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                else:
                    nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
