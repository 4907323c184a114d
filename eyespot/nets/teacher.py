"""A teacher whose weights follow the student's as a moving average (Mean Teacher, MoCo, BYOL, DINO)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from eyespot.errors import UserError


def cosine_momentum(base: float, end: float, progress: float) -> float:
    """Momentum that goes from `base` at progress 0 to `end` at progress 1 by a half cosine (BYOL, DINO)."""
    return end - (end - base) * (math.cos(math.pi * min(max(progress, 0.0), 1.0)) + 1) / 2


class Teacher(nn.Module):
    """A copy of `student` that no gradient reaches and `update` moves towards the student.

    Only parameters are averaged. Buffers are its own: batch norm runs in train mode on the teacher's own passes, so
    statistics of a batch norm come from the views that the teacher sees. All of it is part of the state.

    Args:
        student: one module, or several to be called by name: `Teacher(nn.ModuleDict({"backbone": b, "head": h}))`.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module: Any = copy.deepcopy(student)
        self.module.requires_grad_(False)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the copy gives, without gradient."""
        with torch.no_grad():
            return self.module(*inputs, **named)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, for every parameter by name."""
        if not 0.0 <= momentum <= 1.0:
            raise UserError(f"The teacher's momentum is {momentum}; it must lie between 0 and 1.")
        mine = dict(self.module.named_parameters())
        theirs = dict(student.named_parameters())
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())
            raise UserError(f"Teacher and student differ in {odd[0]}; pass the module that the teacher was made of.")
        torch._foreach_lerp_(
            list(mine.values()), [p.detach().to(mine[n].dtype) for n, p in theirs.items()], 1.0 - momentum
        )
