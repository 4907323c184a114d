"""From options to numbers: what was not given is chosen here, each choice with its reason for config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.errors import UserError
from eyespot.methods.method import Method, Recipe
from eyespot.options import PretrainOptions
from eyespot.train.launch import resolve_precision
from eyespot.train.plan import Plan, epoch_steps, steps_of
from eyespot.train.schedules import peak_lr

SMALL_SIDE = 64
SMALL_VIT = "vit_micro"


@dataclass
class Choices:
    """Options with everything filled in; `auto` says why."""

    recipe: Recipe
    image_size: int
    batch_size: int
    backbone: Any
    auto: dict[str, str] = field(default_factory=dict)


def choose(
    method: type[Method], options: PretrainOptions, data: BatchData, world: int, kind: modality.Modality
) -> Choices:
    """Fill in what the user did not say.

    Args:
        kind: the modality of the data.

    Raises:
        UserError: a batch larger than the data, or one that processes and parts do not divide.
    """
    auto: dict[str, str] = {}
    recipe = _recipe(method.recipe, options)
    size = options.image_size or _size(recipe, data, kind, auto)
    batch = _batch_size(recipe, options, data, world, kind.UNIT, auto)
    backbone = options.backbone if options.backbone is not None else _backbone(recipe, size, auto)
    return Choices(recipe, size, batch, backbone, auto)


def _recipe(recipe: Recipe, options: PretrainOptions) -> Recipe:
    given = {k: getattr(options, k) for k in ("optimizer", "weight_decay", "clip") if getattr(options, k) is not None}
    if options.lr is not None:
        given |= {"lr": options.lr, "lr_rule": "none"}
    if "weight_decay" in given:
        given["weight_decay_end"] = None
    return dataclasses.replace(recipe, **given)


def _size(recipe: Recipe, data: BatchData, kind: modality.Modality, auto: dict[str, str]) -> int:
    """The recipe's size, or what the samples give when they are smaller (a multiple of 16 that they reach)."""
    median = kind.usual_size(data)
    if median >= recipe.image_size:
        auto["image_size"] = f"{recipe.image_size}: the recipe's"
        return recipe.image_size
    size = max(16, median // 16 * 16)
    auto["image_size"] = f"{size}: the {kind.UNIT}' median size is {median}, the recipe has {recipe.image_size}"
    return size


def _batch_size(
    recipe: Recipe, options: PretrainOptions, data: BatchData, world: int, samples: str, auto: dict[str, str]
) -> int:
    n, unit = len(data), world * options.accumulate
    if n < 2 * unit:
        raise UserError(
            f"The data has {n} usable {samples[:-1] if n == 1 else samples}; training needs at least {2 * unit}"
            f"{f' for {unit} parts of a batch' if unit > 1 else ''}: add {samples} to {data.source.name}."
        )
    batch = options.batch_size
    if batch is None:
        batch = min(recipe.batch_size, n) // unit * unit
        reason = "the recipe's" if batch == recipe.batch_size else f"the recipe has {recipe.batch_size}, the data {n}"
        auto["batch_size"] = f"{batch}: {reason}"
    if batch > n:
        raise UserError(f"--batch-size {batch} is larger than the data ({n} {samples}); use at most {n}.")
    if batch % unit or batch < 2 * unit:
        raise UserError(
            f"--batch-size {batch} does not divide over {world} process(es) and {options.accumulate} part(s) of at "
            f"least 2; use a multiple of {unit}, at least {2 * unit}."
        )
    return batch


def _backbone(recipe: Recipe, size: int, auto: dict[str, str]) -> str:
    name = recipe.backbone
    if size <= SMALL_SIDE and name.startswith("vit") and "patch" in name:
        auto["backbone"] = f"{SMALL_VIT}: the recipe's {name} has patches too large for {size} px"
        return SMALL_VIT
    auto["backbone"] = f"{name}: the recipe's"
    return name


def make_plan(
    method: Method, choices: Choices, options: PretrainOptions, data: BatchData, device: torch.device
) -> Plan:
    """The numbers of the loop; with a budget in minutes the steps stay open until they are measured."""
    per_epoch = epoch_steps(method, len(data), choices.batch_size, options.seed)
    epochs = options.epochs if options.epochs is not None else float(choices.recipe.epochs)
    steps = None if options.minutes is not None else steps_of(epochs, per_epoch)
    if options.minutes is None and options.epochs is None:
        choices.auto["epochs"] = f"{epochs:g}: the recipe's"
    precision = resolve_precision(options.precision, device)
    if options.precision == "auto":
        choices.auto["precision"] = f"{precision}: what {device.type} does best"
    if options.lr is None:
        recipe = choices.recipe
        choices.auto["lr"] = f"{recipe.lr:g} at a batch of {recipe.lr_batch}, {recipe.lr_rule} rule"
    return Plan(
        recipe=choices.recipe,
        lr=peak_lr(choices.recipe, choices.batch_size),
        batch_size=choices.batch_size,
        steps_per_epoch=per_epoch,
        steps=steps,
        epochs=None if steps is None else steps / per_epoch,
        minutes=options.minutes,
        accumulate=options.accumulate,
        seed=options.seed,
        device=str(device),
        precision=precision,
        log_every=options.log_every,
        parallel="ddp" if options.parallel == "auto" else options.parallel,
    )
