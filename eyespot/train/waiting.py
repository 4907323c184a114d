"""Whether a run waits for its data: the share of its time, and the advice that follows, told once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SHARE = 0.2
"""Of the time; below it faster data would hardly make a run faster."""
SECONDS = 30.0
"""What is waited for at the start (workers, decoding a small set into memory) is no lasting wait."""


class DataWait:
    """Hears of every logged window of steps.

    Args:
        remedies: what would help, asked once; see `eyespot.data.advice.remedies`.
    """

    def __init__(self, remedies: Callable[[], list[str]]):
        self.remedies = remedies
        self.windows: deque[tuple[float, float]] = deque()
        self.first, self.told = True, False

    def hear(self, waited: float, seconds: float) -> str | None:
        """The advice, when the share is large in both halves of the last half minute for the first time.

        Args:
            waited: seconds of the window in which the main process waited for a batch.
            seconds: length of the window, without checkpoints and verdicts.
        """
        if self.told or self.first:
            self.first = False
            return None
        self.windows.append((waited, seconds))
        while sum(s for _, s in self.windows) - self.windows[0][1] >= SECONDS:
            self.windows.popleft()
        windows = list(self.windows)
        total = sum(s for _, s in windows)
        middle = next(k for k in range(1, len(windows) + 1) if sum(s for _, s in windows[:k]) >= total / 2)
        if total < SECONDS or _share(windows[:middle]) <= SHARE or _share(windows[middle:] or windows) <= SHARE:
            return None
        self.told, share = True, _share(windows)
        helps = self.remedies()
        return f"waiting for data {share:.0%} of the time; faster with {', or '.join(helps)}" if helps else None


def _share(windows: list[tuple[float, float]]) -> float:
    return sum(waited for waited, _ in windows) / max(sum(seconds for _, seconds in windows), 1e-9)
