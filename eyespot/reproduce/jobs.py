"""One arm with one seed: the commands, their cost, and what they measured.

Every command runs in a process of its own, so that its peak memory is its own and a crash loses nothing. What is done
is kept in the job's folder and not done again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import UserError
from eyespot.reproduce.claim import MAKERS, Arm, Claim, DataFile
from eyespot.runs import Run, RunFolder, read_json, write_json

Say = Callable[[str], None]


@dataclass
class Finished:
    """What a process left: its output, seconds and peak memory in MB (None where the system does not say)."""

    out: str
    seconds: float
    memory: float | None


class Bench:
    """Where jobs run and where their data is.

    Args:
        claim: what is run.
        data_folder: folder of the data sets, or None when all are built in.
        out: folder of the runs; kept between calls.
        say: called with a sentence on what is done now.
    """

    def __init__(self, claim: Claim, data_folder: Path | None, out: Path, say: Say):
        self.claim, self.data_folder, self.out, self.say = claim, data_folder, out, say
        self.paths = {name: self._data(name, file) for name, file in claim.data.items()}

    def _data(self, name: str, file: DataFile) -> str:
        """How a data set is named on the command line; rows are cut into a Parquet file of their own."""
        path = self._path(name, file) + (f":{file.split}" if file.split else "")
        return f"{file.make}:{path}" if file.make else path

    def _path(self, name: str, file: DataFile) -> str:
        if file.built_in:
            return file.file
        if self.data_folder is None:
            raise UserError(
                f"The claim {self.claim.name} needs the data set {file.file}; name the folder it lies in with "
                "--data-folder, or in EYESPOT_DATA."
            )
        path = self.data_folder / file.file
        if not path.exists():
            raise UserError(f"'{path}' is missing; --data-folder must hold {file.file}.")
        if file.rows is None:
            return str(path)
        part = self.out / "data" / f"{name}-{path.stem}-{file.rows[0]}-{file.rows[1]}.parquet"
        if not part.exists():
            _cut(path, part, file.rows)
        return str(part)

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The record of one arm and seed: metrics, commands, verdict."""
        folder = self.out / f"{arm.name}-{seed}"
        done = folder / "reproduced.json"
        key = {"arm": str(arm), "data": dict(self.paths), "protocols": list(self.claim.protocols)}
        if done.exists() and (kept := read_json(done))["key"] == key:
            return kept["record"]
        if arm.start is not None:
            self.run(self.claim.stages[arm.start], seed)
        words = self.training_words(arm, seed, folder)
        self.say(f"{arm.name}, seed {seed}: eyespot {' '.join(words)}")
        resume = ["--resume"] if RunFolder(folder).holds_run() else []
        trained = self.call([*words, *resume])
        record = {"seed": seed, "commands": [words], "metrics": self._training_metrics(folder, trained)}
        record["verdict"] = Run(folder).verdict.get("state")
        protocols = dict.fromkeys((*self.claim.protocols, *arm.protocols))
        if protocols and arm.command == "pretrain" and arm.name in self.claim.arms:
            words = self.evaluation_words(arm, seed, folder, ",".join(protocols))
            record["commands"].append(words)
            record["metrics"] |= _evaluation_metrics(self.call(words).out)
        record["commands"] = [[self.public(w) for w in words] for words in record["commands"]]
        write_json(done, {"key": key, "record": record})
        return record

    def training_words(self, arm: Arm, seed: int, folder: Path) -> list[str]:
        words = [arm.command, arm.method]
        if arm.start is not None:
            words.append(str(self.out / f"{arm.start}-{seed}"))
        words += ["--data", self.paths[arm.data], "--out", str(folder), "--seed", str(seed)]
        if arm.command == "adapt":
            words += ["--test-data", self.paths[arm.test]]
        for key, value in arm.options.items():
            words += [f"--{key.replace('_', '-')}", _word(value)]
        words += [word for key, value in arm.settings.items() for word in ("--set", f"{key}={_word(value)}")]
        return words + [word for name in arm.plugins for word in ("--with", name)]

    def evaluation_words(self, arm: Arm, seed: int, folder: Path, protocols: str) -> list[str]:
        train = self.claim.data.get("bank")  # a bank of its own when evaluation has other training pictures
        bank = self.paths["bank"] if train is not None else self.paths[arm.data]
        return [
            *("evaluate", str(folder), "--data", bank, "--test-data", self.paths[arm.test]),
            *("--protocol", protocols, "--seed", str(seed), "--json"),
        ]

    def public(self, word: str) -> str:
        """A word of a command without the paths of this machine."""
        maker, mark, path = word.partition(":") if word.partition(":")[0] in MAKERS else ("", "", word)
        if self.data_folder is not None and path.startswith(str(self.data_folder)):
            return f"{maker}{mark}DATA{path[len(str(self.data_folder)) :]}"
        return f"{maker}{mark}RUNS{path[len(str(self.out)) :]}" if path.startswith(str(self.out)) else word

    def call(self, words: Sequence[str]) -> Finished:
        """Run `eyespot WORDS` in a process of its own.

        Raises:
            UserError: it failed; the last line that it printed says why.
        """
        command = [sys.executable, "-m", "eyespot", *words]
        log = self.out / "last.log"
        started = time.perf_counter()
        with open(log, "w", encoding="utf-8") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            assert process.stdout is not None
            out = process.stdout.read()
            status, memory = _ended(process)
        if status != 0:
            said = log.read_text(encoding="utf-8").strip().splitlines() or ["nothing was said"]
            raise UserError(f"`eyespot {' '.join(words)}` ended with status {status}: {said[-1]}")
        return Finished(out, time.perf_counter() - started, memory)

    def _training_metrics(self, folder: Path, trained: Finished) -> dict[str, Any]:
        rates = [r["images_per_s"] for r in Run(folder).metrics if r.get("images_per_s")]
        metrics: dict[str, Any] = {"minutes": round(trained.seconds / 60, 2)} | _watched(Run(folder).metrics)
        if rates:
            metrics["images_per_s"] = round(statistics.median(rates), 1)
        if trained.memory is not None:
            metrics["peak_memory_mb"] = round(trained.memory)
        if hasattr(os, "getloadavg"):  # minutes and images/s mean little where other programs were running
            metrics["load_per_core"] = round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
        if (folder / "evaluation.json").exists():
            metrics["accuracy.top1"] = read_json(folder / "evaluation.json")["top1"]
        return metrics


OF_THE_ENGINE = ("step", "epoch", "loss", "terms", "images_per_s", "data_wait", "lr", "grad_norm", "advice")


def _watched(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the method watched, as `train.NAME`: the mean over the last tenth of the log."""
    last = records[-max(1, len(records) // 10) :]
    names = {k for r in last for k, v in r.items() if k not in OF_THE_ENGINE and isinstance(v, int | float)}
    return {f"train.{n}": round(statistics.fmean(r[n] for r in last if n in r), 3) for n in sorted(names)}


def _evaluation_metrics(out: str) -> dict[str, Any]:
    """The metrics of one result, or of a list of them, and their floors: "knn.top1", "knn.floor.top1", ..."""
    printed = json.loads(out)
    found: dict[str, Any] = {}
    for result in printed if isinstance(printed, list) else [printed]:
        name, floor = result["protocol"], result["floor"]
        found |= {f"{name}.{k}": v for k, v in result.items() if k in floor and isinstance(v, int | float)}
        found |= {f"{name}.floor.{k}": v for k, v in floor.items() if isinstance(v, int | float)}
    return found


def _ended(process: subprocess.Popen[str]) -> tuple[int, float | None]:
    """Exit status and peak memory in MB."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return process.returncode, usage.ru_maxrss / unit


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_word(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(path: Path, part: Path, rows: tuple[int, int]) -> None:
    """Rows rows[0]..rows[1] of a Parquet file as a file of their own, with its schema."""
    import pyarrow.parquet as pq

    from eyespot.runs import replacing

    table = pq.read_table(path)
    if not 0 <= rows[0] < rows[1] <= table.num_rows:
        raise UserError(f"'{path}' has {table.num_rows} rows; rows {rows[0]} to {rows[1]} do not exist.")
    part.parent.mkdir(parents=True, exist_ok=True)
    with replacing(part) as draft:
        pq.write_table(table.slice(rows[0], rows[1] - rows[0]), draft)
