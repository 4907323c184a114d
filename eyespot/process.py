"""One process or many: gathering that gradients cross, means whose divisor differs, synchronised batch norm.

Every process returns the mean of its own loss and the engine averages gradients over processes. A loss in which
negatives or statistics cross the batch calls `gather` on its embeddings; on one process that is the identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def world_size() -> int:
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    return dist.get_rank() if _together() else 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: for work that the main process does while the others wait."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_main() -> bool:
    return rank() == 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Each process has its own loss; engine averages, so what reaches a row is the sum over all losses.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in the order of the global batch: [B, ...] -> [world * B, ...], with gradients."""
    if world_size() == 1:
        return x
    out: Tensor = _Gather.apply(x)
    return out


def gather_blocks(x: Tensor, rows: int) -> Tensor:
    """`gather` of several blocks of `rows` rows, one after the other as on one process: [m * rows, ...] of each process
    -> [m * world * rows, ...], with gradients. Rows that are no whole blocks are gathered as one."""
    if world_size() == 1 or len(x) % rows:
        return gather(x)
    whole = gather(x.reshape(-1, rows, *x.shape[1:]).transpose(0, 1))
    return whole.transpose(0, 1).flatten(0, 1)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes, with gradients."""
    if world_size() == 1:
        return x
    out: Tensor = _SumOverProcesses.apply(x)
    return out


def all_mean(x: Tensor) -> Tensor:
    """Mean over processes, with gradients. For centres and statistics of equal batches."""
    return all_sum(x) / world_size()


def all_max(*numbers: int) -> list[int]:
    """Each number's largest over the processes: how they agree on what to do next. Waits for the device."""
    if world_size() == 1:
        return list(numbers)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    largest = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [int(n) for n in largest.tolist()]


def global_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over the global batch of `values` where `mask` is true, when processes hold different counts.

    Scaled so that the average over processes, which the engine takes, is the global mean. Zero when nothing counts.
    """
    weight = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    with torch.no_grad():
        count = all_sum(weight.sum())
    # where, not product: a masked value may be infinite
    total = torch.where(weight != 0, values * weight, torch.zeros_like(values)).sum()
    return total * world_size() / count.clamp_min(torch.finfo(values.dtype).tiny) if count > 0 else total * 0.0


def broadcast_object(value: Any) -> Any:
    """A plain Python object of rank 0 on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class SyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of the global batch, on CPU too (torch's own refuses CPU tensors).

    Input [B, C, ...]; processes may hold different numbers of rows, also none. Equals `nn.BatchNorm*` on one process.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # timm's BatchNormAct2d has an activation and a drop after the norm
        self.act: nn.Module | None = None
        self.drop: nn.Module | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        use_batch = self.training or not self.track_running_stats
        y = self._global(input) if use_batch and world_size() > 1 else super().forward(input)
        if self.drop is not None:
            y = self.drop(y)
        return self.act(y) if self.act is not None else y

    def _global(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        own = wide.new_full((1,), x.numel() // x.shape[1])  # processes may hold different numbers of rows
        summed = all_sum(torch.cat([wide.sum(dims), own]))
        count = summed[-1].detach()
        mean = summed[:-1] / count
        centred = wide - mean.view(shape)
        var = all_sum(centred.square().sum(dims)) / count
        if self.training and self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / (count - 1).clamp_min(1)))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        m = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), m)
        self.running_var.lerp_(var.to(self.running_var.dtype), m)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Every batch norm of `module` replaced by the synchronised one; names, weights and hooks-free forward stay."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
            sync = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            sync.load_state_dict(child.state_dict())
            if child.affine:
                sync.weight, sync.bias = child.weight, child.bias
            sync.to(next(iter(child.buffers()), torch.empty(0)).device)
            sync.act, sync.drop = getattr(child, "act", None), getattr(child, "drop", None)
            sync.training = child.training
            setattr(module, name, sync)
        else:
            synchronise_batch_norm(child)
    return module
