"""Optimizers of a recipe over a method's parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eyespot.errors import unknown
from eyespot.methods.method import Method, Recipe

OPTIMIZERS = ("adamw", "adam", "sgd", "lars")


def is_exempt(name: str, parameter: nn.Parameter) -> bool:
    """Norms, biases and single tokens are neither decayed nor adapted by LARS."""
    return sum(side > 1 for side in parameter.shape) <= 1 or name.endswith(".bias")


def parameter_groups(method: Method, recipe: Recipe) -> list[dict[str, Any]]:
    """The method's groups, each split into decayed and exempt parameters, in a fixed order."""
    groups: list[dict[str, Any]] = []
    for group in method.param_groups():
        scale, fixed = group.get("lr_scale", 1.0), group.get("weight_decay")
        named = [(n, p) for n, p in group["params"] if p.requires_grad]
        for exempt in (False, True):
            params = [p for n, p in named if is_exempt(n, p) == exempt]
            if params:
                decayed = not exempt or recipe.decay_norm_and_bias
                groups.append(
                    {
                        "params": params,
                        "lr_scale": scale,
                        "scheduled": group.get("scheduled", True),
                        "follows_decay": decayed and fixed is None,
                        "weight_decay": (recipe.weight_decay if fixed is None else fixed) if decayed else 0.0,
                    }
                )
    return groups


def build_optimizer(method: Method, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """The recipe's optimizer; LARS is timm's (You et al. 2017), which leaves groups without decay unadapted."""
    groups = parameter_groups(method, recipe)
    name = recipe.optimizer.lower()
    if name in ("adamw", "adam"):
        make = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return make(groups, lr=lr, betas=recipe.betas, eps=recipe.eps, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    if name == "lars":
        from timm.optim import Lars  # type: ignore[attr-defined]

        options: Any = {"momentum": recipe.momentum, "trust_coeff": recipe.trust, "nesterov": recipe.nesterov}
        return Lars(groups, lr=lr, **options)
    raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, peak: float) -> None:
    """Rate and decay of this step in every group; groups that follow no schedule keep the peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = (lr if group.get("scheduled", True) else peak) * group["lr_scale"]
        if group["follows_decay"]:
            group["weight_decay"] = weight_decay
