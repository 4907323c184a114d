"""Following what was marked in the first frame: label propagation, and how good masks and joints are.

Propagation needs no training: every place of a new frame takes the labels of the places of earlier frames whose
features are most like its own. Two forms are in use, which differ in the context and the window:

    crw     first frame and the n before, disk of a radius for the latter, softmax over the top k      videowalk (CRW)
    dino    any context frames, square window for all of them, exp(cosine / T), top k kept             DINO's evaluation

Masks are scored as on DAVIS: J the region, F the boundary; joints by PCK as on JHMDB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eyespot.errors import UserError

BOUNDARY = 0.008
"""Tolerance of F as a share of the picture's diagonal."""


# --- label propagation ------------------------------------------------------------------------------------------------
def _distance(height: int, width: int, square: bool, device: torch.device) -> Tensor:
    """Distance [HW, HW] of the places of a grid, Euclidean or (square) the larger of both directions."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float().to(device)
    return torch.cdist(places, places, p=math.inf if square else 2.0)


@torch.no_grad()
def propagate(
    features: Tensor,
    first: Tensor,
    *,
    context: int = 20,
    top: int = 10,
    radius: float = 12.0,
    temperature: float = 0.07,
) -> Tensor:
    """Labels of all frames from those of the first, in the form of CRW (Jabri et al., NeurIPS 2020).

    Args:
        features: [T, H, W, D] of the frames, normalised here.
        first: [H, W, K] labels of frame 0.
        context: frames before each that are looked at beside the first; where there are fewer, frame 0 fills up.
        top: most alike places that count.
        radius: of the disk (distance below it) in which places of the n frames before lie; the first has no bound.
        temperature: divides the cosines before the softmax.

    Returns:
        [T, H, W, K] soft labels; frame 0 keeps its own.
    """
    time, height, width, dim = features.shape
    if first.shape[:2] != (height, width):
        raise UserError(f"Labels of {list(first.shape[:2])} do not fit features of {height} x {width} places.")
    x = F.normalize(features, dim=-1).reshape(time, -1, dim)
    labels = [first.reshape(height * width, -1).to(x.dtype)]
    far = _distance(height, width, False, x.device) >= radius
    for t in range(1, time):
        before = [0, *(max(0, s) for s in range(t - context, t))]
        likeness = torch.einsum("pd,cqd->pcq", x[t], x[before])
        likeness[:, 1:].masked_fill_(far[:, None], -1e10)
        best, where = likeness.flatten(1).topk(min(top, likeness[0].numel()), dim=1)
        weight = (best / temperature).softmax(1)
        known = torch.cat([labels[s] for s in before])
        labels.append((known[where] * weight[..., None]).sum(1))
    return torch.stack(labels).view(time, height, width, -1)


@torch.no_grad()
def propagate_step(
    target: Tensor,
    context: Tensor,
    labels: Tensor,
    *,
    top: int = 5,
    radius: int = 12,
    temperature: float = 0.1,
) -> Tensor:
    """Labels of one frame from those of others, in the form of DINO's evaluation (Caron et al., ICCV 2021).

    Args:
        target: [H, W, D] features, normalised here.
        context: [N, H, W, D] of the frames whose labels are known.
        labels: [N, K, H, W].
        top: places that count; those as alike as the last of them count too.
        radius: places at most this far down or right are looked at (a negative one: all).
        temperature: of exp(cosine / temperature).

    Returns:
        [K, H, W], weights of each place sum to 1.
    """
    height, width, dim = target.shape
    x, y = F.normalize(target, dim=-1).reshape(-1, dim), F.normalize(context, dim=-1).reshape(len(context), -1, dim)
    likeness = torch.einsum("pd,cqd->pcq", x, y) / temperature
    if radius >= 0:
        likeness.masked_fill_((_distance(height, width, True, x.device) > radius)[:, None], -math.inf)
    weight = (likeness - likeness.amax((1, 2), keepdim=True)).exp().flatten(1)  # so that none is infinite
    least = weight.topk(min(top, weight.shape[1]), dim=1).values[:, -1:]
    weight = torch.where(weight >= least, weight, torch.zeros_like(weight))
    weight = weight / weight.sum(1, keepdim=True)
    known = labels.flatten(2).transpose(1, 2).reshape(-1, labels.shape[1]).to(weight.dtype)
    return (weight @ known).T.view(-1, height, width)


def enlarge(labels: Tensor, size: tuple[int, int], stretch: bool = False) -> Tensor:
    """Soft labels [K, h, w] at the size (H, W) of the picture, bilinear; argmax over K gives the mask.

    Args:
        stretch: every class that occurs is stretched to [0, 1], as DINO's evaluation does.
    """
    out = F.interpolate(labels[None].float(), size, mode="bilinear", align_corners=False)[0]
    if not stretch:
        return out
    low, high = out.amin((1, 2), keepdim=True), out.amax((1, 2), keepdim=True)
    stretched = (out - low) / (high - low).clamp_min(torch.finfo(out.dtype).tiny)
    return torch.where(high > 0, stretched, out)


# --- masks ------------------------------------------------------------------------------------------------------------
def region_similarity(predicted: Tensor, true: Tensor) -> Tensor:
    """J of masks bool [..., H, W]: intersection over union, 1 where both are empty. Float32 [...]."""
    both, either = (predicted & true).sum((-2, -1)), (predicted | true).sum((-2, -1))
    return torch.where(either == 0, 1.0, both.float() / either.clamp_min(1))


def boundary(mask: Tensor) -> Tensor:
    """Boundary pixels of masks bool [..., H, W]: those that differ from their right, lower or lower right neighbour."""
    padded = torch.cat([mask, mask[..., -1:]], -1)
    padded = torch.cat([padded, padded[..., -1:, :]], -2)
    right, lower, both = padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., 1:, 1:]
    return (mask ^ right) | (mask ^ lower) | (mask ^ both)


def _grown(mask: Tensor, radius: int) -> Tensor:
    """Masks [N, H, W] grown by a disk."""
    at = torch.arange(-radius, radius + 1, device=mask.device)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).float()
    return F.conv2d(mask[:, None].float(), disk[None, None], padding=radius)[:, 0] > 0.5


def boundary_similarity(predicted: Tensor, true: Tensor, tolerance: float = BOUNDARY) -> Tensor:
    """F of masks bool [..., H, W]: harmonic mean of the shares of each one's boundary that lie near the other's.

    Args:
        tolerance: how near, as a share of the diagonal (rounded up to pixels), or in pixels from 1 on.

    Returns:
        Float32 [...]; 1 where both boundaries are empty, 0 where one is.
    """
    shape, (height, width) = predicted.shape[:-2], predicted.shape[-2:]
    radius = math.ceil(tolerance * math.hypot(height, width)) if tolerance < 1 else int(tolerance)
    a, b = (boundary(m).reshape(-1, height, width) for m in (predicted, true))
    hit_a, hit_b = a & _grown(b, radius), b & _grown(a, radius)
    count_a, count_b = a.sum((1, 2)), b.sum((1, 2))
    precision = torch.where(count_a > 0, hit_a.sum((1, 2)) / count_a.clamp_min(1), torch.ones(()))
    recall = torch.where(count_b > 0, hit_b.sum((1, 2)) / count_b.clamp_min(1), torch.ones(()))
    total = precision + recall
    score = torch.where(total > 0, 2 * precision * recall / total.clamp_min(1e-12), torch.zeros(()))
    empty = (count_a > 0) != (count_b > 0)
    return torch.where(empty, torch.zeros(()), score).view(shape)


def sequence_statistics(scores: Tensor) -> dict[str, float]:
    """Of the scores [T] of an object's frames: their mean, the share above 0.5 (recall), and how much they fall from
    the first quarter to the last (decay); a frame between two quarters is in both."""
    edges = (torch.linspace(1, len(scores), 5) + 1e-10).round().long() - 1
    first, last = (scores[edges[i] : edges[i + 1] + 1].mean() for i in (0, 3))
    return {
        "mean": float(scores.mean()),
        "recall": float((scores > 0.5).float().mean()),
        "decay": float(first - last),
    }


def davis(predicted: Sequence[Tensor], true: Sequence[Tensor]) -> dict[str, float]:
    """J, F and their mean over the objects of all videos, in percent; the first and the last frame do not count.

    Args:
        predicted, true: a video each, int64 [T, H, W]: 0 is the ground, 1.. are the objects of the true masks.
    """
    rows = []
    for guess, real in zip(predicted, true, strict=True):
        for thing in range(1, int(real.max()) + 1):
            a, b = guess[1:-1] == thing, real[1:-1] == thing
            rows.append((float(region_similarity(a, b).mean()), float(boundary_similarity(a, b).mean())))
    if not rows:
        raise UserError("There is no object in any of the masks; 0 is the ground, 1 and more are objects.")
    j, f = (100 * sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {"jf": (j + f) / 2, "j": j, "f": f}


# --- joints -----------------------------------------------------------------------------------------------------------
def read_joints(heat: Tensor, top: int = 3) -> Tensor:
    """Where each joint is, [K, 2] (x, y) in places of the grid: the mean of its `top` best places by their scores.

    Args:
        heat: soft labels [H, W, K], without the ground.
    """
    height, width, joints = heat.shape
    best, where = heat.reshape(-1, joints).topk(min(top, height * width), dim=0)
    weight = best / best.sum(0).clamp_min(torch.finfo(heat.dtype).tiny)
    x, y = (where % width).to(heat.dtype), (where // width).to(heat.dtype)
    return torch.stack([(x * weight).sum(0), (y * weight).sum(0)], 1)


def pck(predicted: Tensor, true: Tensor, visible: Tensor, share: float = 0.1, size: float = 0.6) -> float:
    """Percentage of correct joints: the mean over joints of how often the error is at most `share` of the person.

    Args:
        predicted, true: [T, K, 2] (x, y); the first frame, whose joints were given, does not count.
        visible: bool [T, K].
        share: the a of PCK@a.
        size: the person is this times the diagonal of the box of its visible joints.
    """
    low = true.masked_fill(~visible[..., None], math.inf).amin(1)
    high = true.masked_fill(~visible[..., None], -math.inf).amax(1)
    person = size * (high - low).norm(dim=-1)  # [T], not finite where nothing is visible
    good = ((predicted - true).norm(dim=-1) <= share * person[:, None]) & visible
    good, seen = good[1:], visible[1:]
    there = seen.any(0)
    if not bool(there.any()):
        raise UserError("No joint is visible after the first frame; give frames in which some are.")
    rate = good.sum(0)[there] / seen.sum(0)[there]
    return 100 * float(rate.mean())
