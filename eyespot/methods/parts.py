"""What methods share that take pictures apart and rebuild them from the parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eyespot.draws import Draws
from eyespot.methods.method import Method
from eyespot.views.image import clean

SHOWN = 6
"""Most parts that a run shows."""


class PartsMethod(Method):
    """A method with `rebuild` and `decompose`; its config has `slots`, and pictures are not augmented."""

    random_slots: bool = False
    """Whether the decomposition depends on the random numbers that the parts start from."""
    background: int | None = None
    """The part that is always the background, where there is one."""
    ordered: bool = False
    """Whether a part with a smaller number lies in front."""

    @property
    def groups(self) -> int:
        """How many numbers `segments` may give."""
        return int(self.config.slots)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return {"image": clean(batch["image"], self.config.image_size, crop_ratio=1.0, device=draws.device)}

    def decompose(self, inputs: Tensor, run: int = 0) -> dict[str, Tensor]:
        """What clean pictures [B, C, S, S] in [0, 1] are made of, whatever the batch.

        Args:
            run: another start, where parts start from random numbers.

        Returns:
            {"picture": [B, C, S, S], "parts": [B, K, C, S, S], "masks": [B, K, 1, S, S] with sum 1, ...}.
        """
        raise NotImplementedError

    def segments(self, inputs: Tensor) -> Tensor:
        """The part that wins each pixel of clean pictures [B, C, S, S]: int64 [B, S, S]."""
        return self.decompose(inputs)["masks"][:, :, 0].argmax(1)

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """Pictures, what is rebuilt of them, and the first parts on white, each as far as its mask."""
        weight = next(self.parameters())
        pixels = self.views(batch, draws)["image"].to(weight.dtype)
        with torch.no_grad():
            found = self.decompose(pixels)
        parts = (found["masks"] * found["parts"] + 1 - found["masks"]).unbind(1)[:SHOWN]
        shown = {f"part {k + 1}": part for k, part in enumerate(parts)}
        return {"parts": {"picture": pixels, "rebuilt": found["picture"], **shown}}
