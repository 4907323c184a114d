"""What a frozen network of pictures sees on the depth maps of a cloud: features and salience, carried to its points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.nets.backbones import DESCRIPTION, Backbone, backbone, load_backbone
from eyespot.nets.vit import ViTBackbone
from eyespot.views.projection import carried_back, three_views

OWN, RANDOM = "depth", "random"
"""Teachers that need no file: trained on the depth maps of the data, and with random weights."""
SEED = 0


class DepthTeacher(nn.Module):
    """A network of pictures that looks at clouds from three sides.

    Args:
        net: has a feature map; pictures are repeated for each of its channels.
        size: side of the depth maps in pixels, even.
    """

    def __init__(self, net: Backbone, size: int):
        super().__init__()
        if size % 2 or size < 8:
            raise UserError(f"depth_size={size} is not an even number of pixels from 8; choose another.")
        if net.modality != "image" or not net.stride:
            raise UserError(f"The teacher {net.name} has no feature map of pictures; take a ResNet or a transformer.")
        self.net, self.size = net, size

    @property
    def width(self) -> int:
        """Features of a point: those of three views."""
        return 3 * self.net.embed_dim

    @torch.no_grad()
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, N, 3 D] and salience [B, N] of points [B, N, 3]."""
        weight = next(self.net.parameters())
        views = three_views(points[..., :3], self.size)
        pictures = torch.cat([picture for picture, _ in views]).to(weight.dtype)
        maps, salient = self.looked_at(pictures.expand(-1, self.net.channels, -1, -1))
        features, salience = [], []
        for view, (_, index) in enumerate(views):
            rows = slice(view * len(points), (view + 1) * len(points))
            both = torch.cat([maps[rows], salient[rows]], 1)
            back = carried_back(both, index, self.size).to(points.dtype)
            features.append(back[..., :-1])
            salience.append(back[..., -1])
        return torch.cat(features, -1), torch.stack(salience).mean(0)

    def looked_at(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps [B, D, h, w] and salience [B, 1, h, w]: what the class token attends to in the last layer, or
        how large the features are where there is no class token."""
        maps = self.net.forward_dense(pictures)
        if isinstance(self.net, ViTBackbone) and self.net.prefix:
            attended = self.net.attention(pictures)[:, :, 0, self.net.prefix :].mean(1)
            return maps, attended.view(len(maps), 1, *maps.shape[-2:])
        return maps, maps.norm(dim=1, keepdim=True) / maps.shape[1] ** 0.5


def depth_teacher(name: str, size: int) -> DepthTeacher:
    """A teacher by name: "depth" (its weights come later), "random", a run or a folder with a saved backbone, or the
    name of a backbone with published weights.

    Raises:
        UserError: there is no such folder or name, or the network has no feature map.
    """
    if name in (OWN, RANDOM):
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            net: Any = backbone("resnet8", channels=1, image_size=size)
    elif Path(name).expanduser().is_dir():
        if not (Path(name).expanduser() / DESCRIPTION).is_file():
            raise UserError(f"teacher={name} holds no {DESCRIPTION}; give a run of pictures that was trained.")
        net = load_backbone(Path(name).expanduser())
    else:
        net = backbone(name, image_size=size, pretrained=True)
    return DepthTeacher(net, size)
