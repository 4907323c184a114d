"""Worker processes that make whole batches ahead, and the way of a batch from a worker to the main process."""

from __future__ import annotations

import shutil
import signal
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
    for packed in loader:
        yield _unpack(packed)


def _leave_signals(worker: int) -> None:
    """Schedulers and Ctrl-C signal a whole group of processes, and the run still needs batches to end its step: what is
    meant for the run leaves its workers alone. A second SIGTERM ends a worker that does not end by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


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
    image = batch["image"]
    if isinstance(image, list):  # one shared block, not one open file for each picture
        batch = {
            **batch,
            "sizes": torch.tensor([tuple(x.shape) for x in image]).view(-1, 3),
            "image": torch.cat([x.flatten() for x in image]) if image else torch.zeros(0, dtype=torch.uint8),
        }
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in batch.items()} if pipe else batch


def _unpack(packed: dict[str, Any]) -> dict[str, Any]:
    batch = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in packed.items()}
    if "sizes" in batch:
        sizes = batch.pop("sizes").tolist()
        parts = batch["image"].split([size[0] * size[1] * size[2] for size in sizes])
        batch["image"] = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
    return batch
