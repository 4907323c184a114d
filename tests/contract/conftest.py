"""The loop that anybody may write around a method: what the contract promises must be enough for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from eyespot.draws import Draws
from eyespot.methods.method import Method, total


def bare_loop(
    method: Method,
    batches: Iterable[dict[str, Any]],
    steps: int,
    lr: float = 0.1,
    after: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, float]]:
    """Plain SGD over the method's own groups; every hook in the order of the contract. Returns the terms of each step.

    `after` is called with each batch when its step is done, as a source that samples by priority would be.
    """
    groups = [{"params": [p for _, p in g["params"]], "lr": lr * g.get("lr_scale", 1.0)} for g in method.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    method.train()
    history = []
    for step, batch in zip(range(steps), batches, strict=False):
        method.progress = step / steps
        draws = Draws(seed=0, epoch=step, step=step, index=batch["index"])
        with torch.no_grad():
            views = method.views(batch, draws)
        terms = method(views, draws)
        optimizer.zero_grad()
        total(terms).backward()
        method.before_step()
        optimizer.step()
        method.after_step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
        if after is not None:
            after(batch)
    method.finished(len(history))
    method.eval()
    return history


@pytest.fixture
def loop() -> Callable[..., list[dict[str, float]]]:
    return bare_loop
