"""What a protocol found, before it becomes a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Outcome = tuple[dict[str, float], dict[str, Any]]
"""The metrics of one network, and the constants that were used."""
OWN = "the model's own"
"""What a result says of its floor when the model's weights are random: it is its own floor."""


@dataclass
class Measured:
    """One protocol on a model and on its random twins.

    Attributes:
        outcomes: of the model, then of its twins.
        config: what the result says about model and data; `config["run"]` is the model.
        bad: pictures that could not be read.
    """

    protocol: str
    version: int
    outcomes: Sequence[Outcome]
    config: dict[str, Any]
    n_train: int
    n_test: int
    classes: int
    seconds: float
    bad: int
    seed: int

    def result(self) -> dict[str, Any]:
        """The result as `evaluate` returns it."""
        metrics, used = self.outcomes[0]
        config = dict(self.config)
        run = config.pop("run")
        floors = [m for m, _ in self.outcomes[1:]] or ([metrics] if config["floor"]["weights"] == OWN else [])
        return {
            "protocol": self.protocol,
            "version": self.version,
            **metrics,
            "floor": {k: float(np.mean([f[k] for f in floors])) for k in metrics} if floors else None,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "classes": self.classes,
            "seconds": round(self.seconds, 3),
            "run": run,
            "config": config | {"bad_files": self.bad, "seed": self.seed} | used,
        }
