"""A teacher whose weights follow the student's as a moving average (Mean Teacher, MoCo, BYOL, DINO)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from eyespot.errors import UserError


def cosine_momentum(base: float, end: float, progress: float) -> float:
    """Momentum that goes from `base` at progress 0 to `end` at progress 1 by a half cosine (BYOL, DINO)."""
    return end - (end - base) * (math.cos(math.pi * min(max(progress, 0.0), 1.0)) + 1) / 2


class Teacher(nn.Module):
    """A copy of `student` that no gradient reaches and `update` moves towards the student.

    Only parameters are averaged. Buffers are its own: batch norm runs in train mode on the teacher's own passes, so its
    statistics come from the views that the teacher sees. Dropout and drop-path are off in the copy: what the student is
    compared with is not noisy. All of it is part of the state.

    Args:
        student: one module, or several to be called by name: `Teacher(nn.ModuleDict({"backbone": b, "head": h}))`.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module: Any = copy.deepcopy(student)
        self.module.requires_grad_(False)
        for part in self.module.modules():
            if isinstance(part, _DropoutNd):
                part.p = 0.0
            elif isinstance(part, DropPath):
                part.drop_prob = 0.0

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
        values = [p.detach().to(mine[n].dtype) for n, p in theirs.items()]
        targets = [mine[n] for n in theirs]
        torch._foreach_lerp_(targets, values, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
