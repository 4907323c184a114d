"""What several methods share: arguments of their views, small views, prototypes that rest at first."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import Method, MethodConfig
from eyespot.methods.ranges import SHARE, VIEW, WIDTH, check_pair, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.views import recipes
from eyespot.views.image import ViewSpec, two_views


@dataclass(frozen=True)
class ColorConfig(MethodConfig):
    """Of methods whose views jitter colours."""

    color: Literal["linear", "exact"] = "linear"
    """Colours by one matrix a picture with hue as a rotation, or by torchvision's operations one after the other."""


@dataclass(frozen=True)
class SymmetricViews(ColorConfig):
    """Of methods with SimCLR's views, see `eyespot.views.recipes.symmetric`."""

    crop_min: float = 0.2
    """Least share of the picture's area that a crop keeps (0.08 in SimCLR and BYOL)."""
    jitter: float = 0.5
    """Strength of the colour jitter (1.0 in SimCLR on ImageNet)."""
    grey: float = 0.2
    """Probability that a view loses its colour."""
    blur: float | None = None
    """Probability that a view is blurred; none is 0.5 above 64 px and 0 on smaller pictures."""
    flip: float = 0.5
    """Probability that a view is mirrored left to right."""

    def __post_init__(self) -> None:
        check_ranges(self, **VIEW)

    def view_spec(self) -> ViewSpec:
        """The view, drawn twice."""
        c = self
        return recipes.symmetric(c.image_size, c.crop_min, c.jitter, c.grey, c.blur, c.flip, color=c.color)

    def view_pair(self) -> tuple[ViewSpec, ViewSpec]:
        """View 1 and view 2."""
        spec = self.view_spec()
        return spec, spec


@dataclass(frozen=True)
class AsymmetricViews(SymmetricViews):
    """Of methods with BYOL's pair of views, see `eyespot.views.recipes.asymmetric`."""

    blur: float | None = None
    """Probability that view 1 is blurred (view 2: a tenth); none is 1 above 64 px and 0 on smaller pictures."""
    solarize: float = 0.2
    """Probability that bright pixels of view 2 are inverted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, solarize=SHARE)

    def view_pair(self) -> tuple[ViewSpec, ViewSpec]:
        """View 1 and view 2."""
        c = self
        return recipes.asymmetric(c.image_size, c.crop_min, c.jitter, c.grey, c.blur, c.solarize, c.flip, color=c.color)


def small_view_size(backbone: Backbone, config: Any, crops: int) -> int:
    """Side of the small views of a multi-crop method in pixels: the config's `local_size`, or 3/7 of the large views'
    (96 for 224), rounded up to whole patches.

    Args:
        config: has `local_crops`, `local_size` and `local_scale`.
        crops: number of small views; with 0 the backbone is not tried.

    Raises:
        UserError: `local_crops`, `local_size` or `local_scale` is out of range, or the backbone takes no such pictures.
    """
    check_ranges(config, local_crops=(0, None), local_size=WIDTH)
    check_pair(config, "local_scale")
    patch = getattr(backbone, "patch", 16)
    size = config.local_size or math.ceil(config.image_size * 3 / 7 / patch) * patch
    if crops:
        try_size(backbone, size)
    return size


def paired_views(method: Method, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
    """{"view1": [B, C, S, S], "view2": ...} by the config's `view_pair`, which plug-ins may have changed."""
    first, second = method.config.view_pair()
    for hook in method.view_hooks:
        first, second = hook(first, second, method)
    return two_views(batch["image"], draws, first, second)


def in_first_epochs(method: Method, epochs: float) -> bool:
    """Whether the training is in its first `epochs`; they are never more than a tenth of it."""
    return method.progress < min(epochs / max(method.info.epochs, 1e-9), 0.1)


def prototypes_rest(method: Method, freeze_epochs: float) -> bool:
    """Whether the prototypes of a method stay as they are now."""
    return in_first_epochs(method, freeze_epochs)


@torch.no_grad()
def try_size(backbone: Backbone, size: int) -> None:
    """Some nets take pictures of one size only: say so now, not at the first step."""
    pixels = backbone.mean.view(1, -1, 1, 1).expand(1, -1, size, size)
    try:
        copy.deepcopy(backbone).eval()(pixels)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The backbone {backbone.name} does not take small views of {size} px ({error}); "
            "set local_crops=0, or local_size to a size it takes."
        ) from error
