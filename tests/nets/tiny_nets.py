"""Small nets and files of their weights."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from eyespot.nets.backbones import backbone

TINY = {"layers": [1, 1, 1, 1]}


def tiny(channels=3, size=96, **options):
    """A ResNet with one block a stage, in batch norm as after training."""
    net = backbone("resnet18", channels=channels, image_size=size, **TINY, **options)
    settle(net)
    return net


def settle(net):
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def weights(net):
    return {k: v.clone() for k, v in net.net.state_dict().items()}


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved(path, tensors):
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path
