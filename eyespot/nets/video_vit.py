"""A vision transformer over tubelets: blocks of a few frames by a patch are its tokens.

Positions are the fixed sines and cosines of the flattened token number (VideoMAE, Tong et al., NeurIPS 2022), made for
the length and size of the clip at hand, so that any number of whole tubelets fits.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eyespot.errors import UserError


def flat_positions(length: int, dim: int) -> Tensor:
    """Float32 [length, dim]: angle = position / 10000^(2 floor(j / 2) / dim); even j its sine, odd j its cosine."""
    j = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (j // 2) / dim)
    return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()


class TubeletViT(nn.Module):
    """Normalised [B, C, T, H, W] to a volume [B, dim, T / tubelet, H / patch, W / patch]; no class token.

    Args:
        channels: of a frame.
        image_size: side of a frame, a multiple of the patch.
        frames: of a clip, a multiple of the tubelet.
        dim, depth, heads: width, blocks and attention heads.
        patch: side of a tubelet in pixels; None is 8 up to 128 px, else 16.
        tubelet: its frames.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        frames: int = 16,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int | None = None,
        tubelet: int = 2,
    ):
        super().__init__()
        self.patch = patch or (8 if image_size <= 128 else 16)
        self.tubelet = tubelet
        if dim % heads:
            raise UserError(f"dim={dim} is not a multiple of heads={heads}; choose heads that divide it.")
        self._fits(frames, image_size, image_size)
        cell = (tubelet, self.patch, self.patch)
        self.embed = nn.Conv3d(channels, dim, cell, cell)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _fits(self, frames: int, height: int, width: int) -> None:
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise UserError(
                f"Clips of {frames} frames of {height} x {width} pixels are not made of whole tubelets, "
                f"{self.tubelet} frames of {self.patch} x {self.patch}; choose other sizes."
            )

    def forward(self, x: Tensor) -> Tensor:
        self._fits(x.shape[2], x.shape[3], x.shape[4])
        cells = self.embed(x)
        tokens = cells.flatten(2).transpose(1, 2)
        tokens = tokens + flat_positions(tokens.shape[1], tokens.shape[2]).to(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, cells.shape[2:])
