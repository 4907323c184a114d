"""The spatial broadcast decoder: a vector is copied to all places of a grid, told where each is, and convolved to a
picture (Watters et al.; arXiv 1901.07017).

    >>> decoder = SpatialBroadcast(64, 4, size=32, start=8)
    >>> decoder(torch.rand(10, 64)).shape           # RGB and a mask logit of ten slots
    torch.Size([10, 4, 32, 32])
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from eyespot.nets.slots import SoftPosition, init_xavier


class SpatialBroadcast(nn.Module):
    """Vectors [n, D] -> maps [n, out, size, size].

    Transposed convolutions of stride 2 double the grid while it is below `size`; the last of them gives the output,
    unless convolutions at full resolution follow, which cost most of the time.

    Args:
        dim: D.
        out: channels that are decoded: those of the picture and a mask logit.
        size: side of the maps in pixels; a grid that does not end there is resized.
        start: side of the grid on which the vector is copied.
        width: channels of the hidden layers.
        kernel: odd side of the convolutions.
        refine: convolutions at full resolution, the last with a kernel of 3 for the output.
    """

    def __init__(
        self, dim: int, out: int, size: int, start: int = 8, width: int = 64, kernel: int = 5, refine: int = 0
    ):
        super().__init__()
        self.start, self.size = min(start, size), size
        sides = [self.start]
        while sides[-1] < size:
            sides.append(2 * sides[-1])
        shapes = [(kernel, 2)] * (len(sides) - 1) + [(kernel, 1)] * (refine - 1) + [(3, 1)] * (refine > 0)
        shapes = shapes or [(3, 1)]
        widths = [dim, *[width] * (len(shapes) - 1), out]
        layers: list[nn.Module] = []
        for (side, stride), before, after in zip(shapes, widths, widths[1:], strict=False):
            if stride == 2:
                layers.append(nn.ConvTranspose2d(before, after, side, 2, side // 2, output_padding=1))
            else:
                layers.append(nn.Conv2d(before, after, side, padding=side // 2))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers[:-1])
        init_xavier(self)
        self.position = SoftPosition(dim)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors[:, :, None, None].expand(-1, -1, self.start, self.start)
        maps = self.layers(self.position(grid))
        side = (self.size, self.size)
        return maps if maps.shape[-2:] == side else interpolate(maps, side, mode="bilinear", align_corners=False)
