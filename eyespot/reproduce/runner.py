"""`eyespot.reproduce`: run a claim against its control, over seeds, and record what came out."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.options import ReproduceOptions
from eyespot.reproduce.claim import Claim, claim_names, read_claim
from eyespot.reproduce.evidence import update_evidence
from eyespot.reproduce.jobs import Bench
from eyespot.reproduce.outcome import judged
from eyespot.reproduce.plot import dot_plot
from eyespot.runs import read_json, write_json, write_text

VERSION = 1
OWN_CLAIMS = Path(__file__).resolve().parents[2] / "reproductions"
"""The claims of the source tree that the package lies in; only theirs are evidence for its methods."""


def reproduce(name: str, /, **options: Any) -> dict[str, Any]:
    """Run the claim of a paper at small scale and record it.

    Args:
        name: claim, see `eyespot reproduce` without a name.
        options: the options of `eyespot reproduce`, in `eyespot.options.ReproduceOptions`.

    Returns:
        The record that is written beside the claim as NAME.json: the claim, every run with its commands and metrics,
        means and spreads, the comparison with the control, versions and machine.

    Raises:
        UserError: one sentence that names the value and the remedy.
    """
    chosen = build(ReproduceOptions, name, **options)
    folder = claims_folder(chosen.claims)
    claim = read_claim(folder, name)
    seeds = claim.seeds[: chosen.seeds] if chosen.seeds else claim.seeds
    say = chosen.listener or _silent
    out = Path(chosen.out).resolve() / claim.name
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(claim, data_folder(chosen.data_folder), out, lambda text: say({"kind": "note", "text": text}))
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in claim.arms}
    for seed in seeds:  # seed by seed, so that an interrupted claim has compared all arms
        for name_, arm in claim.arms.items():
            results[name_].append(bench.run(arm, seed))
    record = make_record(claim, results)
    complete = len(seeds) == len(claim.seeds)
    where = folder if complete else out
    write_json(where / f"{claim.name}.json", record)
    write_text(where / f"{claim.name}.svg", picture(claim, results))
    if complete and folder.resolve() == OWN_CLAIMS:
        update_evidence(folder)
    return record


def _silent(record: Mapping[str, Any]) -> None:
    """A listener that ignores what it hears."""


def claims_folder(given: str | None) -> Path:
    """The folder of claims: the given one, `reproductions` here, or that of the source tree the package lies in."""
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(f"--claims '{given}' is no folder; name one that holds claims as TOML files.")
        return Path(given)
    for place in (Path.cwd() / "reproductions", OWN_CLAIMS):
        if place.is_dir() and claim_names(place):
            return place
    raise UserError("No claims were found here; run this in a source tree of eyespot, or name a folder with --claims.")


def data_folder(given: Any) -> Path | None:
    """The folder of data sets, from the option or from EYESPOT_DATA."""
    named = given or os.environ.get("EYESPOT_DATA")
    return None if not named else Path(named).resolve()


def make_record(claim: Claim, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Everything that is needed to read the outcome and to run it again."""
    count = len(next(iter(results.values())))
    return {
        "version": VERSION,
        "name": claim.name,
        "command": f"eyespot reproduce {claim.name} --data-folder DATA",
        "date": date.today().isoformat(),
        "seeds": list(claim.seeds[:count]),
        **judged(claim, results),
        "claim": dict(claim.source),
        "runs": dict(results),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "eyespot": version("eyespot"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": _cores(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def _cores() -> int:
    """Cores this process may use, which are fewer than the machine's when it is pinned."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def picture(claim: Claim, results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The dot plot of the claim's metric."""
    head, _, tail = claim.metric.partition(".")
    values, floors = {}, {}
    for name, runs in results.items():
        found = [float(run["metrics"][claim.metric]) for run in runs if claim.metric in run["metrics"]]
        below = [float(run["metrics"][key]) for run in runs if (key := f"{head}.floor.{tail}") in run["metrics"]]
        if found:
            values[name] = found
        if below:
            floors[name] = sum(below) / len(below)
    return dot_plot(claim.name, claim.metric, values, floors)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Claims of a folder in order, each with what was recorded for it, or None."""
    found = []
    for name in claim_names(folder):
        path = folder / f"{name}.json"
        found.append({"claim": read_claim(folder, name), "record": read_json(path) if path.exists() else None})
    return found
