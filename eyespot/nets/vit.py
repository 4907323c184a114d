"""Vision transformers opened up: tokens of a subset, mask tokens, attention masks, attention and intermediate maps.

Built over timm's `VisionTransformer`, so that its published weights load; also the frozen sine-cosine positions of
MAE (He et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eyespot.errors import UserError
from eyespot.nets.backbones import Backbone


def sincos_positions(dim: int, grid: int | tuple[int, int], prefix: int = 1) -> Tensor:
    """Frozen 2-D positions: float32 [prefix + rows * columns, dim], the first `prefix` rows zero.

    The first half of the dimensions encodes the column, the second the row; each half is [sin(p w), cos(p w)] with
    w_k = 10000^(-k / (dim / 4)).
    """
    if dim % 4:
        raise UserError(f"Sine-cosine positions need a width divisible by 4, not {dim}.")
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [p.reshape(-1, 1) * frequency for p in (column, row)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([table.new_zeros(prefix, dim), table]).float()


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens [B, L, D] at ids [B, l]: [B, l, D]."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def replace_tokens(tokens: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Tokens [B, L, D] with those where the mask [B, L] is true replaced by one token (D numbers)."""
    return torch.where(mask.bool().unsqueeze(-1), token.to(tokens.dtype).view(1, 1, -1), tokens)


class ViTBackbone(Backbone):
    """A timm VisionTransformer whose tokens are accessible.

    Attributes:
        patch: side of a patch in pixels.
        grid: patches a side at `image_size`.
        prefix: number of tokens before the patches (class and registers).
        pooling: "avg", the mean of the patch tokens, or "native", what timm's head reads (mostly the class token).
    """

    def __init__(self, net: VisionTransformer, *, pooling: str = "native", **common: Any):
        self.patch = int(net.patch_embed.feat_ratio(as_scalar=True))  # type: ignore[operator]
        self.prefix = int(net.num_prefix_tokens)
        self.pooling = pooling
        if common["image_size"] % self.patch:
            raise UserError(
                f"The size {common['image_size']} is not a multiple of the patch of {common['name']}, "
                f"{self.patch} pixels; choose another size or patch_size."
            )
        self.grid = common["image_size"] // self.patch
        super().__init__(net, **common)
        self.set_pooling(pooling)

    def set_pooling(self, pooling: str) -> None:
        """Changes how `forward` pools, and notes it for the saved description."""
        if pooling not in ("avg", "native"):
            raise UserError(f"pooling='{pooling}' is not known; use 'avg' or 'native'.")
        self.pooling = pooling
        self.options["pooling"] = pooling
        if self.net.attn_pool is not None:  # unused parameters would end a distributed run
            self.net.attn_pool.requires_grad_(pooling == "native")

    # --- tokens -----------------------------------------------------------------------------------------------
    def patches(self, x: Tensor) -> Tensor:
        """Patch embeddings [B, h, w, D] of pixels in [0, 1], before positions are added."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise UserError(
                f"Pictures of {x.shape[2]} x {x.shape[3]} are not a multiple of the patch of {self.name}, "
                f"{self.patch} pixels; choose another size."
            )
        out: Tensor = self.net.patch_embed(self.normalize(x))
        return out if out.dim() == 4 else out.unflatten(1, (x.shape[2] // self.patch, x.shape[3] // self.patch))

    def positions(self, h: int, w: int) -> tuple[Tensor | float, Tensor | float]:
        """Positions of the prefix ([1, P, D] or 0) and of h x w patches ([1, h * w, D] or 0), resampled if needed."""
        table = self.net.pos_embed
        if table is None:
            return 0.0, 0.0
        embedded = 0 if self.net.no_embed_class else self.prefix
        prefix: Tensor | float = table[:, :embedded] if embedded else 0.0
        cells = table[:, embedded:]
        if (h, w) != (self.grid, self.grid):
            cells = cells.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
            cells = F.interpolate(cells, size=(h, w), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        return prefix, cells

    def embed_patches(self, x: Tensor, replace: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Patch tokens [B, L, D] with positions, row-major, of pixels [B, C, H, W] in [0, 1].

        Args:
            replace: (mask bool [B, L], token of D numbers): where true the embedding is replaced before the position is
                added (SimMIM, Xie et al., CVPR 2022).
        """
        cells = self.patches(x)
        tokens = cells.flatten(1, 2)
        if replace is not None:
            tokens = replace_tokens(tokens, *replace)
        return self.net.pos_drop(tokens + self.positions(cells.shape[1], cells.shape[2])[1])

    def run(self, tokens: Tensor, keep: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """All tokens [B, prefix + l, D] after the last block and norm.

        Args:
            tokens: [B, L, D] with positions, from `embed_patches`.
            keep: ids [B, l] of the tokens that enter; None: all.
            attn_mask: see `tokens`.
        """
        return self.net.norm(self._blocks(self._start(tokens, keep), attn_mask)[-1])

    def tokens(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """All tokens [B, prefix + l, D] of pixels [B, C, H, W] in [0, 1].

        Args:
            keep: ids [B, l] of the patches that enter (MAE); None: all L.
            replace: see `embed_patches`.
            attn_mask: added to the attention scores (0: seen, -inf: not), or bool (true: seen); [N, N], [B, N, N] or
                [B, heads, N, N] over the N = prefix + l tokens, queries first.
        """
        return self.run(self.embed_patches(x, replace), keep, attn_mask)

    def intermediate(
        self, x: Tensor, n: int | Sequence[int] = 1, norm: bool = True, attn_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Tokens [B, prefix + L, D] after the last `n` blocks, or after the blocks numbered in `n`."""
        states = self._blocks(self._start(self.embed_patches(x), None), attn_mask)[1:]
        chosen = states[-n:] if isinstance(n, int) else [states[i] for i in n]
        return [self.net.norm(s) for s in chosen] if norm else chosen

    def attention(self, x: Tensor, layer: int = -1) -> Tensor:
        """Attention weights [B, heads, N, N] of one block, over N = prefix + L tokens; rows (queries) sum to 1."""
        state = self._start(self.embed_patches(x), None)
        blocks = list(self.net.blocks)
        for block in blocks[: range(len(blocks))[layer]]:
            state = block(state)
        block = blocks[layer]
        attn, y = block.attn, block.norm1(state)
        qkv = attn.qkv(y).reshape(*y.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
        return ((q * attn.scale) @ k.transpose(-2, -1)).softmax(-1)

    def _start(self, tokens: Tensor, keep: Tensor | None) -> Tensor:
        """Prefix tokens put before the (kept) patch tokens."""
        if keep is not None:
            tokens = gather_tokens(tokens, keep)
        prefix = [t for t in (self.net.cls_token, self.net.reg_token) if t is not None]
        if prefix:
            first = torch.cat(prefix, 1) + self.positions(self.grid, self.grid)[0]
            # shape, not len: a traced or exported net keeps the batch open
            tokens = torch.cat([first.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], 1)
        return self.net.norm_pre(tokens)

    def _blocks(self, state: Tensor, attn_mask: Tensor | None) -> list[Tensor]:
        """The state before the blocks and after each of them."""
        states = [state]
        if attn_mask is not None:
            attn_mask = attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(state.dtype)
            attn_mask = attn_mask.unsqueeze(1) if attn_mask.dim() == 3 else attn_mask
        for block in self.net.blocks:
            states.append(block(states[-1]) if attn_mask is None else block(states[-1], attn_mask=attn_mask))
        return states

    # --- the interface of all backbones -----------------------------------------------------------------------
    def features(self, x: Tensor) -> Tensor:
        return self.tokens(x)

    def pool(self, features: Tensor) -> Tensor:
        if self.pooling == "native":
            return self.net.forward_head(features, pre_logits=True)
        return self.net.fc_norm(features[:, self.prefix :].mean(1))

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        # nets that norm after pooling norm here each place; Identity in all others
        cells = self.net.fc_norm(features[:, self.prefix :]).transpose(1, 2)
        return cells.unflatten(2, (size[0] // self.patch, size[1] // self.patch))


@torch.no_grad()
def init_as_mae(net: VisionTransformer) -> None:
    """MAE's initialisation: Xavier-uniform linears (the patch projection as one), normal .02 tokens."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
    for token in (net.cls_token, net.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
