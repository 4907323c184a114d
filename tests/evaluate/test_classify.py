"""Accuracy of a method that predicts classes: labels by name, bad pictures left out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.errors import UserError
from eyespot.evaluate.classify import accuracy
from eyespot.methods.method import MethodConfig

LEVELS = {"black": 0, "grey": 128, "white": 255}


class Brightness(nn.Module):
    """Predicts white, black or grey, in this order of its classes."""

    names = ("white", "black", "grey")

    def __init__(self):
        super().__init__()
        self.config = MethodConfig(image_size=8)
        self.levels = nn.Parameter(torch.tensor([LEVELS[n] / 255 for n in self.names]))

    def predict(self, pixels):
        return -(pixels.mean((1, 2, 3))[:, None] - self.levels).abs()


@pytest.fixture
def folder(tmp_path):
    for name, level in LEVELS.items():
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_classes_are_matched_by_name(folder):
    result = accuracy(Brightness(), Data(open_source(folder), workers=0), Brightness.names, batch_size=5)
    assert (result["top1"], result["top5"], result["n_test"], result["classes"]) == (100.0, 100.0, 12, 3)


def test_bad_pictures_are_left_out(folder):
    for name in ("black/3.png", "grey/3.png"):  # the next good ones are of another class
        (folder / name).write_bytes(b"\x89PNG nothing")
    data = Data(open_source(folder), workers=0, max_bad=0.5)
    for batch_size in (1, 256):
        result = accuracy(Brightness(), data, Brightness.names, batch_size=batch_size)
        assert (result["top1"], result["n_test"]) == (100.0, 10)


def test_double_precision(folder):
    assert accuracy(Brightness().double(), Data(open_source(folder), workers=0), Brightness.names)["top1"] == 100.0


def test_classes_that_were_not_trained(folder):
    with pytest.raises(UserError, match="'white' was not trained"):
        accuracy(Brightness(), Data(open_source(folder), workers=0), ("black", "grey"))
