"""Worker processes that make whole batches ahead, and the way of a batch from a worker to the main process."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eyespot.data.picture import quiet
from eyespot.errors import UserError

SHARED_MEMORY = Path("/dev/shm")


def decode_ahead(
    make: Callable[[Any], dict[str, Any]], bad_rows: dict[int, str], requests: Iterator[Any], workers: int
) -> Iterator[dict[str, Any]]:
    """The batches `make(request)` in the order of the requests, made by worker processes.

    Args:
        make: makes a batch; runs in the workers.
        bad_rows: {sample: reason} that `make` adds to, in the memory of its process.

    Yields:
        the batch, with "bad": [(sample, reason)] newly met by its worker. {"error": sentence, "bad": ...} where `make`
        raised a UserError: the sentence as it is, without a worker's traceback around it.
    """
    loader = DataLoader(
        _Batches(make, bad_rows),
        batch_size=None,  # each "sample" of this loader is one whole batch, made by one worker
        sampler=_Order(requests),
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_leave_signals,
        prefetch_factor=2,
        generator=torch.Generator(),  # the loader would take a number from the global one: a resumed run would differ
    )
    with _signals_held(), _no_alarm():
        packed = iter(loader)  # starts the workers
    while True:
        try:
            batch = next(packed, None)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if not _is_death(error):
                raise
            raise UserError(
                "A process that decodes pictures was killed, often because memory ran out; use fewer --workers, or "
                "--workers 0, and continue a run with --resume."
            ) from error
        if batch is None:
            return
        yield _unpack(batch)


def _is_death(error: Exception) -> bool:
    """Whether it says that a worker is gone: torch's own words, or a connection to the worker that broke before torch
    has seen it. Errors of a worker that lives begin with "Caught"."""
    words = str(error)
    return words.startswith("DataLoader worker (pid") if isinstance(error, RuntimeError) else words[:7] != "Caught "


@contextlib.contextmanager
def _no_alarm() -> Iterator[None]:
    """torch has a handler that raises for a dead worker wherever the program then is: in the middle of an optimizer
    step, or of writing a checkpoint. Put back what was there before, the death is seen where the next batch is asked
    for, within five seconds."""
    hears = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if hears else None
    try:
        yield
    finally:
        if before is not None:
            torchs = getattr(before, "__module__", "").startswith("torch.utils.data")  # of an earlier loader
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if torchs else before)


FOR_THE_RUN = [s for name in ("SIGINT", "SIGTERM", "SIGUSR1") if (s := getattr(signal, name, None)) is not None]
HOLDS = hasattr(signal, "pthread_sigmask")  # not on Windows


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait until the end of the block, and in a process started in it until `_leave_signals`: without that one
    that comes before a worker is ready would kill it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RUN) if HOLDS else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(worker: int) -> None:
    """Schedulers and Ctrl-C signal a whole group of processes, and the run still needs batches to end its step: what is
    meant for the run leaves its workers alone. A second SIGTERM ends a worker that does not end by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if HOLDS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_RUN)


class _Order:
    """The requests to come, as a sampler without a length."""

    def __init__(self, requests: Iterator[Any]):
        self.requests = requests

    def __iter__(self) -> Iterator[Any]:
        return self.requests


def _same(x: Any) -> Any:
    return x


class _Batches(Dataset):
    def __init__(self, make: Callable[[Any], dict[str, Any]], bad_rows: dict[int, str]):
        self.make, self.bad_rows, self.told = make, bad_rows, set(bad_rows)
        # shared memory is small in containers, and a full one kills the worker: then through the pipe
        self.pipe = not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < 1 << 30

    def __getitem__(self, request: Any) -> dict[str, Any]:
        try:
            with quiet():
                batch = _pack(self.make(request), self.pipe)
        except UserError as error:
            batch = {"error": str(error)}
        new = [(i, reason) for i, reason in self.bad_rows.items() if i not in self.told]
        self.told.update(i for i, _ in new)
        return {**batch, "bad": new}


def _pack(batch: dict[str, Any], pipe: bool) -> dict[str, Any]:
    batch = {k: _Ragged.of(v) if _is_ragged(v) else v for k, v in batch.items()}
    if not pipe:
        # shared here and not when it is sent: there an error would be lost, and the run would wait for ever
        with contextlib.suppress(RuntimeError):  # no room after all: through the pipe
            return {k: v.share_memory_() if isinstance(v, Tensor | _Ragged) else v for k, v in batch.items()}
    return {k: v.numpy() if isinstance(v, Tensor | _Ragged) else v for k, v in batch.items()}


def _unpack(packed: dict[str, Any]) -> dict[str, Any]:
    batch = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in packed.items()}
    return {k: v.tensors() if isinstance(v, _Ragged) else v for k, v in batch.items()}


def _is_ragged(value: Any) -> bool:
    """Tensors of several shapes."""
    return isinstance(value, list) and all(isinstance(x, Tensor) for x in value)


class _Ragged:
    """Tensors of several shapes and one type in one shared block: not one open file for each."""

    def __init__(self, flat: Any, shapes: list[tuple[int, ...]]):
        self.flat, self.shapes = flat, shapes

    @classmethod
    def of(cls, values: list[Tensor]) -> _Ragged:
        flat = torch.cat([x.flatten() for x in values]) if values else torch.zeros(0, dtype=torch.uint8)
        return cls(flat, [tuple(x.shape) for x in values])

    def share_memory_(self) -> _Ragged:
        self.flat.share_memory_()
        return self

    def numpy(self) -> _Ragged:
        return _Ragged(self.flat.numpy(), self.shapes)

    def tensors(self) -> list[Tensor]:
        flat = torch.from_numpy(self.flat) if isinstance(self.flat, np.ndarray) else self.flat
        parts = flat.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
