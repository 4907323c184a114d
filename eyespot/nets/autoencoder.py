"""A small convolutional autoencoder whose pooled latent map describes a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import interpolate


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ConvAutoencoder(nn.Module):
    """Blocks of convolution, batch norm, ReLU and 2x max-pooling; mirrored with nearest up-sampling; sigmoid output.

    Source: the CIFAR-10 network of G-SimCLR (Chakraborty et al. 2020; arXiv 2009.12007), by default.

    Args:
        channels: of the pictures.
        widths: of the encoder's blocks; the decoder runs through them backwards.
        kernel: odd side of the convolutions.
    """

    def __init__(self, channels: int = 3, widths: Sequence[int] = (32, 64, 128), kernel: int = 3):
        super().__init__()
        inward, outward = [channels, *widths[:-1]], [widths[-1], *reversed(widths)]
        self.down = nn.ModuleList([_block(i, o, kernel) for i, o in zip(inward, widths, strict=True)])
        self.up = nn.ModuleList([_block(i, o, kernel) for i, o in pairwise(outward)])
        self.last = nn.Conv2d(widths[0], channels, kernel, padding=kernel // 2)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def _encode(self, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        sizes = []
        for block in self.down:
            sizes.append((x.shape[-2], x.shape[-1]))
            x = self.pool(block(x))
        return x, sizes

    def encode(self, x: Tensor) -> Tensor:
        """Latent map [B, widths[-1], H / 2^n, W / 2^n] of pictures [B, C, H, W] in [0, 1]."""
        return self._encode(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """The latent map averaged over its pixels: [B, widths[-1]]."""
        return self.encode(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, in [0, 1], of the shape of the input."""
        x, sizes = self._encode(x)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            x = block(interpolate(x, size=size, mode="nearest"))
        return self.last(x).sigmoid()
