"""The pairs of views that many papers share, for any picture size."""

from __future__ import annotations

from typing import Literal

from eyespot.views.image import ViewSpec


def blur_probability(blur: float | None, size: int, usual: float) -> float:
    """The probability asked for; when None, the usual one above 64 px and no blur on smaller pictures."""
    if blur is not None:
        return blur
    return usual if size > 64 else 0.0


def symmetric(
    size: int,
    crop_min: float,
    jitter: float,
    grey: float = 0.2,
    blur: float | None = None,
    flip: float = 0.5,
    color: Literal["linear", "exact"] = "exact",
) -> ViewSpec:
    """SimCLR's view (Chen et al. 2020, appendix A), drawn twice; MoCo v2's at crop 0.2 and jitter 0.5.

    Args:
        size: side in pixels.
        crop_min: least share of the picture's area that a crop keeps.
        jitter: strength s; brightness, contrast and saturation change by up to 0.8 s, hue by up to 0.2 s.
        grey: probability of losing the colour.
        blur: probability of a blur; None is 0.5 above 64 px, else 0.
        flip: probability of mirroring left to right.
        color: how colours are jittered, see `ViewSpec`.
    """
    return ViewSpec(
        size=size,
        scale=(crop_min, 1.0),
        flip=flip,
        jitter=(0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter) if jitter > 0 else None,
        grey_p=grey,
        blur_p=blur_probability(blur, size, 0.5),
        color=color,
    )


def asymmetric(
    size: int,
    crop_min: float,
    jitter: float = 0.5,
    grey: float = 0.2,
    blur: float | None = None,
    solarize: float = 0.2,
    flip: float = 0.5,
    color: Literal["linear", "exact"] = "exact",
) -> tuple[ViewSpec, ViewSpec]:
    """BYOL's pair (Grill et al. 2020, table 6), also of Barlow Twins, DINO and MoCo v3: the first view blurred, the
    second sometimes solarised.

    Args as in `symmetric`, and:
        jitter: as there, but saturation changes by half as much.
        blur: probability of a blur in the first view; None is 1 above 64 px, else 0. A tenth of it in the second.
        solarize: probability that bright pixels of the second view are inverted.
    """
    first = blur_probability(blur, size, 1.0)
    jitters = (0.8 * jitter, 0.8 * jitter, 0.4 * jitter, 0.2 * jitter) if jitter > 0 else None

    def spec(blur_p: float, solarize_p: float) -> ViewSpec:
        return ViewSpec(
            size=size,
            scale=(crop_min, 1.0),
            flip=flip,
            jitter=jitters,
            grey_p=grey,
            blur_p=blur_p,
            solarize_p=solarize_p,
            color=color,
        )

    return spec(first, 0.0), spec(0.1 * first, solarize)
