"""Processes of a run: alone, or started by torchrun or by SLURM's srun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from eyespot.errors import UserError
from eyespot.train.place import place


def resolve_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda', 'cuda:1', 'mps' -> the device of this process.

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device '{name}'; use auto, cpu, cuda or mps.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no CUDA device here; use --device cpu.")
        # one device may be all that a task sees, whatever its number on the machine
        return device if device.index is not None else torch.device("cuda", place().local % torch.cuda.device_count())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no Apple GPU here; use --device cpu.")
    if device.type not in ("cpu", "mps"):
        raise UserError(f"--device {name} is not supported; use auto, cpu, cuda or mps.")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """'auto' -> bfloat16 where CUDA has it, float16 on older CUDA, float32 elsewhere."""
    names = ("float32", "bfloat16", "float16", "float64")
    if name == "auto":
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if name not in names:
        raise UserError(f"--precision '{name}' does not exist; use auto, {', '.join(names)}.")
    if name == "float16" and device.type == "cpu":
        raise UserError("--precision float16 needs a GPU; use float32 or bfloat16 on CPU.")
    return name


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """The process group the launcher asks for, ended with the block. Nothing when started alone or already in a
    group."""
    here = place()
    if here.world == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # a preparation stage runs on one process while the others wait, perhaps for hours
    wait = timedelta(hours=24)
    dist.init_process_group(backend, here.meeting, wait, world_size=here.world, rank=here.rank)
    try:
        yield
    finally:
        dist.destroy_process_group()
