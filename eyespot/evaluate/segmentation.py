"""Unsupervised segmentation by clusters of feature maps, version 1: no label is used until the clusters are named.

As many clusters as there are classes: k-means on the unit features of about 20,000 cells of training pictures, the best
of 10 starts by its own objective. Each test cell belongs to the nearest centre; distances are brought to the size of
the picture bilinearly. Then ONE assignment of clusters to classes for the whole test set, that with the most pixels
right (Hungarian algorithm), gives them names; it is part of the metric, as in IIC (Ji et al.; ICCV 2019; arXiv
1807.06653) and PiCIE (Cho et al.; CVPR 2021; arXiv 2103.17070), and never made for each picture, which inflates.

    mIoU, accuracy    as in `pixel_linear`, after the assignment
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.evaluate.clusters import STARTS, kmeans
from eyespot.evaluate.dense import CELLS, Drawn, Fitted
from eyespot.metrics.segmentation import matched

NAME = "segmentation"
VERSION = 1
MAPS = "features"
SETTINGS = ("image_size",)


def fit(drawn: Drawn, *, seed: int = 0, device: torch.device | str = "cpu") -> Fitted:
    """The clusters of one network; the classes are only counted.

    Args:
        seed: of the starts of k-means.
        device: where distances are computed.
    """
    clusters = min(drawn.classes, len(drawn.cells))
    centres = kmeans(drawn.cells, clusters, seed).to(device)
    config = {"cells": len(drawn.cells), "drawn": CELLS, "clusters": clusters, "starts": STARTS}
    return Fitted(lambda found: nearness(found, centres), clusters, lambda counts: matched(counts)[0], config=config)


def nearness(found: Tensor, centres: Tensor) -> Tensor:
    """Minus half the square distance of the unit features of a map [B, D, h, w] to centres [K, D], without the part
    that all centres share: [B, K, h, w]."""
    centres = centres.to(found)
    return F.conv2d(F.normalize(found, dim=1), centres[:, :, None, None], -centres.square().sum(1) / 2)
