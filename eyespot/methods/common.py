"""Arguments that several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eyespot.methods.method import MethodConfig


@dataclass(frozen=True)
class ColorConfig(MethodConfig):
    """Of methods whose views jitter colours."""

    color: Literal["linear", "exact"] = "linear"
    """Colours by one matrix a picture with hue as a rotation, or by torchvision's operations one after the other."""
