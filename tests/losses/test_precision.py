"""Losses inside autocast equal those outside; 16-bit embeddings are widened, 64-bit ones kept."""

import pytest
import torch

from eyespot.losses.contrastive import moco, nt_xent
from eyespot.losses.correlation import barlow
from eyespot.losses.distillation import dino
from eyespot.losses.predictive import byol

Z1, Z2 = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(1))
QUEUE = torch.nn.functional.normalize(Z1 - Z2, dim=1).T
LOSSES = {
    "nt_xent": lambda a, b: nt_xent(a, b, 0.1),
    "moco": lambda a, b: moco(a, b, QUEUE, 0.1),
    "byol": byol,
    "barlow": lambda a, b: sum(barlow(a, b)),
    "dino": lambda a, b: dino(torch.stack([a, b]), torch.stack([b, a]), torch.zeros(8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    with torch.autocast("cpu", torch.bfloat16):
        inside = LOSSES[name](Z1, Z2)
    torch.testing.assert_close(inside, LOSSES[name](Z1, Z2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_half_embeddings_give_a_float32_loss(name):
    loss = LOSSES[name](Z1.bfloat16(), Z2.bfloat16())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](Z1.bfloat16().float(), Z2.bfloat16().float()))


def test_double_embeddings_stay():
    assert nt_xent(Z1.double(), Z2.double()).dtype == torch.float64
