"""Layers of a backbone, counted from the pixels."""

import pytest
import torch
from torch import nn

from eyespot.nets.backbones import backbone
from eyespot.nets.layers import layers, rate_scales


def layer(net, part):
    """The one layer of all parameters whose names begin so."""
    found = {v for k, v in layers(net)[0].items() if k.startswith(f"net.{part}")}
    assert len(found) == 1, (part, found)
    return found.pop()


@pytest.mark.parametrize(
    ("name", "size", "parts", "top"),
    [
        ("resnet8", 32, {"conv": 0, "bn": 0, "blocks.0.": 1, "blocks.2.": 3}, 4),
        ("resnet14", 32, {"conv": 0, "blocks.0.": 1, "blocks.1.": 1, "blocks.2.": 2, "blocks.5.": 3}, 4),
        ("vit_nano", 32, {"patch_embed": 0, "cls_token": 0, "pos_embed": 0, "blocks.0.": 1, "blocks.2.": 3}, 4),
        ("vit_nano", 32, {"norm.": 4}, 4),
        ("resnet18", 32, {"conv1": 0, "bn1": 0, "layer1": 1, "layer4": 4}, 5),
        ("torchvision/resnet18", 32, {"conv1": 0, "bn1": 0, "layer1": 1, "layer4": 4}, 5),
        ("torchvision/vit_b_32", 32, {"conv_proj": 0, "class_token": 0, "encoder.layers.encoder_layer_11.": 12}, 13),
        ("torchvision/vit_b_32", 32, {"encoder.pos_embedding": 0, "encoder.ln": 13}, 13),
        ("convnext_atto", 32, {"stem": 0, "stages.0.": 1, "stages.3.": 4}, 6),
    ],
)
def test_layers_of_known_nets(name, size, parts, top):
    net = backbone(name, image_size=size)
    found, head = layers(net)
    assert set(found) == {n for n, _ in net.named_parameters()}
    assert head == top
    assert {part: layer(net, part) for part in parts} == parts


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3)))
        self.last = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.last(self.body(self.norm(self.first(x * self.scale)))).mean((2, 3))


def test_layers_of_an_own_module():
    net = backbone(Own(), image_size=16)
    found, head = layers(net)
    assert set(found) == {n for n, _ in net.named_parameters()}
    parts = {"scale": 0, "first": 0, "norm": 0, "body.0.": 1, "body.2.": 2, "last": 2}
    assert {part: layer(net, part) for part in parts} == parts and head == 3
    assert layers(backbone(nn.Sequential(nn.Conv2d(3, 4, 3)), image_size=16)) == (
        {"net.0.weight": 0, "net.0.bias": 0},
        1,
    )


def test_rates_fall_towards_the_pixels():
    scales = rate_scales(backbone("resnet8", image_size=32), 0.5)
    assert scales["net.conv.weight"] == 0.5**4 and scales["net.blocks.2.conv1.weight"] == 0.5
    scales = rate_scales(backbone("vit_nano", image_size=32), 0.5)
    assert scales["net.norm.weight"] == 1.0 and scales["net.blocks.2.mlp.fc1.weight"] == 0.5
