"""One model on several processes: whole on each of them (DDP), or in parts (FSDP2).

Whole: every process holds all weights, and gradients are averaged. Sharded: every process holds its part of each
weight, gradient and optimizer state, and the weights of a block are brought together while that block computes. Both
give what one process gives. The loop sees one interface, and checkpoints are the same file, so that a run can be
resumed on any number of processes, either way.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from eyespot.errors import UserError
from eyespot.methods.method import Method, Plugin
from eyespot.nets.backbones import Backbone
from eyespot.process import all_max, is_main, world_size

Call = Callable[..., dict[str, Tensor]]
State = dict[str, Any]


class Whole:
    """Every process holds all weights; also what one process alone does.

    Attributes:
        method: what is trained.
        model: its forward, through which gradients are averaged.
        whole: the method with all weights; as they were at the last `gather` where they are sharded.
    """

    sharded = False

    def __init__(self, method: Method, device: torch.device, world: int):
        self.method = self.whole = method
        self.model: Call = replicated(method, device) if world > 1 else method

    def averaging(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the forward and backward of one part of a batch: gradients cross processes with the last part."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(p.isfinite().all()) for p in self.method.parameters())

    def gather(self, everywhere: bool = False) -> Method:
        """`whole` with the weights of now. Where weights are sharded all processes must take part.

        Args:
            everywhere: on every process, not on the main one alone.
        """
        return self.whole

    def inspected(self) -> contextlib.AbstractContextManager[Method]:
        """`whole` on the device, to be measured."""
        return contextlib.nullcontext(self.whole)

    def finish(self) -> None:
        """After the last step."""

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> State:
        """The optimizer's whole state; where it is sharded, on the main process and only with all taking part."""
        return optimizer.state_dict()

    def load(self, optimizer: torch.optim.Optimizer, weights: State, state: State) -> None:
        """Take the weights of a method and the state of its optimizer, both whole."""
        self.whole.load_state_dict(weights)
        optimizer.load_state_dict(state)


class Sharded:
    """Every process holds its part of a copy of the method (FSDP2); the given one stays whole, on the CPU.

    Raises:
        UserError: a parameter cannot be sharded.
    """

    sharded = True

    def __init__(self, method: Method, device: torch.device):
        self.device, self.whole = device, method
        self.method = shard(method, device)
        self.whole.cpu()

    def model(self, *inputs: Any) -> dict[str, Tensor]:
        """The terms. Weights of a block used elsewhere are parts: torch refuses to mix them, or a part comes out."""
        wrong = UserError(
            f"{type(self.whole).__name__} uses weights of a block outside the block's own forward, so it cannot be "
            "sharded; use --parallel ddp."
        )
        try:
            terms = self.method(*inputs)
        except RuntimeError as error:
            if "DTensor" in str(error):
                raise wrong from error
            raise
        if any(isinstance(term, DTensor) for term in terms.values()):
            raise wrong
        return terms

    @contextlib.contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last)  # it sticks, so it is said for every part
        yield

    @property
    def _root(self) -> FSDPModule:
        root: Any = self.method
        return root

    def finite(self) -> bool:
        broken = any(not bool(local(p).isfinite().all()) for p in self.method.parameters())
        return not all_max(int(broken))[0]

    @torch.no_grad()
    def gather(self, everywhere: bool = False) -> Method:
        targets = self.whole.state_dict()
        for name, value in self.method.state_dict().items():
            full = whole_tensor(value)
            if everywhere or is_main():
                targets[name].copy_(full)
        return self.whole

    @contextlib.contextmanager
    def inspected(self) -> Iterator[Method]:
        self.whole.to(self.device)
        try:
            yield self.whole
        finally:
            self.whole.cpu()

    def finish(self) -> None:
        self.gather(everywhere=True).to(self.device)
        self.whole.progress, self.whole.watch = self.method.progress, self.method.watch

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> State:
        def full(value: Any) -> Any:
            value = whole_tensor(value)
            return value.cpu() if isinstance(value, Tensor) and is_main() else value

        state = optimizer.state_dict()
        # one tensor after the other: the others need not hold more than one whole
        gathered = {i: {k: full(v) for k, v in sorted(kept.items())} for i, kept in sorted(state["state"].items())}
        return {**state, "state": gathered if is_main() else {}}

    @torch.no_grad()
    def load(self, optimizer: torch.optim.Optimizer, weights: State, state: State) -> None:
        self.whole.load_state_dict(weights)  # names and shapes are checked here
        for name, value in self.method.state_dict().items():
            value.copy_(_part(weights[name], value))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {i: {k: _part(v, parameters[i]) for k, v in kept.items()} for i, kept in sorted(state["state"].items())}
        optimizer.load_state_dict({**state, "state": parts})


def replicated(method: Method, device: torch.device) -> DistributedDataParallel:
    """The method in DDP. Buffers are not sent around: they are equal by construction, because statistics are
    synchronised and queues and centres gathered."""
    parameters = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # torch < 2.12
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None, **options)


def shard(method: Method, device: torch.device) -> Method:
    """A copy of the method on the device whose weights are shared out over the processes, by the first dimension.

    Each repeated block is a unit whose weights are whole only while it computes; all other weights are whole from the
    method's forward to the end of its backward, so that a method may call any part of them. Guides stay as they are.
    """
    for name, parameter in method.named_parameters():
        if not parameter.dim():
            raise UserError(
                f"{type(method).__name__} cannot be sharded: its parameter {name} is a single number without a "
                "dimension to cut; use --parallel ddp."
            )
    kept = [*method.guides.values(), *method.prepared.values()]
    mine = copy.deepcopy(method, {id(k): k for k in kept}).to(device)
    for value in mine.state_dict().values():
        dist.broadcast(value, 0)
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks(mine):
        fully_shard(block, mesh=mesh)
    fully_shard(mine, mesh=mesh)
    return mine


def blocks(module: nn.Module) -> list[nn.Module]:
    """The units of `shard`: transformer blocks, residual blocks, stages.

    They are the outermost members of a `Sequential` or `ModuleList` that have parts themselves and occur more than once
    there. Such members are called as modules, which is when their weights are there; a backbone or plug-in, whose
    methods are called, is never one of them.
    """
    members = [m for m in module.children() if isinstance(module, (nn.Sequential, nn.ModuleList)) and _is_block(m)]
    kinds = Counter(type(m) for m in members)
    repeated = [m for m in members if kinds[type(m)] > 1]
    rest = [m for m in module.children() if all(m is not r for r in repeated)]
    found = [*repeated, *(block for m in rest for block in blocks(m))]
    return list(dict.fromkeys(found))


def _is_block(module: nn.Module) -> bool:
    named = any(isinstance(part, (Backbone, Plugin)) for part in module.modules())
    return not named and any(True for _ in module.children()) and any(True for _ in module.parameters())


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor; memory is shared."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor with all its parts; all processes must take part where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Any, like: Tensor) -> Any:
    """A whole tensor cut as `like` is, when it belongs to it: of the same shape."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)
