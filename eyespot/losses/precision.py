"""Losses in full precision, also inside autocast.

A cosine over a temperature of 0.1 that is rounded to bfloat16 is off by up to 0.04, and a correlation over a batch
by more; embeddings are small, so computing their losses in float32 costs next to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """The loss with autocast off and 16-bit tensors among its arguments widened to float32; float64 stays."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        device = next((v.device.type for v in values if isinstance(v, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*map(_wide, args), **{k: _wide(v) for k, v in kwargs.items()})  # type: ignore[call-arg]

    return wrapped
