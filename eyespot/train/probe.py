"""Live measurement of a network in training: the numbers that the verdict rests on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eyespot.draws import epoch_permutation
from eyespot.evaluate import knn
from eyespot.metrics.representation import effective_rank, mean_cosine, spread
from eyespot.modality import Inputs, count, image, moved
from eyespot.modality import rows as taken_rows
from eyespot.nets.backbones import evaluating
from eyespot.process import alone

Numbers = dict[str, float]


class LiveProbe:
    """Measures a network on a fixed small set of clean samples, without disturbing its training: evaluation mode,
    no gradients, the mode of every part, batch statistics and random numbers left as they were.

    Args:
        inputs: clean views of n >= 2 training samples: pixels [n, C, S, S] in [0, 1].
        labels: int64 [n], or None.
        batch_size: samples at a time.

    Attributes:
        floor: the numbers of random weights, see `set_floor`.
    """

    def __init__(self, inputs: Inputs, labels: Tensor | None = None, batch_size: int = 256):
        if count(inputs) < 2:
            raise ValueError("a probe needs at least two samples")
        self.inputs, self.labels, self.batch_size = inputs, labels, batch_size
        self.classes = 0 if labels is None else int(labels.max()) + 1
        self.floor: Numbers = {}
        self._floor_hits: Tensor | None = None

    @staticmethod
    def of(
        data: Any,
        image_size: int,
        number: int = 512,
        seed: int = 0,
        batch_size: int = 256,
        clean: Callable[..., Inputs] = image.clean,
    ) -> LiveProbe:
        """The probe for a run: `number` training samples drawn by `seed`, with their labels where known.

        Args:
            data: batches of samples. Where labels are known, at most number / 16 classes are drawn, so that
                every sample has neighbours of its own class to find.
            clean: what the network sees of a batch, see `eyespot.modality`.
        """
        rows, labels = probe_rows(data.labels, len(data), number, seed)
        batch = data.batch(rows)
        taken = batch["index"].numpy()
        kept = torch.from_numpy(data.labels[taken]) if labels else None
        return LiveProbe(clean(batch, image_size), kept, batch_size)

    def set_floor(self, net: Callable[[Any], Tensor], head: nn.Module | None = None) -> Numbers:
        """Measure random weights: the network before training, or its random twin when it starts trained.

        Batch norms take the statistics of the probe's samples, in a copy: those of a new network (mean 0, variance 1)
        change features as soon as training starts, whether anything is learned or not. Only `knn` is of the network as
        it is, so that it is the floor that `evaluate` reports; `knn_calibrated` stands beside it.
        """
        numbers, hits = self._measure(*self._calibrated(net, head))
        if hits is not None:
            numbers["knn_calibrated"] = numbers["knn"]
            numbers["knn"] = self._measure(net, None)[0]["knn"]
        self.floor, self._floor_hits = numbers, hits
        return numbers

    def __call__(self, net: Callable[[Any], Tensor], head: nn.Module | None = None) -> Numbers:
        """The numbers of a network now.

        Args:
            net: clean inputs -> features [B, D].
            head: what turns features into what the loss compares, see `projection_head`.

        Returns:
            effective_rank, spread, mean_cosine; with a head projection_cosine; with labels knn (percent, leave one
            out) and knn_error, the standard error in percent of its difference to the calibrated floor.
        """
        numbers, hits = self._measure(net, head)
        if hits is not None and self._floor_hits is not None:
            difference = hits.double() - self._floor_hits.double()
            numbers["knn_error"] = 100 * float(difference.std()) / math.sqrt(len(hits))
        return numbers

    @torch.no_grad()
    def _calibrated(self, net: Any, head: nn.Module | None) -> tuple[Any, nn.Module | None]:
        """Copies whose batch norms have the statistics of the probe's samples."""
        if not isinstance(net, nn.Module):
            return net, head
        net, head = copy.deepcopy((net, head))
        parts = nn.ModuleList([m for m in (net, head) if m is not None]).eval()
        norms = [m for m in parts.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        if norms:
            with alone():
                for _ in self._forward(net, head, parts):
                    pass
        parts.eval()
        return net, head

    @torch.no_grad()
    def _forward(self, net: Any, head: nn.Module | None, parts: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features, and what the head makes of them, batch by batch."""
        like = next((p for p in parts.parameters() if p.is_floating_point()), torch.empty(0))
        with torch.random.fork_rng(devices=_devices(like)):
            for start in range(0, count(self.inputs), self.batch_size):
                part = taken_rows(self.inputs, start, start + self.batch_size)
                features = net(moved(part, like.device, like.dtype))
                yield features, None if head is None else head(features)

    def _measure(self, net: Any, head: nn.Module | None) -> tuple[Numbers, Tensor | None]:
        parts = nn.ModuleList([m for m in (net, head) if isinstance(m, nn.Module)])
        with evaluating(parts):
            batches = list(self._forward(net, head, parts))
        projected = [p for _, p in batches if p is not None]
        x = torch.cat([f for f, _ in batches]).float()
        numbers = {"effective_rank": 1.0, "spread": 0.0, "mean_cosine": math.nan}
        if bool(x.isfinite().all()):
            measures = {"effective_rank": effective_rank, "spread": spread, "mean_cosine": mean_cosine}
            numbers = {name: float(measure(x)) for name, measure in measures.items()}
        if projected:
            numbers["projection_cosine"] = float(mean_cosine(torch.cat(projected).float()))
        if self.labels is None or math.isnan(numbers["mean_cosine"]):
            return numbers, None
        hits = leave_one_out(x, self.labels.to(x.device), self.classes).cpu()
        numbers["knn"] = 100 * float(hits.double().mean())
        return numbers, hits


def _devices(like: Tensor) -> list[torch.device]:
    return [like.device] if like.device.type == "cuda" else []


def leave_one_out(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Whether the weighted kNN over all other rows gives each row's class: bool [n], for features [n, D]."""
    k = min(knn.K, len(x) - 1)
    cosines, rows = knn.nearest(x, x, k + 1)
    own = rows == torch.arange(len(x), device=x.device)[:, None]
    own[~own.any(1), k] = True  # equal pictures pushed the row itself out of its list
    votes = knn.votes(cosines.masked_fill(own, -math.inf), labels[rows], classes)
    return votes.argmax(1) == labels


def probe_rows(labels: np.ndarray | None, n: int, count: int, seed: int) -> tuple[np.ndarray, bool]:
    """Sample numbers of a probe, sorted, and whether its labels can be used (two classes or more)."""
    order = epoch_permutation(seed, 0, n, "probe")
    if labels is not None:
        order_known = order[labels[order] >= 0]
        values = np.unique(labels[order_known])
        if len(values) > max(2, count // 16):
            few = values[epoch_permutation(seed, 0, len(values), "probe classes")[: max(2, count // 16)]]
            order_known = order_known[np.isin(labels[order_known], few)]
        known = order_known[:count]
        if len(known) >= 32 and len(np.unique(labels[known])) > 1:
            return np.sort(known), True
    return np.sort(order[:count]), False


def projection_head(method: nn.Module, embed_dim: int) -> nn.Module | None:
    """The part of a method that turns features [B, embed_dim] into what its loss compares: its `projector` or `head`,
    where that begins with a linear layer of this width; else None."""
    for name in ("projector", "head"):
        part = getattr(method, name, None)
        if isinstance(part, nn.Module):
            first = next((m for m in part.modules() if list(m.parameters(recurse=False))), None)
            if isinstance(first, nn.Linear) and first.in_features == embed_dim:
                return part
    return None
