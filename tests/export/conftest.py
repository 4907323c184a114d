"""Nets as after training, and the Python that an export prints, run as a user would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eyespot.nets.backbones import Backbone, backbone

STATISTICS = {"mean": (0.41, 0.42, 0.43, 0.44, 0.45), "std": (0.21, 0.22, 0.23, 0.24, 0.25)}


def make(name: str, size: int = 32, channels: int = 3, **options: Any) -> Backbone:
    """A net with batch-norm statistics and position embeddings that matter."""
    given = {k: v[:channels] for k, v in STATISTICS.items()}
    net = backbone(name, image_size=size, channels=channels, **given, **options)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1, generator=draw)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=draw)
            elif key.endswith(("pos_embed", "cls_token", "reg_token", "pos_embedding", "class_token")):
                value.normal_(0, 0.5, generator=draw)
    return net.eval()


@pytest.fixture
def trained() -> Callable[..., Backbone]:
    return make


@pytest.fixture
def used() -> Callable[[dict[str, Any], Tensor], Tensor]:
    """Features that the printed Python gives, run where the file is."""

    def run(done: dict[str, Any], pixels: Tensor) -> Tensor:
        known: dict[str, Any] = {"pixels": pixels.numpy() if done["format"] == "onnx" else pixels}
        before = Path.cwd()
        os.chdir(Path(done["out"]).parent)
        try:
            with torch.no_grad():
                exec(done["usage"], known)
        finally:
            os.chdir(before)
        return torch.as_tensor(known["features"])

    return run
