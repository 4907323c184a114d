"""Fine-tuning, version 1: the whole network trained with labels from where it stands, then measured on test pictures.

A linear classifier is put on the pooled features and everything is trained by one short recipe; the floor is the same
training from random weights. So the difference says what the pre-training was worth where labels are there.

    AdamW               rate 2e-3 at a batch of 256, by the square root of the batch; decay 0.05
    schedule            10 epochs (--epochs), cosine, the first epoch (at most a tenth) of warm-up
    rate of layer l     rate * 0.75^(n + 1 - l): the classifier has the whole rate, see `eyespot.nets.layers`
    drop-path           up to 0.1, rising over the blocks of a transformer
    views               crops of 0.4 to 1 of the area, mirrored half of the time; label smoothing 0.1
    batch               128; for small sets a tenth of the samples, at least 16

Layer-wise decay, drop-path and smoothing are those of BEiT and MAE (He et al.; CVPR 2022; arXiv 2111.06377, table 9),
with far fewer epochs and without mixup, cutmix, RandAugment and erasing, which pay off in long trainings only: numbers
are not to be mixed with the papers'. Nothing is chosen on the test pictures; they are seen once, after the last step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath  # type: ignore[attr-defined]
from torch import Tensor, nn

from eyespot.data.loader import Data
from eyespot.errors import NonFiniteLoss, UserError
from eyespot.evaluate.classify import accuracy
from eyespot.evaluate.models import seeded
from eyespot.methods.image.supervised import Supervised, SupervisedConfig
from eyespot.methods.method import Info, Recipe
from eyespot.nets.backbones import Backbone
from eyespot.nets.layers import rate_scales
from eyespot.nets.vit import ViTBackbone
from eyespot.train.fit import Listener, fit, silent
from eyespot.train.launch import resolve_precision
from eyespot.train.plan import Plan
from eyespot.train.schedules import peak_lr

NAME = "finetune"
VERSION = 1
SETTINGS = ("epochs",)
"""What may differ between two results of this version; they are compared only where it agrees."""
RECIPE = Recipe(
    optimizer="adamw",
    lr=2e-3,
    lr_rule="sqrt",
    lr_batch=256,
    weight_decay=0.05,
    batch_size=128,
    epochs=10,
    warmup_epochs=1.0,
)
DECAY = 0.75
DROP_PATH = 0.1
SMOOTHING = 0.1
CROP_MIN = 0.4
FLIP = 0.5
LEAST_STEPS, LEAST_BATCH = 10, 16
ZOOM = 2.0
"""Larger pictures are decoded at this multiple of the size; the smallest crop, 0.4 of the area at 4:3, needs less."""


class FineTuned(Supervised):
    """Cross entropy with rates that fall from the classifier towards the pixels."""

    recipe = RECIPE

    def param_groups(self) -> Iterable[dict[str, Any]]:
        scales = rate_scales(self.backbone, DECAY)
        groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            scale = scales.get(name.removeprefix("backbone."), 1.0)
            groups.setdefault(scale, []).append((name, parameter))
        return [{"params": params, "lr_scale": scale} for scale, params in sorted(groups.items())]


def run(
    train: Data,
    train_labels: Tensor,
    test: Data,
    test_labels: Tensor,
    classes: int,
    *,
    net: Backbone,
    image_size: int,
    epochs: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    listener: Listener = silent,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The protocol: accuracies in percent, and the constants it used.

    Args:
        train, test: pictures; their own labels are those below, and their class names are those numbers.
        train_labels, test_labels: int64 class numbers below `classes`, [n] and [m].
        net: the network to start from; a copy of it is trained.
        image_size: side of the views in pixels.
        epochs: passes over the training pictures; None is the recipe's.
        seed: of the classifier, the order and the views.
        listener: called with the records of the training, see `eyespot.terminal.progress`.

    Raises:
        UserError: the training diverged.
    """
    for side in (train, test):
        side.shrink_to(math.ceil(ZOOM * image_size))
    method = build(net, classes, len(train), image_size, seed)
    plan = make_plan(method, len(train), epochs, seed, torch.device(device))
    try:
        fit(method, train, plan, listener=listener)
    except NonFiniteLoss as error:
        reason = str(error).split(";")[0]
        raise UserError(f"Fine-tuning {net.name} diverged ({reason}); evaluate an earlier run.") from error
    names = tuple(str(k) for k in range(classes))
    result = accuracy(method, test, names, torch.device(device))
    config: dict[str, Any] = {
        "features": "all weights trained with labels",
        "epochs": plan.epochs if epochs is None else epochs,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "lr": plan.lr,
        "weight_decay": RECIPE.weight_decay,
        "layer_decay": DECAY,
        "drop_path": DROP_PATH if isinstance(net, ViTBackbone) else 0.0,
        "label_smoothing": SMOOTHING,
        "precision": plan.precision,
    }
    return {"top1": result["top1"], "top5": result["top5"]}, config


def build(net: Backbone, classes: int, samples: int, image_size: int, seed: int) -> FineTuned:
    """The method on a copy of the network, its classifier drawn by `seed`."""
    net = copy.deepcopy(net)
    if not any(p.requires_grad for p in net.parameters()):
        net.requires_grad_(True)  # it was given frozen
    set_drop_path(net, DROP_PATH)
    config = SupervisedConfig(
        image_size=image_size, smoothing=SMOOTHING, crop_min=CROP_MIN, jitter=0.0, flip=FLIP, color="linear"
    )
    info = Info(samples=samples, channels=net.channels, classes=classes)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return seeded(seed, lambda: FineTuned(net, config, info)).to(like.device, dtype)


def set_drop_path(net: Backbone, rate: float) -> None:
    """Stochastic depth in the blocks of a plain transformer, rising from 0 to `rate` (Huang et al., ECCV 2016)."""
    if isinstance(net, ViTBackbone):
        blocks = list(net.net.blocks)
        for i, block in enumerate(blocks):
            share = rate * i / max(1, len(blocks) - 1)
            for part in ("drop_path1", "drop_path2"):
                if hasattr(block, part):
                    setattr(block, part, DropPath(share) if share > 0 else nn.Identity())


def make_plan(method: FineTuned, samples: int, epochs: float | None, seed: int, device: torch.device) -> Plan:
    """The numbers of the loop, from the frozen recipe and the number of samples."""
    batch = min(RECIPE.batch_size, max(samples // LEAST_STEPS, min(LEAST_BATCH, samples)))
    per_epoch = samples // batch
    steps = max(1, round((RECIPE.epochs if epochs is None else epochs) * per_epoch))
    double = next(method.parameters()).dtype == torch.float64
    return Plan(
        recipe=RECIPE,
        lr=peak_lr(RECIPE, batch),
        batch_size=batch,
        steps_per_epoch=per_epoch,
        steps=steps,
        epochs=steps / per_epoch,
        seed=seed,
        device=str(device),
        precision="float64" if double else resolve_precision("auto", device),
    )
