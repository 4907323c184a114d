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
    return across_views(student, teacher_probability(teacher, centre, teacher_temperature), student_temperature)


@full_precision
def across_views(student: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy of the student's views with what is wanted of them by the other views, as in `dino`.

    Args:
        student: [V, N, P] logits; the first G views are those of the target.
        target: [G, N, P] distributions; no gradient flows into them.
    """
    log_p = (student / temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("gnp,vnp->gv", target.detach(), log_p) / student.shape[1]
    same = torch.eye(len(target), len(student), dtype=torch.bool, device=pairs.device)
    return pairs[~same].mean()


def token_weights(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What every hidden token counts, so that all pictures with hidden tokens count alike: [M], row by row.

    Args:
        mask: bool [N, L], true where hidden. A token of a picture with m hidden ones counts 1 / (N m).
    """
    share = 1.0 / (len(mask) * mask.sum(1, keepdim=True).clamp_min(1).to(dtype))
    return share.expand(mask.shape)[mask]


@full_precision
def hidden_tokens(student: Tensor, target: Tensor, weight: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy at the hidden tokens of the same view (Zhou et al. 2022, iBOT, eq. 2).

    Args:
        student: [M, P] logits of the hidden tokens of all pictures.
        target: [M, P] the teacher's distributions at the same tokens, which it sees; no gradient flows into them.
        weight: [M] from `token_weights`. A picture without hidden tokens adds 0.
    """
    log_p = (student / temperature).log_softmax(dim=-1)
    return -((target.detach() * log_p).sum(-1) * weight).sum()


def moved_centre(centre: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre [P] after a batch whose teacher logits have the given mean [P] (eq. 4)."""
    return momentum * centre + (1 - momentum) * mean.detach()
