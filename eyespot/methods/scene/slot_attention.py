"""Slot Attention: object-centric learning with slot attention (Locatello, Weissenborn, Unterthiner, Mahendran, Heigold,
Uszkoreit, Dosovitskiy, Kipf; NeurIPS 2020; arXiv 2006.15055), as benchmarked in the survey of Yuan et al. (TPAMI 2023;
arXiv 2202.07135).

A picture is rebuilt from a few vectors, the slots. They start at random and compete for the places of a feature map
over some rounds; each is then decoded by itself to colours and a mask, and the masks say which slot shows where. To
rebuild much from little, a slot learns to hold one object.

    a_ik = softmax over SLOTS k of q_k . v_i / sqrt(D)      u_k = sum_i a_ik v_i / sum_i a_ik      (algorithm 1)
    slot_k = GRU(slot_k, u_k), + MLP                        x_hat = sum_k softmax_k(mask_k) colour_k
    L = weight mean (x - x_hat)^2                           with the pixels in [0, 1]

Paper and code: the weight of 4 makes the loss that of the paper, whose pixels lie in [-1, 1]. The rate falls by a
cosine, in the paper by half every 100,000 steps. Places are told by their coordinates through a linear layer that
begins large (the released one begins small, and the slots stay alike for thousands of steps). The decoder doubles the
grid up to the picture and has no layers at full resolution (`refine=2`: the two of the benchmark). The features of the
run are those of its encoder; what the method finds is in `decompose` and measured by `--protocol scenes`. To count and
to segment, the slots start from the same random numbers in every picture.

    >>> method = SlotAttention(backbone("slot_conv_small", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'pixels': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.methods.method import Info, MethodConfig, Recipe
from eyespot.methods.parts import PartsMethod
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets import slots
from eyespot.nets.backbones import Backbone
from eyespot.nets.slots import RandomSlots, SoftPosition, init_xavier
from eyespot.nets.spatial_broadcast import SpatialBroadcast


@dataclass(frozen=True)
class SlotAttentionConfig(MethodConfig):
    slots: int = 5
    """Number of slots K, one more than objects for the background (7 on CLEVR with up to 6 objects)."""
    iterations: int = 3
    """Rounds in which the slots compete."""
    dim: int = 32
    """Width of a slot (64 in the paper)."""
    hidden: int = 64
    """Width of the slots' MLP (128 in the paper)."""
    decoder_width: int = 32
    """Channels of the decoder (64 in the paper)."""
    decoder_start: int = 8
    """Side of the grid that a slot is copied to."""
    kernel: int = 5
    """Odd side of the decoder's convolutions."""
    refine: int = 0
    """Convolutions of the decoder at full resolution (2 in the paper), which cost most of the time."""
    weight: float = 4.0
    """Weight of the squared error of pixels in [0, 1]."""


class SlotAttention(PartsMethod):
    needs = "image"
    Config = SlotAttentionConfig
    random_slots = True
    recipe = Recipe(
        optimizer="adam",
        lr=2e-3,
        lr_rule="none",
        weight_decay=0.0,
        batch_size=16,
        warmup_epochs=1.0,
        min_lr=0.1,
        clip=1.0,
        epochs=10,
        backbone="slot_conv_small",
        image_size=32,
        expected="CLEVR6, 500,000 steps of 64, lr 4e-4: ARI of objects 98.8 (paper, figure 4)",
    )

    def __init__(
        self, backbone: Backbone, config: SlotAttentionConfig = SlotAttentionConfig(), info: Info | None = None
    ):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, slots=WIDTH, iterations=WIDTH, dim=WIDTH, hidden=WIDTH, decoder_width=WIDTH)
        check_ranges(c, decoder_start=WIDTH, kernel=WIDTH, refine=(0, None), weight=POSITIVE)
        if backbone.stride < 1:
            raise UserError(f"slot_attention needs a feature map and {backbone.name} has none; use slot_conv_small.")
        if c.kernel % 2 == 0:
            raise UserError(f"kernel={c.kernel} is even, so a convolution would move the picture; give an odd one.")
        width = backbone.embed_dim
        self.features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        init_xavier(self.features)
        self.position = SoftPosition(width)
        self.start = RandomSlots(c.dim)
        self.attention = slots.SlotAttention(width, c.dim, c.iterations, c.hidden)
        out = backbone.channels + 1
        self.decoder = SpatialBroadcast(c.dim, out, c.image_size, c.decoder_start, c.decoder_width, c.kernel, c.refine)

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x = views["image"]
        noise = ensure(draws, len(x), x.device).noise("slots", self.config.slots, self.config.dim, normal=True)
        rebuilt = self.rebuild(x, noise.to(x.dtype))["picture"]
        return {"pixels": self.config.weight * (x - rebuilt).square().mean()}

    def rebuild(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """What the slots make of pictures [B, C, H, W], starting from noise [B, K, D].

        Returns:
            {"picture": [B, C, H, W], "parts": [B, K, C, H, W], "masks": [B, K, 1, H, W] with sum 1, "slots": [B, K, D],
            "attention": [B, K, N]}.
        """
        net = self.backbone
        raw = net.features(x)
        cells = self.position(net.feature_map(raw, (x.shape[2], x.shape[3])))
        # layers that only the pooled features use must have a gradient too, of zero: a distributed run waits for it
        cells = cells + 0.0 * net.pool(raw).mean()
        found, attention = self.attention(self.features(cells.flatten(2).transpose(1, 2)), self.start(noise))
        decoded = self.decoder(found.flatten(0, 1)).unflatten(0, found.shape[:2])
        parts, masks = decoded[:, :, :-1], decoded[:, :, -1:].softmax(1)
        picture = (masks * parts).sum(1)
        return {"picture": picture, "parts": parts, "masks": masks, "slots": found, "attention": attention}

    @torch.no_grad()
    def decompose(self, inputs: Tensor, run: int = 0) -> dict[str, Tensor]:
        """`rebuild` of clean pictures [B, C, S, S] in [0, 1]; all start from the same numbers, others for another
        `run`."""
        c = self.config
        noise = Draws(seed=run, index=np.zeros(1)).noise("slots", c.slots, c.dim, normal=True)
        return self.rebuild(inputs, noise.to(inputs).expand(len(inputs), -1, -1))
