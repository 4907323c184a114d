"""MONet's networks: the attention that takes a picture apart, and the encoder of its parts (Burgess et al.; arXiv
1901.11390)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, logsigmoid

from eyespot.nets.backbones import Backbone

FAINTEST = -11.5
"""Least logarithm of a mask that a network sees: of 1e-5."""


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.InstanceNorm2d(after, affine=True), nn.ReLU()
    )


class AttentionUNet(nn.Module):
    """A U-Net whose output says which pixels of what is left the next part takes.

    Args:
        channels: of the pictures.
        size: side of the pictures in pixels.
        widths: channels of the blocks; all but the last halve the resolution.
        hidden: width of the MLP between the way down and the way up.
    """

    def __init__(self, channels: int, size: int, widths: Sequence[int] = (16, 32, 64, 64), hidden: int = 128):
        super().__init__()
        self.down = nn.ModuleList([_block(a, b) for a, b in pairwise([channels + 1, *widths])])
        backwards = [*reversed(widths)]
        self.up = nn.ModuleList([_block(2 * a, b) for a, b in pairwise([*backwards, widths[0]])])
        side = size
        for _ in widths[1:]:
            side = (side + 1) // 2
        cells = widths[-1] * side * side
        self.middle = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(cells, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            *(nn.Linear(hidden, cells), nn.ReLU()),
        )
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor, log_scope: Tensor) -> Tensor:
        """Logits [B, 1, H, W] of normalised pixels [B, C, H, W] and the log of what is left [B, 1, H, W]."""
        y = torch.cat([x, log_scope.clamp_min(FAINTEST)], 1)
        skips = []
        for k, block in enumerate(self.down):
            if k:
                side = [(n + 1) // 2 for n in y.shape[2:]]
                y = interpolate(y, side, mode="nearest")
            y = block(y)
            skips.append(y)
        y = self.middle(y).view_as(y)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            if y.shape[2:] != skip.shape[2:]:
                y = interpolate(y, skip.shape[2:], mode="nearest")
            y = block(torch.cat([y, skip], 1))
        return self.last(y)


def attend(net: AttentionUNet, x: Tensor, slots: int) -> Tensor:
    """The masks of `slots` parts, each from what those before it left; the last takes the rest.

    log m_k = log s_{k-1} + log a_k and log s_k = log s_{k-1} + log(1 - a_k).

    Returns:
        log masks [B, K, 1, H, W] that sum to 1 over the parts.
    """
    scope = torch.zeros_like(x[:, :1])
    masks = []
    for _ in range(slots - 1):
        logits = net(x, scope)
        masks.append(scope + logsigmoid(logits))
        scope = scope + logsigmoid(-logits)
    return torch.stack([*masks, scope], 1)


class ComponentConv(nn.Module):
    """Convolutions of stride 2 with ReLU over a picture and the log of a mask.

    Args:
        channels: of the pictures, without the mask.
        widths: channels of the layers.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 32, 64, 64)):
        super().__init__()
        pairs = pairwise([channels + 1, *widths])
        self.layers = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ComponentBackbone(Backbone):
    """An encoder of a picture and the part of it that a mask shows; without a mask the part is the whole picture."""

    def features(self, x: Tensor, log_mask: Tensor | None = None) -> Tensor:
        """The map [B, D, h, w] of pixels in [0, 1] and the log of a mask [B, 1, H, W]."""
        shown = torch.zeros_like(x[:, :1]) if log_mask is None else log_mask.clamp_min(FAINTEST)
        out: Tensor = self.net(torch.cat([self.normalize(x), shown], 1))
        return out
