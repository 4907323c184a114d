"""Attention that pools the instances of a bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedAttention(nn.Module):
    """Gated attention of multiple instance learning (Ilse, Tomczak and Welling, ICML 2018, eq. 9).

    [..., T, D] -> logarithms [..., T] of weights w_t = softmax_t( a . (tanh(V f_t) * sigmoid(U f_t)) ), whose sum over
    the T instances is 1. There are no biases.

    Args:
        width_in: D.
        hidden: rows of V and U.
    """

    def __init__(self, width_in: int, hidden: int = 128):
        super().__init__()
        self.value = nn.Linear(width_in, hidden, bias=False)
        self.gate = nn.Linear(width_in, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))
        return scores.squeeze(-1).log_softmax(-1)
