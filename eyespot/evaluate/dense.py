"""Feature maps against masks: what all protocols that label pixels share, and the one pass over the pictures.

Geometry. A picture and its mask are brought to the size of the network by the same square (the shorter side resized,
the central square; no further crop): the picture antialiased, the mask by the number at each pixel's middle.
Predictions are made at the resolution of the feature map, brought to the size of the picture bilinearly, and counted
for every pixel that is not ignored, in ONE confusion matrix over the whole test set.

Training pictures (at most 10,000) are never all kept: from each, equally many pixels and cells are drawn, about 25,000
and 20,000 in all, by (seed, picture), the same ones for the model and for its floor. A drawn pixel has the feature that
bilinear interpolation of the map gives there and its class; a drawn cell has its own feature and the shares of the
classes among its pixels. Memory depends on the number of test pictures through nothing but the confusion matrices.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.data.decode import BadFile
from eyespot.data.loader import Data
from eyespot.data.masks import MaskedSource
from eyespot.data.picture import quiet
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.metrics.segmentation import intersection_over_union, mean_iou, pixel_accuracy
from eyespot.nets.backbones import evaluating
from eyespot.views.image import clean, clean_masks

PICTURES = 10_000
"""Most training pictures that are looked at."""
PIXELS, CELLS = 25_000, 20_000
"""Drawn from all training pictures, equally many from each (rounded up)."""
MOST_CLASSES = 256
BLOCK = 1 << 24
"""Most scores at full resolution held at a time (at least those of one picture)."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""A network and pixels [B, C, S, S] in [0, 1] -> a map [B, D, h, w]."""


@dataclass
class Drawn:
    """What was drawn from the training pictures, by one network.

    Attributes:
        pixels, labels, pictures: features [P, D], class numbers int64 [P], and the picture each is from int64 [P].
        cells, shares: features [Q, D], and the share of each class among the pixels of the cell, [Q, classes].
    """

    pixels: Tensor
    labels: Tensor
    pictures: Tensor
    cells: Tensor
    shares: Tensor
    classes: int


@dataclass(frozen=True)
class Fitted:
    """What a protocol learned from the training pictures.

    Attributes:
        scores: map [B, D, h, w] -> scores [B, predictions, h, w]; the largest is the prediction.
        predictions: how many numbers may be predicted.
        named: counts [C, predictions] -> a confusion [C, C or more], where predictions are no class numbers yet.
        also: further ways to name them, {start of the metrics' names: the same}.
        config: the constants used.
    """

    scores: Callable[[Tensor], Tensor]
    predictions: int
    named: Callable[[Tensor], Tensor] = lambda counts: counts
    also: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def outcome(self, counts: Tensor, names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics in percent, and the constants with the IoU of each class, of test counts [C, predictions]."""
        metrics = {}
        for start, named in {"": self.named, **self.also}.items():
            confused = named(counts)
            short = len(counts) - confused.shape[1]
            confused = F.pad(confused, (0, max(0, short)))  # classes that no training pixel had
            metrics |= {f"{start}mIoU": mean_iou(confused), f"{start}accuracy": pixel_accuracy(confused)}
        each = intersection_over_union(F.pad(self.named(counts), (0, max(0, len(counts) - self.predictions))))
        by_class = {name: round(100 * value, 2) for name, value in zip(names, each.tolist(), strict=True)}
        return metrics, dict(self.config) | {"iou": {k: None if math.isnan(v) else v for k, v in by_class.items()}}


# --- classes --------------------------------------------------------------------------------------------------
class Numbering:
    """Values of masks as class numbers, in the order in which they are met; ignored ones are -1."""

    def __init__(self, ignored: Sequence[int]):
        self.ignored = frozenset(ignored)
        self.number: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.number)

    def __call__(self, masks: Tensor) -> Tensor:
        """Class numbers int64 of masks of any shape."""
        values, places = torch.unique(masks, return_inverse=True)
        for value in values.tolist():
            if value not in self.ignored:
                self.number.setdefault(value, len(self.number))
        return torch.tensor([self.number.get(v, -1) for v in values.tolist()], dtype=torch.int64)[places]

    def sort(self) -> Tensor:
        """Number the classes by their values; returns the new number of each old one, int64 [C]."""
        new = {value: k for k, value in enumerate(sorted(self.number))}
        moved = torch.tensor([new[value] for value in self.number], dtype=torch.int64)
        self.number = new
        return moved

    def names(self, known: Mapping[int, str]) -> list[str]:
        """Names of the classes by number; the value where no name is known."""
        return [known.get(value, str(value)) for value in self.number]


# --- one side -------------------------------------------------------------------------------------------------
@dataclass
class Side:
    """Training or test pictures with masks, at one size.

    Attributes:
        bad: pictures whose picture or mask could not be read: {path: reason}.
    """

    data: Data
    rows: np.ndarray
    size: int
    batch_size: int
    device: torch.device
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> MaskedSource:
        assert isinstance(self.data.source, MaskedSource)
        return self.data.source

    def stream(self) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Sample numbers [B], pixels [B, C, S, S] on the device, values of the masks int64 [B, S, S]."""
        chunks = [self.rows[a : a + self.batch_size] for a in range(0, len(self.rows), self.batch_size)]
        for batch in self.data.stream(chunks, replace=False):
            kept, masks = [], []
            for k, i in enumerate(batch["index"].tolist()):
                mask = self._mask(i, batch["image"][k])
                if mask is not None:
                    kept.append(k)
                    masks.append(mask)
            if kept:
                images = (
                    batch["image"][kept] if isinstance(batch["image"], Tensor) else [batch["image"][k] for k in kept]
                )
                pixels = clean(images, self.size, crop_ratio=1.0, device=self.device)
                yield batch["index"].numpy()[kept], pixels, clean_masks(masks, self.size)
        self.bad |= {p: r for p, r in self.data.bad.items() if p not in self.bad}

    def _mask(self, i: int, image: Tensor) -> Tensor | None:
        """The mask of a picture; None, and noted, where it cannot be used."""
        try:
            with quiet():
                mask = self.source.mask(i)
            if mask.shape != image.shape[1:]:
                have, want = ("x".join(map(str, reversed(s))) for s in (mask.shape, image.shape[1:]))
                raise BadFile(self.source.path(i), f"its mask has {have} pixels and the picture {want}")
            return mask
        except BadFile as error:
            self.bad[error.path] = error.reason
            if len(self.bad) > self.data.max_bad * len(self.rows):
                raise UserError(
                    f"{len(self.bad)} of {len(self.rows)} masks of '{self.source.name}' cannot be used, the last is "
                    f"that of {error.path} ({error.reason}); mend or remove them, or allow more with --max-bad."
                ) from error
            return None


# --- drawing from training pictures ---------------------------------------------------------------------------
def cell_of_pixel(size: int, height: int, width: int) -> Tensor:
    """The cell of a map [height, width] in which each pixel of a picture of `size` lies, int64 [size, size]."""
    middle = (torch.arange(size) + 0.5) / size
    return (middle * height).long()[:, None] * width + (middle * width).long()


def at_pixels(features: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Features [P, D] of a map [D, h, w] at pixels int64 [P] (row * size + column), as bilinear upsampling to `size`
    gives them."""
    places = torch.stack([pixels % size, pixels // size], 1).to(features.device, features.dtype)
    grid = (2 * (places + 0.5) / size - 1)[None, None]
    found = F.grid_sample(features[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


class Drawer:
    """Collects pixels and cells of training pictures for several networks.

    Args:
        pictures: how many there will be.
        networks: number of networks.
    """

    def __init__(self, pictures: int, networks: int, seed: int):
        self.pixels_each, self.cells_each = (math.ceil(n / max(1, pictures)) for n in (PIXELS, CELLS))
        self.seed = seed
        self.features: list[list[Tensor]] = [[] for _ in range(networks)]
        self.cells: list[list[Tensor]] = [[] for _ in range(networks)]
        self.shares: list[list[Tensor]] = [[] for _ in range(networks)]
        self.labels: list[Tensor] = []
        self.pictures: list[Tensor] = []

    def add(self, rows: np.ndarray, numbers: Tensor, classes: int, maps: Sequence[Tensor]) -> None:
        """Draw from a batch.

        Args:
            rows: the pictures' sample numbers [B].
            numbers: class numbers int64 [B, S, S] below `classes`, -1 where ignored.
            maps: [B, D, h, w] of each network.
        """
        draws = Draws(self.seed, index=rows, prefix="dense/")
        shares = torch.from_numpy(draws.uniform64("pixels", self.pixels_each).reshape(len(rows), -1))
        for b, row in enumerate(rows.tolist()):
            known = (numbers[b].flatten() >= 0).nonzero()[:, 0]
            if not len(known):
                continue
            chosen = known[(shares[b][: len(known)] * len(known)).long()]
            self.labels.append(numbers[b].flatten()[chosen])
            self.pictures.append(torch.full_like(chosen, row))
            for k, found in enumerate(maps):
                self.features[k].append(at_pixels(found[b], chosen, numbers.shape[-1]).cpu())
                self._cells(k, draws, b, numbers[b], classes, found[b])

    def _cells(self, k: int, draws: Draws, b: int, numbers: Tensor, classes: int, found: Tensor) -> None:
        height, width = found.shape[1:]
        known = numbers >= 0
        pairs = cell_of_pixel(len(numbers), height, width)[known] * classes + numbers[known]
        counts = torch.bincount(pairs, minlength=height * width * classes).view(-1, classes)
        order = np.argsort(draws.uniform64("cells", height * width).reshape(len(draws), -1)[b], kind="stable")
        filled = counts.sum(1) > 0
        ordered = torch.from_numpy(order)
        chosen = ordered[filled[ordered]][: self.cells_each]
        self.cells[k].append(found.flatten(1).T[chosen.to(found.device)].cpu())
        self.shares[k].append(counts[chosen].to(found.dtype).cpu() / counts[chosen].sum(1, keepdim=True).cpu())

    def finish(self, numbering: Numbering) -> list[Drawn]:
        """What was drawn, for each network, with the classes in the order of their values."""
        moved = numbering.sort()
        classes = len(numbering)
        labels, pictures = moved[torch.cat(self.labels)], torch.cat(self.pictures)
        drawn = []
        for features, cells, shares in zip(self.features, self.cells, self.shares, strict=True):
            filled = torch.cat([F.pad(s, (0, classes - s.shape[1])) for s in shares])
            ordered = torch.zeros_like(filled).index_copy_(1, moved, filled)
            drawn.append(Drawn(torch.cat(features), labels, pictures, torch.cat(cells), ordered, classes))
        return drawn


def draw(
    side: Side, nets: Sequence[nn.Module], forward: Forward, numbering: Numbering, seed: int
) -> tuple[list[Drawn], int]:
    """Pixels and cells of the training pictures, for each network; and how many pictures were read.

    Raises:
        UserError: no picture can be read, or the masks hold fewer than two classes, or far too many.
    """
    drawer, count = Drawer(len(side.rows), len(nets), seed), 0
    for rows, pixels, masks in side.stream():
        numbers = numbering(masks)
        if len(numbering) > MOST_CLASSES:
            raise UserError(
                f"The masks of '{side.source.name}' hold more than {MOST_CLASSES} different values, so they seem to "
                "number objects or colours; give masks of class numbers."
            )
        count += len(rows)
        drawer.add(rows, numbers, len(numbering), [forward(net, pixels) for net in nets])
    if len(numbering) < 2:
        found = ", ".join(map(str, numbering.number)) or "none"
        ignored = ", ".join(map(str, sorted(numbering.ignored))) or "none"
        raise UserError(
            f"The masks of '{side.source.name}' have fewer than two classes (values {found}; ignored {ignored}); "
            "say with --ignore which values are not counted, or give other masks."
        )
    return drawer.finish(numbering), count


# --- counting on test pictures --------------------------------------------------------------------------------
def predictions(scores: Tensor, size: int) -> Tensor:
    """The best of scores [B, K, h, w] after bilinear upsampling: int64 [B, size, size]."""
    step = max(1, BLOCK // (scores.shape[1] * size * size))
    parts = [
        F.interpolate(part, (size, size), mode="bilinear", align_corners=False).argmax(1) for part in scores.split(step)
    ]
    return torch.cat(parts)


def count_into(counts: Tensor, numbers: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [C, K] with further pixels; C grows to `classes`."""
    counts = F.pad(counts, (0, 0, 0, classes - len(counts)))
    known = numbers >= 0
    pairs = numbers[known] * counts.shape[1] + predicted[known]
    return counts + torch.bincount(pairs, minlength=counts.numel()).view_as(counts)


@dataclass
class Job:
    """One protocol on one network: what was fitted, what is counted, and the time it took."""

    fitted: Fitted
    counts: Tensor
    seconds: float = 0.0

    @torch.no_grad()
    def count(self, found: Tensor, numbers: Tensor, classes: int) -> None:
        started = time.perf_counter()
        predicted = predictions(self.fitted.scores(found), numbers.shape[-1]).cpu()
        self.counts = count_into(self.counts, numbers, predicted, classes)
        self.seconds += time.perf_counter() - started


def start_job(fit: Callable[..., Fitted], drawn: Drawn, seed: int, device: torch.device) -> Job:
    started = time.perf_counter()
    fitted = fit(drawn, seed=seed, device=device)
    counts = torch.zeros(drawn.classes, fitted.predictions, dtype=torch.int64)
    return Job(fitted, counts, time.perf_counter() - started)


def count(
    side: Side, nets: Sequence[nn.Module], forward: Forward, numbering: Numbering, jobs: Sequence[Sequence[Job]]
) -> int:
    """Count the test pixels for all jobs of each network; returns the number of pictures read."""
    read = 0
    for rows, pixels, masks in side.stream():
        read += len(rows)
        numbers = numbering(masks)
        for net, own in zip(nets, jobs, strict=True):
            found = forward(net, pixels)
            for job in own:
                job.count(found, numbers, len(numbering))
    return read


@contextlib.contextmanager
def still(nets: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """All networks on the device in evaluation mode."""
    with contextlib.ExitStack() as modes:
        for net in nets:
            modes.enter_context(evaluating(net.to(device)))
        yield
