"""A first-in first-out memory of keys (MoCo, He et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyespot.errors import UserError


class Queue(nn.Module):
    """K unit vectors as columns; new keys replace the oldest.

    It starts with random directions made from `seed`, alike on every process. A method gathers its keys over the
    processes before it pushes, so that all queues stay alike.

    Args:
        dim: D, width of a key.
        size: K, number of keys held.
        seed: of the first directions.
        normalize: whether keys are brought to unit length when pushed.

    Attributes:
        columns: [D, K], the oldest key at `oldest`.
        filled: number of real keys pushed so far, at most K.
    """

    columns: Tensor
    oldest: Tensor
    filled: Tensor

    def __init__(self, dim: int, size: int, seed: int = 0, normalize: bool = True):
        super().__init__()
        if size < 1:
            raise UserError(f"A queue of {size} keys is empty; choose a size of at least 1.")
        self.normalize = normalize
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(dim, size, generator=generator, dtype=torch.float32)
        self.register_buffer("columns", F.normalize(start, dim=0).to(torch.get_default_dtype()))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.hooks: list[Callable[[Tensor], Tensor]] = []
        """Each is given the keys [n, D] about to be pushed and returns those to push instead."""

    def __len__(self) -> int:
        return self.columns.shape[1]

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Puts keys [n, D] in the place of the oldest n; of more than K keys the last K stay."""
        for hook in self.hooks:
            keys = hook(keys)
        size, n = len(self), len(keys)
        keys = keys.detach()[-size:].to(self.columns.dtype)
        keys = F.normalize(keys, dim=1) if self.normalize else keys
        # where the whole push would have ended, as if all n had been written one by one
        place = (self.oldest + n - len(keys) + torch.arange(len(keys), device=self.columns.device)) % size
        # a new tensor: the one that a loss still needs for its backward pass must not change
        columns = self.columns.clone()
        columns[:, place] = keys.T
        self.columns = columns
        self.oldest = (self.oldest + n) % size
        self.filled = (self.filled + n).clamp_max(size)

    def ordered(self) -> Tensor:
        """The keys [K, D] from the newest to the oldest."""
        return self.columns.roll(-int(self.oldest), 1).flip(1).T
