"""The supervised reference: it needs labels, learns them and predicts."""

import math

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.image.supervised import Supervised, SupervisedConfig
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone


def build(**settings):
    torch.manual_seed(0)
    return Supervised(backbone("resnet8", image_size=32), SupervisedConfig(**settings), Info(classes=5))


def test_needs_labels():
    with pytest.raises(UserError, match="labels"):
        Supervised(backbone("resnet8", image_size=32))


def test_is_cross_entropy_of_what_it_predicts():
    method, label = build(smoothing=0.1).eval(), torch.tensor([0, 3, 4])
    pixels = torch.rand(3, 3, 32, 32)
    log_p = method.predict(pixels).log_softmax(1)
    expected = -0.9 * log_p[range(3), label].mean() - 0.1 * log_p.mean()
    torch.testing.assert_close(method({"view": pixels, "label": label})["cross_entropy"], expected)


def test_views_carry_the_labels():
    batch = {"image": torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8), "label": torch.arange(4)}
    made = build().views(batch, Draws(index=range(4)))
    assert made["view"].shape == (4, 3, 32, 32) and torch.equal(made["label"], batch["label"])


def test_learns_a_batch_by_heart():
    method, label = build(), torch.arange(10) % 5
    pixels = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for _ in range(15):
        loss = method({"view": pixels, "label": label})["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert method({"view": pixels, "label": label})["cross_entropy"] < method.plateau(10)["cross_entropy"] / 4
    assert method.plateau(10) == {"cross_entropy": math.log(5)}
    assert (method.predict(pixels).argmax(1) == label).float().mean() > 0.8
