"""Accuracy of a method that predicts classes (an adapter, the supervised baseline) on held-out pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eyespot import modality
from eyespot.data.batches import BatchData
from eyespot.data.sources import aligned_labels
from eyespot.errors import UserError
from eyespot.metrics.classification import top_k_accuracy

VERSION = 1


@torch.no_grad()
def accuracy(
    method: Any, data: BatchData, class_names: Sequence[str], device: torch.device | str = "cpu", batch_size: int = 256
) -> dict[str, Any]:
    """Top-1 and top-5 in percent of `method.predict` on the clean samples of `data`.

    Args:
        method: has `predict(inputs) -> scores [B, classes]` and `config.image_size`.
        data: labelled samples; classes are matched by name.
        class_names: the classes that the method was trained on, in the order of its scores.

    Raises:
        UserError: the data has no labels, or classes the method does not know.
    """
    labels = aligned_labels(data.source, tuple(class_names)) if data.labels is not None else None
    if labels is None or (labels < 0).any():
        strange = sorted(set(data.class_names) - set(class_names))
        why = f"the class '{strange[0]}' was not trained" if strange else "it has samples without a label"
        raise UserError(f"Accuracy cannot be measured on '{data.source.name}': {why}; give labels of the same classes.")
    started = time.perf_counter()
    training = method.training
    method.eval()
    like = next((p for p in method.parameters() if p.is_floating_point()), torch.empty(0))
    scores, index = [], []
    clean = modality.of_backbone(getattr(method, "backbone", None)).clean
    batches = np.array_split(np.arange(len(data)), max(1, len(data) // batch_size))
    for batch in data.stream(batches, replace=False):  # a bad sample is left out: another has another label
        if len(batch["index"]):
            inputs = modality.moved(clean(batch, method.config.image_size), torch.device(device), like.dtype)
            scores.append(method.predict(inputs).float().cpu())
            index.append(batch["index"])
    method.train(training)
    if not index:
        raise UserError(f"No sample of '{data.source.name}' can be read, so accuracy cannot be measured.")
    known = torch.from_numpy(labels)[torch.cat(index)]
    top1, top5 = (top_k_accuracy(torch.cat(scores), known, k) for k in (1, 5))
    return {
        "protocol": "classify",
        "version": VERSION,
        "top1": top1,
        "top5": top5,
        "n_test": len(known),
        "classes": len(class_names),
        "seconds": round(time.perf_counter() - started, 3),
    }
