"""How features fill their space, version 1: no labels are needed, and nothing is trained.

    effective_rank    RankMe of the features of clean pictures: higher is more directions, at most D
    uniformity        log mean exp(-2 |u - v|^2) over pairs of different pictures, unit features: lower is more even
    alignment         mean |u - v|^2 of two views of one picture, unit features: lower is more alike, 0 is best
    spread            deviation of the unit features per dimension times sqrt(D): 0 collapsed, 1 even

Alignment and uniformity are those of Wang and Isola (ICML 2020; arXiv 2005.10242), the effective rank that of Garrido
et al. (ICML 2023; arXiv 2210.02885), see `eyespot.metrics.representation`. The two views are SimCLR's (crops of 0.2 to
1 of the area, mirrored, jitter 0.5, grey 0.2, blur above 64 px), drawn by (seed, picture): the same for the model and
its floor, whatever views the model was trained with. All are numbers, not percent, and only uniformity and alignment
together say something: constant features align perfectly. Measured on the test pictures where they are given, on at
most 5,000 of them, drawn by the seed.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eyespot.data.loader import Data
from eyespot.draws import Draws, epoch_permutation
from eyespot.errors import UserError
from eyespot.evaluate.dense import still
from eyespot.evaluate.features import is_embeddings
from eyespot.evaluate.measured import Measured, Outcome
from eyespot.evaluate.models import channels_of, modality_of, open_model
from eyespot.evaluate.samples import floor_of, open_data
from eyespot.metrics.representation import alignment, effective_rank, spread, uniformity
from eyespot.options import EvaluateOptions
from eyespot.views.image import clean, two_views
from eyespot.views.recipes import symmetric

NAME = "representation"
VERSION = 1
PICTURES = 5_000
"""Most pictures that are measured."""
CROP_MIN, JITTER = 0.2, 0.5


def run(features: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """The metrics of features [n, D] of clean pictures and of their two views, n >= 2."""
    return {
        "effective_rank": float(effective_rank(features)),
        "uniformity": float(uniformity(features)),
        "alignment": float(alignment(first, second)),
        "spread": float(spread(features)),
    }


def measure(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> Measured:
    """The protocol on a model and on its random twins.

    Raises:
        UserError: saved embeddings (there are no pictures to draw views of), or fewer than two readable pictures.
    """
    if is_embeddings(o.model):
        raise UserError(f"'{o.model}' holds embeddings and no pictures to draw views of; give a run or a backbone.")
    given, split = (o.data, o.split) if o.test_data is None else (o.test_data, None)
    kind = modality_of(o.model)
    data = open_data(given, o, channels_of(o.model, o.channels, o.pretrained), split, kind)
    if not isinstance(data, Data):
        raise UserError(f"{NAME} compares views of pictures, and this model takes {kind.UNIT}; ask for knn or linear.")
    model = open_model(o.model, data, image_size=o.image_size, pretrained=o.pretrained, seed=o.seed)
    size = o.image_size or model.net.image_size
    twins, floor = floor_of(model, o, floor_seeds)
    rows = np.sort(epoch_permutation(o.seed, 0, len(data), NAME)[:PICTURES])
    started = time.perf_counter()
    outcomes, read = _outcomes([model.net, *twins], data, rows, size, o, device)
    config: dict[str, Any] = {
        "run": model.name,
        "backbone": model.net.name,
        "weights": model.weights,
        "features": "pooled, evaluation mode",
        "embed_dim": model.net.embed_dim,
        "image_size": size,
        "channels": model.net.channels,
        "data": data.source.name,
        "test_data": data.source.name,
        "data_id": data_id(data.source, o.seed),
        "floor": floor,
    }
    return Measured(
        protocol=NAME,
        version=VERSION,
        outcomes=outcomes,
        config=config | ({} if o.name is None else {"name": o.name}),
        n_train=0,
        n_test=read,
        classes=0,
        seconds=time.perf_counter() - started,
        bad=len(rows) - read,
        seed=o.seed,
    )


def data_id(source: Any, seed: int) -> str:
    """What tells the pictures from others, 12 hexadecimal digits."""
    digest = hashlib.blake2b(f"representation {seed}\n".encode(), digest_size=6)
    for i in range(len(source)):
        digest.update(f"{os.path.basename(source.path(i))}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def _outcomes(
    nets: list[Any], data: Data, rows: np.ndarray, size: int, o: EvaluateOptions, device: torch.device
) -> tuple[list[Outcome], int]:
    """The metrics of each network, and how many pictures were read."""
    spec = symmetric(size, CROP_MIN, JITTER)
    kept: list[tuple[list[Tensor], ...]] = [([], [], []) for _ in nets]
    chunks = [rows[a : a + o.batch_size] for a in range(0, len(rows), o.batch_size)]
    with still(nets, device):
        for batch in data.stream(chunks, replace=False):
            if not len(batch["index"]):
                continue
            draws = Draws(o.seed, index=batch["index"], device=device, prefix=f"{NAME}/")
            views = two_views(batch["image"], draws, spec)
            seen = (clean(batch["image"], size, device=device), views["view1"], views["view2"])
            for net, parts in zip(nets, kept, strict=True):
                for part, pixels in zip(parts, seen, strict=True):
                    part.append(_embedded(net, pixels))
    read = sum(map(len, kept[0][0]))
    if read < 2:
        raise UserError(f"'{data.source.name}' has {read} readable pictures; the spread of features needs two or more.")
    views_used = {"crop_min": CROP_MIN, "jitter": JITTER, "views": "SimCLR's"}
    return [(run(*(torch.cat(part) for part in parts)), views_used) for parts in kept], read


def _embedded(net: nn.Module, pixels: Tensor) -> Tensor:
    like = next((p for p in net.parameters() if p.is_floating_point()), pixels)
    out: Tensor = net(pixels.to(like.dtype))
    return out.float().cpu() if out.dtype != torch.float64 else out.cpu()
