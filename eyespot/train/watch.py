"""What watches a run: the live probe and the log together give the verdict, kept in verdict.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eyespot import modality
from eyespot.methods.method import Method
from eyespot.runs import RunFolder, read_metrics, write_json
from eyespot.train.verdict import LiveProbe, judge, projection_head

MOST_RECORDS = 2000
"""Records the verdict looks at; a longer log is thinned."""


class Embedding(nn.Module):
    """A method seen as a net from clean inputs to features."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, inputs: Any) -> Tensor:
        return self.method.embed(inputs)


class RunProbe:
    """Verdicts of one run, on its main process.

    Args:
        method: before training.
        data: the training data; a fixed few hundred of its pictures are measured.
        twin: the same backbone with random weights when the method's own is trained already; gives the floor.
        folder: where verdict.json goes.
        steps: steps of the run where they are known.
    """

    def __init__(
        self,
        method: Method,
        data: Any,
        image_size: int,
        device: torch.device,
        folder: RunFolder | None,
        twin: nn.Module | None = None,
    ):
        self.folder, self.steps = folder, None
        clean = modality.of_backbone(getattr(method, "host", method).backbone).clean
        self.live = LiveProbe.of(data, image_size, clean=clean)
        net = Embedding(method).to(device) if twin is None else twin.to(device)
        self.floor = self.live.set_floor(net, None if twin is not None else self._head(method))
        self.plateaus = dict(method.plateau(method.info.batch_size))
        self.history: list[dict[str, Any]] | None = None
        self.probes: list[dict[str, float]] = []
        self.advice = ""

    @staticmethod
    def _head(method: Method) -> nn.Module | None:
        host = getattr(method, "host", method)
        return projection_head(host, getattr(host.backbone, "embed_dim", 0))

    def record(self, record: Mapping[str, Any]) -> None:
        """Take note of a logged step."""
        if self.history is None:
            self.history = [r for r in self._logged() if r.get("step", 0) < record["step"]]
            self.advice = next((r["advice"] for r in reversed(self.history) if "advice" in r), "")
        self.advice = record.get("advice", self.advice)
        self.history.append(dict(record))
        if len(self.history) > MOST_RECORDS:
            self.history = self.history[::2]

    def _logged(self) -> list[dict[str, Any]]:
        """What the folder's log holds: a resumed run is judged as a whole."""
        path = None if self.folder is None else self.folder / "metrics.jsonl"
        return read_metrics(path)[-MOST_RECORDS:] if path is not None and path.exists() else []

    def __call__(self, method: Method, step: int, steps: int | None = None) -> dict[str, Any]:
        """Measure now and judge."""
        self.steps = steps or self.steps
        if step > 0:
            self.probes = [*self.probes[-3:], {"step": step, **self.live(Embedding(method), self._head(method))}]
        return self._judge(final=False)

    def finish(self, method: Method) -> dict[str, Any]:
        """The final verdict."""
        self.probes.append(self.live(Embedding(method), self._head(method)))
        return self._judge(final=True)

    def failed(self, reason: str) -> dict[str, Any]:
        """The verdict on a run that ended by a loss that is not finite."""
        verdict = self._judge(final=True) | {"state": "unstable", "reason": reason}
        verdict["remedy"] = (
            "lower the rate (--lr), clip the gradient (--clip 1) or use --precision float32, and --resume"
        )
        self._write(verdict)
        return verdict

    def _judge(self, final: bool) -> dict[str, Any]:
        history = self.history if self.history is not None else self._logged()
        verdict = judge(history, self.plateaus, self.probes, self.floor, steps=self.steps, final=final)
        if verdict["state"] == "learning":
            verdict["remedy"] = verdict["remedy"] or self.advice
        self._write(verdict)
        return verdict

    def _write(self, verdict: dict[str, Any]) -> None:
        if self.folder is not None:
            write_json(self.folder / "verdict.json", verdict)
