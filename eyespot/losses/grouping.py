"""Semantic grouping over prototypes: SlotCon's score maps, slots, inverse augmentation and its two losses.

Source: Wen et al., "Self-Supervised Visual Representation Learning with Semantic Grouping" (NeurIPS 2022; arXiv
2205.15288), section 3. Shapes: B images, K prototypes, D channels, maps of H x W. All functions are pure and work in
any floating type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize
from torchvision.ops import roi_align

from eyespot.losses.precision import full_precision


@full_precision
def score_map(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of every pixel with every prototype: [B, D, H, W] and [K, D] -> [B, K, H, W] in [-1, 1]."""
    return torch.einsum("kd,bdhw->bkhw", normalize(prototypes, dim=1), normalize(features, dim=1))


@full_precision
def pool_slots(features: Tensor, scores: Tensor, temperature: float = 0.07, eps: float = 1e-6) -> Tensor:
    """Attentive pooling of a map by its soft assignment to the prototypes (eq. 3): slots [B, K, D].

    A slot is a convex combination of the raw (not normalised) pixels. `eps` is added before the weights are
    normalised over the pixels, as in the authors' code, so that a prototype that nothing chooses has a mean slot.
    """
    weights = (scores / temperature).softmax(1).flatten(2) + eps  # [B, K, HW]
    weights = weights / weights.sum(2, keepdim=True)
    return torch.einsum("bkn,bdn->bkd", weights, features.flatten(2))


@full_precision
def undo_view(maps: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Inverse augmentation: the part of each map inside its overlap box, back at H x W and un-mirrored.

    Args:
        maps: [B, K, H, W] maps of one view.
        box: [B, 4] (x1, y1, x2, y2), the overlap with the other view in this view's own [0, 1] coordinates, already
            mirrored where the view was mirrored.
        flip: [B] bool, whether the view was mirrored left to right.

    Returns:
        [B, K, H, W]: pixels of the two views at the same place show the same piece of the picture.
    """
    height, width = maps.shape[-2:]
    # the box counts pixels of this map; aligned=True puts pixel centres at half integers
    pixels = box.to(maps) * torch.tensor([width, height, width, height], dtype=maps.dtype, device=maps.device)
    rows = torch.arange(len(maps), dtype=maps.dtype, device=maps.device)[:, None]
    aligned = roi_align(maps, torch.cat([rows, pixels], 1), (height, width), aligned=True)
    return torch.where(flip.bool()[:, None, None, None], aligned.flip(-1), aligned)


@full_precision
def group_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
) -> Tensor:
    """Cross entropy of the student's assignment against the teacher's, mean over aligned pixels (eq. 2): scalar.

    Args:
        student, teacher: [B, K, H, W] aligned score maps; no gradient passes to the teacher.
        centre: [1, K] running mean of the teacher's scores, which keeps one prototype from taking all pixels.
    """
    target = ((teacher.detach() - centre[:, :, None, None]) / teacher_temperature).softmax(1)
    return -(target * log_softmax(student / student_temperature, 1)).sum(1).mean()


def present_slots(scores: Tensor) -> Tensor:
    """Which prototypes win at least one pixel of the (unaligned) score map (eq. 5): [B, K, H, W] -> bool [B, K]."""
    winners = scores.argmax(1).flatten(1)  # [B, HW]
    count = torch.zeros(scores.shape[:2], dtype=torch.int64, device=scores.device)
    return count.scatter_add_(1, winners, torch.ones_like(winners)) > 0


@full_precision
def slot_loss(anchors: Tensor, positives: Tensor, keys: Tensor, present: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE between predicted slots and the slots of the teacher (eq. 4), one value an anchor: [A].

    The authors' code multiplies the loss by twice the temperature, as MoCo v3 does; so does this.

    Args:
        anchors: [A, D] predicted student slots (any length).
        positives: [A] int64, the row of `keys` that is the same slot of the same picture; it must be present.
        keys: [R, D] teacher slots of the whole batch (any length); no gradient passes to them.
        present: [R] bool; keys that are not present in their view are no negatives.
    """
    negatives = normalize(keys.detach()[present], dim=1)
    targets = (present.long().cumsum(0) - 1)[positives]  # rows counted among the present keys only
    logits = normalize(anchors, dim=1) @ negatives.T / temperature
    nll = logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]
    return 2 * temperature * nll
