"""Decoders that predict pictures from tokens or maps, MAE's transformer and the same over a feature map; and I-JEPA's
predictor of features from features."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.nets.heads import PixelShuffleDecoder
from eyespot.nets.vit import gather_tokens, sincos_positions


def _blocks(dim: int, depth: int, heads: int) -> nn.Sequential:
    if heads < 1 or dim % heads or dim % 4:
        raise UserError(f"A decoder of width {dim} needs a width divisible by 4 and by its {heads} heads; change one.")
    return nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(depth)])


def _xavier(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class TokenDecoder(nn.Module):
    """MAE's decoder (He et al., CVPR 2022): visible tokens and mask tokens, in place, through transformer blocks.

    Args:
        width_in: D, width of the encoder's tokens.
        out: numbers predicted a patch.
        grid: patches a side at which the frozen sine-cosine positions are made; others are made when met.
        dim, depth, heads: of the decoder's blocks.
        prefix: tokens before the patches (class, registers), which take part but predict nothing.
    """

    positions: Tensor

    def __init__(self, width_in: int, out: int, grid: int, dim: int, depth: int, heads: int, prefix: int = 1):
        super().__init__()
        self.prefix, self.dim, self.grid = prefix, dim, grid
        self.embed = nn.Linear(width_in, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = _blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, out)
        self.register_buffer("positions", sincos_positions(dim, grid, prefix)[None], persistent=False)
        _xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, restore: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Predictions [B, L, out] for all patches.

        Args:
            tokens: the encoder's [B, prefix + l, D], visible patches in the order they were kept.
            restore: [B, L], for each patch its place among (kept, then removed).
            shape: rows and columns of patches; None: grid x grid.
        """
        x = self.embed(tokens)
        prefix, visible = x[:, : self.prefix], x[:, self.prefix :]
        masks = self.mask_token.to(x.dtype).expand(len(x), restore.shape[1] - visible.shape[1], -1)
        patches = torch.cat([visible, masks], 1).gather(1, restore.unsqueeze(-1).expand(-1, -1, self.dim))
        x = torch.cat([prefix, patches], 1) + self._positions(shape, x)
        return self.head(self.norm(self.blocks(x)))[:, self.prefix :]

    def _positions(self, shape: tuple[int, int] | None, like: Tensor) -> Tensor:
        if shape in (None, (self.grid, self.grid)):
            return self.positions.to(like.dtype)
        return sincos_positions(self.dim, shape, self.prefix)[None].to(like)  # type: ignore[arg-type]


class MapDecoder(nn.Module):
    """Map [B, D, h, w] -> pictures [B, channels, h * stride, w * stride]: transformer blocks, then pixel shuffle.

    With depth 0 it is the single 1x1 convolution of SimMIM and MFM; MFM (Xie et al., ICLR 2023) also tries deeper ones.
    """

    def __init__(self, width_in: int, stride: int, channels: int, dim: int = 512, depth: int = 0, heads: int = 16):
        super().__init__()
        self.depth = depth
        if depth:
            self.embed = nn.Linear(width_in, dim)
            self.blocks = _blocks(dim, depth, heads)
            self.norm = nn.LayerNorm(dim)
            _xavier(self)
        self.head = PixelShuffleDecoder(dim if depth else width_in, stride, channels)

    def forward(self, features: Tensor) -> Tensor:
        if not self.depth:
            return self.head(features)
        h, w = features.shape[2:]
        x = self.embed(features.flatten(2).transpose(1, 2))
        x = x + sincos_positions(x.shape[-1], (h, w), 0)[None].to(x)
        x = self.norm(self.blocks(x))
        return self.head(x.transpose(1, 2).unflatten(2, (h, w)))


class BlockPredictor(nn.Module):
    """I-JEPA's predictor (Assran et al., CVPR 2023): features at the places of target blocks from those of a context.

    A narrow transformer sees the context's tokens with their positions, and for one block a mask token with the
    position of each of its places. Blocks are predicted one apart from the other.

    Args:
        width_in: D, width of the encoder's tokens and of the prediction.
        grid: patches a side at which the frozen sine-cosine positions are made; others are made when met.
        dim, depth, heads: of the blocks.
    """

    positions: Tensor

    def __init__(self, width_in: int, grid: int, dim: int, depth: int, heads: int):
        super().__init__()
        self.dim, self.grid = dim, grid
        self.embed = nn.Linear(width_in, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = _blocks(dim, depth, heads)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, width_in)
        self.register_buffer("positions", sincos_positions(dim, grid, 0), persistent=False)
        _xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, keep: Tensor, targets: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Predictions [B, T, n, D].

        Args:
            tokens: the encoder's patch tokens [B, l, D].
            keep: int64 [B, l], their places.
            targets: int64 [B, T, n], the places of T blocks.
            shape: rows and columns of patches; None: grid x grid.
        """
        b, blocks, n = targets.shape
        x = self.embed(tokens)
        table = self._positions(shape, x).expand(b, -1, -1)
        context = (x + gather_tokens(table, keep)).repeat_interleave(blocks, 0)
        asked = self.mask_token.to(x.dtype) + gather_tokens(table, targets.flatten(1)).reshape(b * blocks, n, -1)
        out = self.norm(self.blocks(torch.cat([context, asked], 1)))[:, tokens.shape[1] :]
        return self.head(out).unflatten(0, (b, blocks))

    def _positions(self, shape: tuple[int, int] | None, like: Tensor) -> Tensor:
        same = shape in (None, (self.grid, self.grid))
        table = self.positions if same else sincos_positions(self.dim, shape, 0)  # type: ignore[arg-type]
        return table[None].to(like)
