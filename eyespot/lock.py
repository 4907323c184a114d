"""One process at a time: an advisory lock on a file, which the system takes back when its process ends, also by a kill.

The lock is of the process (POSIX record locks, Windows' byte locks), so worker processes that were forked from it do
not keep it alive. Such locks do not keep the threads of one process apart; the paths that this process holds do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_MINE: set[str] = set()  # what this process holds: a lock is a fact of the process


@contextlib.contextmanager
def hold(file: Path) -> Iterator[bool]:
    """Holds the lock on `file`, which is made when missing, until the block ends.

    Yields:
        False where another process or thread holds it; True also where the file system has no locks.

    Raises:
        OSError: the file cannot be made.
    """
    name = os.path.realpath(file)
    if name in _MINE:
        yield False
        return
    with open(file, "ab") as stream:
        taken = _take(stream.fileno())
        if taken:
            _MINE.add(name)
        try:
            yield taken
        finally:
            if taken:
                _MINE.discard(name)


def is_held(file: Path) -> bool:
    """Whether somebody holds the lock now."""
    if not file.exists():
        return False
    try:
        with hold(file) as held:
            return not held
    except OSError:
        return False  # not ours to write: whoever tries says so


def _take(fd: int) -> bool:
    """Whether the lock was free, or there are no locks here. It goes with the open file."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True
