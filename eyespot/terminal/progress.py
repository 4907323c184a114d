"""The one progress line of a run: on a terminal it is rewritten in place, elsewhere a plain line every ten seconds.

The engine sends records to a listener; nothing in the engine prints. Records:

    {"kind": "step", "step", "steps", "epoch", "epochs", "loss", "terms", "images_per_s", "data_wait", "seconds_left",
     "verdict": {"state", "reason"}, "knn", "floor"}
    {"kind": "note", "text"}
    {"kind": "done"}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from eyespot.terminal.pages import COLOURS, duration


class Progress:
    """A listener that shows what it hears on standard error.

    Args:
        every: seconds between two lines where the output is not a terminal.
        stream: where it writes.
    """

    def __init__(self, every: float = 10.0, stream: TextIO | None = None):
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self.every = every
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.shown = -float("inf")
        self.latest: Mapping[str, Any] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self, record: Mapping[str, Any]) -> None:
        kind = record.get("kind")
        if kind == "note":
            self.console.print(Text(str(record["text"])), soft_wrap=True)
        elif kind == "step":
            self.latest = record
            self._show(time.monotonic(), last=record.get("step") == record.get("steps"))
        elif kind == "done":
            self.live.stop()

    def _show(self, now: float, last: bool) -> None:
        terminal = self.console.is_terminal
        if not last and now - self.shown < (0.1 if terminal else self.every):
            return
        self.shown = now
        text = line(self.latest)
        if terminal:
            if not self.live.is_started:
                self.live.start()
            self.live.update(text, refresh=True)
        else:
            self.console.print(text, soft_wrap=True)


def line(record: Mapping[str, Any]) -> Text:
    """One progress line; what a record does not hold is left out."""
    verdict = record.get("verdict") or {}
    state, reason = verdict.get("state"), verdict.get("reason")
    parts = [_place(record), _loss(record), _speed(record), _probe(record)]
    text = Text("  ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis")
    if state:
        text.append("  ")
        text.append(str(state), style=COLOURS.get(str(state), ""))
        text.append(f": {reason}" if reason else "")
    return text


def _place(record: Mapping[str, Any]) -> str:
    step, steps = record.get("step"), record.get("steps")
    epoch, epochs = record.get("epoch"), record.get("epochs")
    share = f"{100 * step / steps:3.0f} %" if step is not None and steps else ""
    at = "" if epoch is None else f"epoch {epoch:.4g}" + (f"/{epochs:.4g}" if epochs else "")
    return "  ".join(part for part in (share, at) if part)


def _loss(record: Mapping[str, Any]) -> str:
    if record.get("loss") is None:
        return ""
    terms = record.get("terms") or {}
    named = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
    return f"loss {record['loss']:.4g}" + (f" ({named})" if len(terms) > 1 else f" {next(iter(terms), '')}".rstrip())


def _speed(record: Mapping[str, Any]) -> str:
    parts = []
    if record.get("images_per_s") is not None:
        parts.append(f"{record['images_per_s']:,.0f} images/s")
    if record.get("data_wait") is not None:
        parts.append(f"data wait {100 * record['data_wait']:.0f} %")
    if record.get("seconds_left") is not None:
        parts.append(f"{duration(record['seconds_left'])} left")
    return "  ".join(parts)


def _probe(record: Mapping[str, Any]) -> str:
    if record.get("knn") is None:
        return ""
    floor = record.get("floor")
    return f"kNN {record['knn']:.1f} %" + (f" (random {floor:.1f} %)" if floor is not None else "")
