"""Errors that a user can mend: one clear sentence that names the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user asked for. The command line prints the sentence and exits with status 2."""


class NotWritten(UserError, OSError):
    """A file could not be written: the disk is full, a quota is used up, a disk fails.

    Attributes:
        strerror: the system's reason.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(
            f"'{path}' cannot be written ({reason}), and what it held before stays; make room, and continue a run with "
            "--resume."
        )
        self.strerror = reason


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or not a number; training stopped and the last good checkpoint stays."""


class Stopped(SystemExit):
    """A signal asked a run to stop: its step ended and its checkpoint is written, so `resume` goes on exactly.

    A SystemExit, so that a script exits with the status on which schedulers start a job again.

    Attributes:
        signal: name of the signal.
        step: steps done.
    """

    STATUS = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""

    def __init__(self, signal: str, step: int):
        super().__init__(self.STATUS)
        self.signal, self.step = signal, step

    def __str__(self) -> str:
        return f"Stopped by {self.signal} after step {self.step}"


class MissingExtra(UserError, ImportError):
    """An optional stack is not installed."""

    def __init__(self, package: str, extra: str, what: str):
        super().__init__(f"{what} needs the package '{package}': install it with pip install 'eyespot[{extra}]'.")


def nearest(word: str, valid: Iterable[str], most: int = 3) -> str:
    """A phrase that names the valid words nearest to `word`, or all of them when none is near."""
    words = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(word, words, n=most, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{w}'" for w in near) + "?"
    return "valid: " + ", ".join(words) + "."


def unknown(kind: str, word: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest valid names."""
    return UserError(f"There is no {kind} '{word}'; {nearest(word, valid)}")
