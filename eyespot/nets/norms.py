"""Batch norms whose running statistics are taken from some passes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a batch norm inside keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms of `module` use the statistics of the batch as always, but their running ones stay."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
