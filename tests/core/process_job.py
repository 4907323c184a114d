"""Two gloo processes against one: batch norm with ragged rows, gathering, means with different divisors."""

import sys
from pathlib import Path

import torch
from torch import nn

from eyespot.process import (
    SyncBatchNorm,
    all_mean,
    alone,
    gather,
    gather_blocks,
    global_mean,
    rank,
    synchronise_batch_norm,
    world_size,
)
from eyespot.train.launch import processes

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x = torch.randn(9, 4, 3, 3)
weight = torch.randn(9, 4, 3, 3)
CUT = {1: [(0, 9)], 2: [(0, 3), (3, 9)]}
EVEN = {1: [(0, 8)], 2: [(0, 4), (4, 8)]}

with processes(torch.device("cpu")):
    world = world_size()
    a, b = CUT[world][rank()]
    net = synchronise_batch_norm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert isinstance(net[1], SyncBatchNorm)
    part = x[a:b].clone().requires_grad_()
    out = net(part)
    (out * weight[a:b]).sum().backward()
    grad = part.grad
    weights = {k: v.grad.clone() for k, v in net.named_parameters()}
    for value in weights.values():
        if world > 1:
            torch.distributed.all_reduce(value)
    rows = out.detach()
    if world > 1:
        pieces = [None, None]
        torch.distributed.all_gather_object(pieces, (rows, grad))
        rows, grad = (torch.cat([p[i] for p in pieces]) for i in (0, 1))
    # a loss over gathered rows: every process has the same one, the engine averages
    c, d = EVEN[world][rank()]
    z = x[c:d, :, 0, 0].clone().requires_grad_()
    whole = gather(z)
    (whole @ whole.T).sin().sum().backward()
    through = z.grad / world  # what averaging over processes leaves of the sum
    # two blocks of the same rows: in the order of one process
    y = x[c:d, :, 1, 1].clone().requires_grad_()
    blocks = gather_blocks(torch.cat([y, 2 * y]), d - c)
    (blocks * torch.arange(16.0)[:, None]).sum().backward()
    through_blocks = gather(y.grad / world)
    mask = torch.arange(8)[c:d] < 3
    mean = all_mean(global_mean(x[c:d, 0, 0, 0], mask))
    none = global_mean(x[c:d, 0, 0, 0], torch.zeros(d - c, dtype=torch.bool))
    with alone():
        assert world_size() == 1 and rank() == 0
    gathered = [None] * world
    if world > 1:
        torch.distributed.all_gather_object(gathered, through)
        through = torch.cat(gathered)
    if rank() == 0:
        state = {k: v for k, v in net.state_dict().items()}
        result = {"rows": rows, "grad": grad, "through": through, "mean": mean, "none": none}
        result |= {"blocks": blocks.detach(), "through_blocks": through_blocks}
        torch.save(result | {f"w {k}": v for k, v in weights.items()} | state, Path(sys.argv[1]))
