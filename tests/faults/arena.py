"""Runs of the command line in a forked child, and what strikes them: quick, because nothing is imported again."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image

from eyespot import cli
from eyespot.train import fit as loop

STEPS = 9


def words(data: Path, out: Path, *more: str) -> list[str]:
    """A run of nine steps."""
    small = ["--backbone", "resnet8", "--image-size", "16", "--epochs", "3", "--batch-size", "8", "--workers", "0"]
    logged = ["--log-every", "1", "--device", "cpu", "--set", "hidden=16", "out=8"]
    return ["pretrain", "simclr", "--data", str(data), "--out", str(out), *small, *logged, *more]


def draw(root: Path, n: int = 24) -> Path:
    """Pictures of noise in two class folders."""
    g = torch.Generator().manual_seed(0)
    for i in range(n):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=g, dtype=torch.uint8)
        place = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place)
    return root


def busy() -> None:
    """Verdict and checkpoint after every step."""
    loop.side_work = lambda *a: True


def child(work: Callable[[], Any], log: Path) -> int:
    """`work()` in a child process; its exit status, negative for a signal. What it says is in `log`."""
    pid = os.fork()
    if pid == 0:
        _end(work, log)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end(work: Callable[[], Any], log: Path) -> NoReturn:
    """The life of the child, which must never come back into the tests."""
    status = 99
    signal.alarm(240)  # a child that hangs is a failure, not a test without end
    try:
        with open(log, "w", encoding="utf-8", buffering=1) as said:
            sys.stdout = sys.stderr = said
            try:
                status = int(work() or 0)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


def command(argv: Sequence[str], log: Path, *strikes: Callable[[], Any]) -> int:
    """The command line in a child, after the strikes were put in place."""

    def work() -> int:
        for strike in strikes:
            strike()
        return cli.main(argv)

    return child(work, log)


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process that was killed does not go on")


def at(
    owner: Any,
    name: str,
    nth: int,
    do: Callable[..., Any] = die,
    *,
    after: bool = False,
    about: str = "",
) -> Callable[[], None]:
    """Puts `do` before (or after) the nth call of `owner.name`.

    Args:
        do: called with the arguments of the call.
        about: counts only calls one of whose arguments is a path that ends so.
    """

    def place() -> None:
        real, count = getattr(owner, name), [0]

        def struck(*args: Any, **more: Any) -> Any:
            count[0] += not about or any(str(a).endswith(about) for a in args)
            now = count[0] == nth and (not about or any(str(a).endswith(about) for a in args))
            if now and not after:
                do(*args)
            result = real(*args, **more)
            if now and after:
                do(*args)
            return result

        setattr(owner, name, struck)

    return place


def final(out: Path) -> dict[str, Any]:
    """What must be the same to the bit: the whole method, the optimizer, the backbone's file."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["step"] == STEPS
    return {
        "method": state["method"],
        "optimizer": state["optimizer"],
        "file": (out / "backbone.safetensors").read_bytes(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def left(out: Path) -> list[str]:
    """Files that were begun and not removed."""
    return sorted(p.name for p in out.rglob(".*.part"))
