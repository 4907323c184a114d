"""Metrics of pictures that were taken apart into objects: pure functions of masks, in percent.

Source: Yuan et al., "Compositional scene representation learning via reconstruction: a survey" (TPAMI 2023; arXiv
2202.07135), with the conventions of its toolbox. Shapes: B pictures, K true objects, S slots, H x W pixels; objects are
layers from front to back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from eyespot.metrics.clustering import contingency


def adjusted_rand(true: Tensor, predicted: Tensor) -> float:
    """Adjusted Rand index of two int64 [n]: 100 for the same parts whatever their numbers, about 0 by chance; 100 by
    convention where each has one part, or every pixel its own."""
    counts = contingency(predicted, true).double()
    together, rows, columns = (_pairs(c) for c in (counts, counts.sum(1), counts.sum(0)))
    chance = rows * columns / max(_pairs(counts.sum()), 1.0)
    most = (rows + columns) / 2
    return 100.0 if most == chance else 100 * (together - chance) / (most - chance)


def _pairs(counts: Tensor) -> float:
    return float((counts * (counts - 1) / 2).sum())


def adjusted_information(true: Tensor, predicted: Tensor) -> float:
    """Adjusted mutual information of two int64 [n], by the arithmetic mean of the two entropies."""
    return 100 * float(adjusted_mutual_info_score(true.cpu().numpy(), predicted.cpu().numpy()))


def partition_scores(true: Tensor, predicted: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Adjusted Rand index and adjusted mutual information of each picture, float64 [B] each.

    Args:
        true, predicted: int64 [B, H, W].
        counted: bool [B, H, W], the pixels that count, by the TRUTH and never by the prediction: of ARI-O those that an
            object covers. A picture in which none counts is not a number.
    """
    chosen = torch.ones_like(true, dtype=torch.bool) if counted is None else counted
    rand, information = [], []
    for t, p, c in zip(true, predicted, chosen, strict=True):
        rand.append(adjusted_rand(t[c], p[c]) if c.any() else torch.nan)
        information.append(adjusted_information(t[c], p[c]) if c.any() else torch.nan)
    return torch.tensor(rand, dtype=torch.float64), torch.tensor(information, dtype=torch.float64)


def match_slots(true: Tensor, predicted: Tensor) -> Tensor:
    """The slot of each true object, by the assignment with the most common mass (Hungarian algorithm): int64 [B, K].

    Args:
        true: visible masks [B, K, H, W].
        predicted: visible masks of the object slots [B, S, H, W], bool or in [0, 1].

    Returns:
        -1 for an object without a slot, where there are fewer slots than objects.
    """
    found = torch.full(true.shape[:2], -1, dtype=torch.int64)
    for b, common in enumerate(torch.einsum("bkhw,bshw->bks", true.double(), predicted.double()).cpu()):
        rows, columns = linear_sum_assignment(common.numpy(), maximize=True)
        found[b, torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found.to(true.device)


def shape_overlaps(true: Tensor, predicted: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and F1 of every true object that is there, in [0, 1], float64 [n] each; the metric is their one mean over all
    pictures, not a mean of means.

    IoU = sum min / sum max and F1 = 2 sum min / (sum min + sum max), so F1 = 2 IoU / (1 + IoU).

    Args:
        true: masks [B, K, H, W]; objects that are not there are empty.
        predicted: masks [B, S, H, W] in [0, 1], 0 for slots that are not present.
        order: int64 [B, K], see `match_slots`; an object without a slot scores 0.
    """
    true, predicted = true.double(), predicted.double()
    taken = predicted.gather(1, order.clamp_min(0)[:, :, None, None].expand_as(true))
    taken = taken * (order >= 0)[:, :, None, None]
    least, most = (f(true, taken).sum((2, 3)) for f in (torch.minimum, torch.maximum))
    there = true.flatten(2).any(2)
    least, most = least[there], most[there]
    return least / most, 2 * least / (least + most)


def winning_slots(predicted: Tensor, slots: int, background: int | None = None) -> Tensor:
    """How many objects are predicted where slots have no presences: those that win a pixel, int64 [B].

    Args:
        predicted: int64 [B, H, W], the slot that wins each pixel.
        slots: S.
        background: the slot that is the background and does not count; None where it is unknown, then one is taken off.
    """
    counts = torch.zeros(len(predicted), slots, dtype=torch.bool, device=predicted.device)
    counts.scatter_(1, predicted.flatten(1), True)
    if background is None:
        return counts.sum(1) - 1
    counts[:, background] = False
    return counts.sum(1)


def true_objects(segment: Tensor, background: int) -> Tensor:
    """How many objects are seen, int64 [B], in int64 [B, H, W]; `background` is no object."""
    return torch.tensor([int((s.unique() != background).sum()) for s in segment], device=segment.device)


def counting_accuracy(found: Tensor, true: Tensor) -> float:
    """OCA: share of the pictures with the right number of objects."""
    return 100 * float((found == true).double().mean())


def ordered_pairs(layers: Tensor, order: Tensor) -> tuple[float, float]:
    """The overlap in pixels of pairs of objects whose slots are in the right order, and of all pairs; the metric OOA is
    their ratio over the whole set, and is not defined where nothing overlaps.

    Args:
        layers: complete shapes bool [B, K, H, W], the front first, so that in an overlap the first is seen.
        order: int64 [B, K], the slot of each object, where a smaller number lies in front.
    """
    right = whole = 0.0
    for b, first, second in _overlapping(layers):
        area = float((layers[b, first] & layers[b, second]).sum())
        places = order[b, first], order[b, second]
        right += area * bool(0 <= places[0] < places[1])
        whole += area
    return right, whole


def _overlapping(layers: Tensor) -> Iterator[tuple[int, int, int]]:
    for b in range(layers.shape[0]):
        for first in range(layers.shape[1]):
            for second in range(first + 1, layers.shape[1]):
                yield b, first, second
