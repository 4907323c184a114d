"""Bounds of a method's arguments, checked when it is built."""

from __future__ import annotations

from typing import Any

from eyespot.errors import UserError

POSITIVE = (1e-6, None)
SHARE = (0.0, 1.0)
WIDTH = (1, None)
CROP = (0.001, 1.0)
JITTER = (0.0, 2.5)  # the hue changes by a fifth of it, at most by half the circle
VIEW = {"crop_min": CROP, "jitter": JITTER, "grey": SHARE, "blur": SHARE, "flip": SHARE}
"""Bounds of the arguments of `eyespot.views.recipes`."""


def check_pair(config: Any, name: str) -> None:
    """The field `name` of `config` must be two shares, 0 < low <= high <= 1.

    Raises:
        UserError: names the argument and its value.
    """
    low, high = getattr(config, name)
    if not 0 < low <= high <= 1:
        raise UserError(f"{name}={getattr(config, name)} is out of range; give two shares, 0 < low <= high <= 1.")


def check_ranges(config: Any, **bounds: tuple[float | None, float | None]) -> None:
    """Every named field of `config` must lie in its bounds, both included; None is no bound, a field None passes.

    Raises:
        UserError: names the argument, its value and the bounds.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is None or ((low is None or value >= low) and (high is None or value <= high)):
            continue
        valid = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise UserError(f"{name}={value} is out of range; give a value {valid}.")
