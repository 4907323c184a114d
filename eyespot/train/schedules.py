"""Learning rate, weight decay and budget as pure functions of the step."""

from __future__ import annotations

import math

from eyespot.errors import unknown
from eyespot.methods.method import Recipe

RULES = ("linear", "sqrt", "none")
SCHEDULES = ("cosine", "constant", "step", "restarts")


def peak_lr(recipe: Recipe, batch_size: int) -> float:
    """The recipe's rate at this global batch: linear (Goyal et al. 2017), by the square root, or as it is."""
    share = batch_size / recipe.lr_batch
    if recipe.lr_rule == "linear":
        return recipe.lr * share
    if recipe.lr_rule == "sqrt":
        return recipe.lr * math.sqrt(share)
    if recipe.lr_rule == "none":
        return recipe.lr
    raise unknown("rule for the learning rate", recipe.lr_rule, RULES)


def warmup_steps(recipe: Recipe, steps: int, steps_per_epoch: float) -> int:
    """Steps of linear warm-up: the recipe's epochs, at most a tenth of the run."""
    return min(round(recipe.warmup_epochs * steps_per_epoch), steps // 10)


def lr_factor(recipe: Recipe, step: int, steps: int, warmup: int, steps_per_epoch: float) -> float:
    """The share of the peak rate at `step` of `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    low = recipe.min_lr
    if recipe.schedule == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "step":
        return 1.0 if done < 0.6 else 0.1 if done < 0.8 else 0.01
    if recipe.schedule == "restarts":
        return _restarts(step, 1000, low)
    raise unknown("schedule", recipe.schedule, SCHEDULES)


def _restarts(step: int, first: int, low: float) -> float:
    """Cosine with warm restarts, each cycle twice as long (Loshchilov and Hutter 2017)."""
    start, length = 0, first
    while step >= start + length:
        start, length = start + length, length * 2
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - start) / length))


def weight_decay_at(recipe: Recipe, progress: float) -> float:
    """The decay at 0..1 of the run: constant, or a cosine to `weight_decay_end`."""
    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    end = recipe.weight_decay_end
    return end + (recipe.weight_decay - end) * 0.5 * (1 + math.cos(math.pi * progress))
