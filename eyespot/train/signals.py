"""Asking a run to stop: SIGTERM and SIGUSR1, which schedulers send, and Ctrl-C.

A signal only leaves a note; the loop reads it when a step has ended, writes the checkpoint and stops. So nothing is
lost, and the resumed run equals one that was never stopped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from eyespot.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class StopRequest:
    """What came while the loop ran; `number` is the signal's, 0 while there was none."""

    def __init__(self) -> None:
        self.number = 0
        self.interrupts = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: a second Ctrl-C does not wait for the step."""
        self.number = max(self.number, number)
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            raise KeyboardInterrupt


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Inside, the signals are noted; afterwards everything is as it was.

    Only Python's defaults are replaced: a signal that the program ignores or handles itself is left alone, and so is
    every signal outside the main thread, where Python allows no handlers.
    """
    request = StopRequest()
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) in DEFAULTS:
                    before[number] = signal.signal(number, request.note)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int, step: int) -> NoReturn:
    """End the run because of a signal, after its checkpoint was written.

    Raises:
        KeyboardInterrupt: for SIGINT.
        Stopped: for all others.
    """
    stopped = Stopped(signal.Signals(number).name, step)
    raise KeyboardInterrupt(str(stopped)) if number == signal.SIGINT else stopped
