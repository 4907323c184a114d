"""Self-distillation: a student's distribution over prototypes is drawn to a sharpened, centred teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from eyespot.losses.precision import full_precision


def teacher_probability(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((logits - centre) / temperature) over the last dimension, [..., P], without gradient."""
    return ((logits.detach() - centre) / temperature).softmax(dim=-1)


@full_precision
def dino(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Cross entropy of the student's views with the teacher's other views (Caron et al. 2021, DINO, eq. 3).

    Args:
        student: [V, N, P] logits of V views of N samples over P prototypes; the first G are the teacher's views.
        teacher: [G, N, P] logits of G views; no gradient flows into them.
        centre: [P], subtracted from the teacher's logits.

    Returns:
        The mean over samples and over the pairs (teacher view g, student view v != g); log P when both sides are
        uniform.
    """
    q = teacher_probability(teacher, centre, teacher_temperature)
    return other_views(q, (student / student_temperature).log_softmax(dim=-1))


def other_views(target: Tensor, log_p: Tensor) -> Tensor:
    """Cross entropy of distributions "target" [G, N, P] of G views with log-probabilities [V, N, P] of V views, whose
    first G are the same: the mean over samples and over the pairs (target view g, view v != g).
    """
    pairs = -torch.einsum("gnp,vnp->gv", target, log_p) / log_p.shape[1]
    same = torch.eye(len(target), len(log_p), dtype=torch.bool, device=pairs.device)
    return pairs[~same].mean()


def moved_centre(centre: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre [P] after a batch whose teacher logits have the given mean [P] (eq. 4)."""
    return momentum * centre + (1 - momentum) * mean.detach()
