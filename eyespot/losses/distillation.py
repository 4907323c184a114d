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
    log_p = (student / student_temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("gnp,vnp->gv", q, log_p) / student.shape[1]
    same = torch.eye(len(teacher), len(student), dtype=torch.bool, device=pairs.device)
    return pairs[~same].mean()


def moved_centre(centre: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre [P] after a batch whose teacher logits have the given mean [P] (eq. 4)."""
    return momentum * centre + (1 - momentum) * mean.detach()
