"""Weighted k-nearest-neighbour labelling of the cells of feature maps, version 1. Nothing is trained or tuned.

About 20,000 cells of training pictures are the bank. Each cell of a test picture is compared by cosine with all of
them; its 20 nearest vote with weight exp(cosine / 0.07), each for the classes of its own pixels by their shares. The
votes are brought to the size of the picture bilinearly, and the largest labels the pixel.

It is the protocol `knn` on patches; retrieval of labelled patches is how Hummingbird measures dense features (Balazevic
et al., "Towards in-context scene understanding"; NeurIPS 2023; arXiv 2306.01667), with a larger bank, 30 neighbours and
temperature 0.02. Equal similarities are ordered by the row of the bank. Memory is one chunk of similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.evaluate.dense import CELLS, Drawn, Fitted
from eyespot.evaluate.knn import TEST_CHUNK, nearest

NAME = "patch_knn"
VERSION = 1
MAPS = "features"
SETTINGS = ("image_size",)
K = 20
TEMPERATURE = 0.07


def fit(drawn: Drawn, *, seed: int = 0, device: torch.device | str = "cpu") -> Fitted:
    """The bank of one network.

    Args:
        seed: not used: the cells are drawn already.
        device: where the bank lies.
    """
    bank, shares = drawn.cells.to(device), drawn.shares.to(device)
    k = min(K, len(bank))
    config = {"cells": len(bank), "drawn": CELLS, "k": k, "temperature": TEMPERATURE}
    return Fitted(lambda found: votes(found, bank, shares, k), drawn.classes, config=config)


def votes(found: Tensor, bank: Tensor, shares: Tensor, k: int) -> Tensor:
    """Summed votes [B, classes, h, w] for a map [B, D, h, w], from cells [Q, D] with class shares [Q, classes]."""
    queries = found.flatten(2).transpose(1, 2).flatten(0, 1)
    parts = []
    for chunk in queries.split(TEST_CHUNK):
        cosines, rows = nearest(chunk, bank, k)
        weight = (cosines / TEMPERATURE).exp()
        parts.append((weight[:, :, None] * shares[rows].to(weight)).sum(1))
    return torch.cat(parts).unflatten(0, (len(found), *found.shape[2:])).permute(0, 3, 1, 2)
