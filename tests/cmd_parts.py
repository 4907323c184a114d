"""A bare CMD, and what one encodes, made up: for its tests and for those of its losses."""

import torch
from torch import nn

from eyespot.methods.image.cmd import CMD, CMDConfig
from eyespot.nets.backbones import backbone


def bare(dim, prototypes, **settings):
    """A method whose backbone is never asked: for what is encoded by hand."""
    net = backbone(nn.Conv2d(3, dim, 1), image_size=8)
    sizes = {"image_size": 8, "hidden": 8, "bottleneck": 4, "prototypes": prototypes, "local_crops": 0}
    return CMD(net, CMDConfig(**sizes, **settings)).double()


def random_encoded(large=2, local=2, n=3, t=4, u=2, k=7, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    return {
        "student": random(large + local, n, k),
        "regions": random(large, n, t, k),
        "tokens": random(large, n, t, d),
        "local_regions": random(local, n, u, k),
        "local_tokens": random(local, n, u, d),
        "teacher": random(large, n, k),
        "teacher_regions": random(large, n, t, k),
        "teacher_tokens": random(large, n, t, d),
    }
