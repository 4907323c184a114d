"""Retrieval between pictures and captions, version 1, as on Flickr30k and COCO; nothing is trained.

    image_to_text_R@k    share of pictures that have one of their captions among the k nearest of all captions
    text_to_image_R@k    share of captions that have their picture among the k nearest
    ..._median_rank      of the first that belongs, from 1; the lower of the two middle ones where their number is even
    rsum                 the sum of the six recalls: 600 is perfect

A caption belongs to every picture that has an equal one, so that captions such as "a harbor ." are no mistakes. Of
equal similarities those that do not belong come first: constant vectors find nothing. Features are compared as the
method compares them, mostly by their cosine. Measured on the test pictures where they are given, on at most 5,000 of
them, drawn by the seed.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.draws import epoch_permutation
from eyespot.errors import UserError
from eyespot.evaluate import whole
from eyespot.evaluate.dense import still
from eyespot.evaluate.measured import Measured
from eyespot.evaluate.samples import open_data
from eyespot.metrics.image_text import first_ranks, retrieval_metrics
from eyespot.options import EvaluateOptions

NAME = "image_text"
VERSION = 1
PICTURES = 5_000
"""Most pictures that are measured."""
BLOCK = 1 << 24
"""Most similarities held at a time (at least those of one query)."""


def run(method: Any, image: Tensor, text: Tensor, owners: Tensor) -> dict[str, float]:
    """The metrics.

    Args:
        method: says by `match` how features are compared.
        image: features [N, E] of the pictures.
        text: features [U, E] of the different captions.
        owners: int64 [M, 2], the number of a picture and of a caption that it has, for every caption of every picture.
    """
    belongs = torch.zeros(len(image), len(text), dtype=torch.bool)
    belongs[owners[:, 0], owners[:, 1]] = True
    captions = owners[:, 1]
    step = max(1, BLOCK // len(captions))
    to_text = []
    for a in range(0, len(image), step):
        scores = method.match(image[a : a + step], text)[:, captions]
        to_text.append(first_ranks(scores, belongs[a : a + step][:, captions]))
    to_image = []
    step = max(1, BLOCK // len(image))
    for a in range(0, len(text), step):
        scores = method.match(image, text[a : a + step]).T
        to_image.append(first_ranks(scores, belongs[:, a : a + step].T))
    return retrieval_metrics(torch.cat(to_text), torch.cat(to_image)[captions])


def measure(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> Measured:
    """The protocol on a run and on its random twins.

    Raises:
        UserError: the run's method knows no text, the data has no captions, or no picture can be read.
    """
    found = whole.open_whole(o, floor_seeds, NAME)
    given, split = (o.data, o.split) if o.test_data is None else (o.test_data, None)
    data = open_data(given, o, found.method.backbone.channels, split, modality.get("pairs"))
    size = o.image_size or found.method.backbone.image_size
    rows = np.sort(epoch_permutation(o.seed, 0, len(data), NAME)[:PICTURES])
    started = time.perf_counter()
    kept: list[list[Tensor]] = [[] for _ in found.methods]
    captions: list[tuple[str, ...]] = []
    with still(found.methods, device):
        for batch, features in whole.picture_features(found.methods, data, rows, size, o.batch_size, device):
            captions += batch["captions"]
            for parts, part in zip(kept, features, strict=True):
                parts.append(part)
    if len(captions) < 2:
        raise UserError(f"'{data.source.name}' has {len(captions)} readable pictures with captions; give two or more.")
    number: dict[str, int] = {}
    owners = [[k, number.setdefault(c, len(number))] for k, texts in enumerate(captions) for c in texts]
    images = iter(torch.cat(parts) for parts in kept)

    def outcome(method: Any) -> Any:
        metrics = run(method, next(images), whole.text_features(method, list(number)), torch.tensor(owners))
        return metrics, {"captions": len(owners), "different_captions": len(number)}

    return whole.measured(
        *(found, NAME, VERSION, whole.on_each(found.methods, device, outcome), o),
        config={"data": data.source.name, "test_data": data.source.name, "data_id": data_id(data, o.seed)},
        n_test=len(captions),
        classes=0,
        seconds=time.perf_counter() - started,
        bad=len(rows) - len(captions),
    )


def data_id(data: BatchData, seed: int) -> str:
    """What tells these pictures and captions from others, 12 hexadecimal digits."""
    digest = hashlib.blake2b(f"{NAME} {seed}\n".encode(), digest_size=6)
    for i in range(len(data)):
        digest.update(f"{os.path.basename(data.source.path(i))}\n".encode())
    return digest.hexdigest()
