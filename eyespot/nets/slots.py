"""Slot Attention: a set of vectors that compete for the places of a feature map (Locatello et al.; NeurIPS 2020;
arXiv 2006.15055, algorithm 1).

    >>> slots, attention = SlotAttention(64, 64)(features, initial)     # [B, N, 64], [B, K, 64]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-8


def init_xavier(module: nn.Module) -> None:
    """Xavier's uniform weights, orthogonal recurrent ones and biases of 0, as in the authors' framework: torch's own
    are so small that what a slot holds hardly reaches the picture."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.GRUCell):
            nn.init.xavier_uniform_(part.weight_ih)
            nn.init.orthogonal_(part.weight_hh)
            nn.init.zeros_(part.bias_ih)
            nn.init.zeros_(part.bias_hh)


def compete(logits: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Who wins each place, and how a slot weighs the places.

    Args:
        logits: [B, K, N] of K slots and N places.
        eps: added to the attention before it is normalised over the places, so that a slot that wins nothing has a
            mean of all places and not a division by zero.

    Returns:
        attention [B, K, N], which sums to 1 over the SLOTS (they compete; over the places it trains to blobs), and
        weights [B, K, N], which sum to 1 over the places.
    """
    attention = logits.softmax(1)
    weights = attention + eps
    return attention, weights / weights.sum(2, keepdim=True)


class SlotAttention(nn.Module):
    """Some rounds of attention in which slots compete for places and are updated by a GRU and a residual MLP.

    All slots share all weights, so that permuting the initial slots permutes the result.

    Args:
        width_in: D_in, width of the features.
        dim: D, width of a slot.
        iterations: rounds.
        hidden: width of the MLP's hidden layer.
        norm_inputs: layer norm on the features; without it they are taken as given.
    """

    def __init__(self, width_in: int, dim: int, iterations: int = 3, hidden: int = 128, norm_inputs: bool = True):
        super().__init__()
        self.iterations, self.scale = iterations, dim**-0.5
        self.norm_inputs: nn.Module = nn.LayerNorm(width_in) if norm_inputs else nn.Identity()
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_pre_ff = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(width_in, dim, bias=False)
        self.to_v = nn.Linear(width_in, dim, bias=False)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        init_xavier(self)

    def forward(self, features: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Slots [B, K, D] and the last round's attention [B, K, N], of features [B, N, D_in] and initial slots."""
        features = self.norm_inputs(features)
        keys, values = self.to_k(features), self.to_v(features)
        attention = slots.new_zeros(*slots.shape[:2], features.shape[1])
        for _ in range(self.iterations):
            slots, attention = self.round(keys, values, slots)
        return slots, attention

    def round(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """One round: keys, values [B, N, D], slots [B, K, D] -> slots, attention [B, K, N]."""
        queries = self.to_q(self.norm_slots(slots)) * self.scale
        attention, weights = compete(queries @ keys.transpose(1, 2))
        updates = weights @ values
        slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + self.mlp(self.norm_pre_ff(slots)), attention


class RandomSlots(nn.Module):
    """Initial slots mu + exp(log_sigma) noise, of one learned Gaussian that all share: [B, K, D] of noise [B, K, D]."""

    def __init__(self, dim: int):
        super().__init__()
        self.mean = nn.Parameter(torch.empty(1, 1, dim))
        self.log_sigma = nn.Parameter(torch.empty(1, 1, dim))
        for parameter in (self.mean, self.log_sigma):
            nn.init.xavier_uniform_(parameter)

    def forward(self, noise: Tensor) -> Tensor:
        return self.mean + self.log_sigma.exp() * noise


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """(row, column, 1 - row, 1 - column) of the middles of places, the edges at 0 and 1: [4, height, width]."""
    rows, columns = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([y, x, 1 - y, 1 - x])


class SoftPosition(nn.Module):
    """Adds a learned linear map of the coordinates to a map [B, D, h, w], of any size.

    It begins as large as the features (deviation 1 a coordinate, 0 in the middle of the picture), so that place tells
    slots apart from the first step; smaller ones leave all slots alike for thousands of steps.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(4, dim)
        nn.init.normal_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(-self.linear.weight.sum(1) / 2)

    def forward(self, features: Tensor) -> Tensor:
        places = coordinates(features.shape[2], features.shape[3], features)
        return features + self.linear(places.permute(1, 2, 0)).permute(2, 0, 1)


class SlotConv(nn.Module):
    """Slot Attention's encoder: convolutions of one width with ReLU, which keep the resolution but for the first.

    Args:
        channels: of the pictures.
        width: channels of the map.
        layers: number of convolutions.
        kernel: their odd side.
        stride: of the first.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 4, kernel: int = 5, stride: int = 1):
        super().__init__()
        parts: list[nn.Module] = []
        for k in range(layers):
            before, step = (channels, stride) if k == 0 else (width, 1)
            parts += [nn.Conv2d(before, width, kernel, step, kernel // 2), nn.ReLU()]
        self.layers = nn.Sequential(*parts)
        init_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, h, w] of normalised pixels."""
        return self.layers(x)
