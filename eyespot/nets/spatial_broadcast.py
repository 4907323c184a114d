"""The spatial broadcast decoder: a vector is copied to all places of a grid, told where each is, and convolved to a
picture (Watters et al.; arXiv 1901.07017).

    >>> decoder = SpatialBroadcast(64, 4, size=32, start=8)
    >>> decoder(torch.rand(10, 64)).shape           # RGB and a mask logit of ten slots
    torch.Size([10, 4, 32, 32])
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from eyespot.nets.slots import SoftPosition


class SpatialBroadcast(nn.Module):
    """Vectors [n, D] -> maps [n, out, size, size].

    Args:
        dim: D.
        out: channels that are decoded: those of the picture and a mask logit.
        size: side of the maps in pixels.
        start: side of the grid that is convolved first; each up-sampling doubles it while the result is not above
            `size`, and what is left is interpolated.
        width: channels of the hidden layers.
        kernel: odd side of the convolutions.
        refine: convolutions at the final resolution, the last of which gives the output.
    """

    def __init__(
        self, dim: int, out: int, size: int, start: int = 8, width: int = 64, kernel: int = 5, refine: int = 2
    ):
        super().__init__()
        self.start, self.size = min(start, size), size
        self.position = SoftPosition(dim)
        layers: list[nn.Module] = []
        side, before = self.start, dim
        while 2 * side <= size:
            layers += [nn.ConvTranspose2d(before, width, kernel, 2, kernel // 2, output_padding=1), nn.ReLU()]
            side, before = 2 * side, width
        for _ in range(refine - 1):
            layers += [nn.Conv2d(before, width, kernel, padding=kernel // 2), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, out, 3, padding=1))

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors[:, :, None, None].expand(-1, -1, self.start, self.start)
        maps = self.layers(self.position(grid))
        side = (self.size, self.size)
        return maps if maps.shape[-2:] == side else interpolate(maps, side, mode="bilinear", align_corners=False)
