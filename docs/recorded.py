"""Numbers of recorded claims for the pages: one table a record, and what came out of the comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eyespot.reproduce.claim import FLOOR, Arm, Claim
from eyespot.reproduce.outcome import COSTS, cell
from eyespot.reproduce.runner import recorded

CLAIMS = Path(__file__).parents[1] / "reproductions"
PROTOCOLS = {"knn": "kNN", "linear": "linear", "finetune": "fine-tuned", "accuracy": "accuracy"}
COST_HEADS = {
    "minutes": "minutes",
    "images_per_s": "images/s",
    "peak_memory_mb": "peak memory, MB",
    "load_per_core": "load per core",
}


def found(folder: Path = CLAIMS) -> list[dict[str, Any]]:
    """Every claim of a folder, with its record or None."""
    return recorded(folder)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def escape(text: str) -> str:
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def metric_name(metric: str) -> str:
    """knn.top1 -> kNN top-1."""
    head, _, tail = metric.partition(".")
    return f"{PROTOCOLS.get(head, head)} {'top-1' if tail == 'top1' else tail}"


def floor_of(metric: str) -> str:
    """The key of what random features reach in a metric."""
    head, _, tail = metric.partition(".")
    return f"{head}.{FLOOR}.{tail}"


def accuracies(record: Mapping[str, Any]) -> list[str]:
    """The accuracies that a record has: what the claim compares first."""
    names = dict.fromkeys(name for values in record["arms"].values() for name in values)
    shown = [n for n in names if n.endswith("top1") and f".{FLOOR}." not in n]
    return sorted(shown, key=lambda n: n != record["claim"]["metric"])


def with_floor(values: Mapping[str, Any], metric: str) -> str:
    """43.90 ± 0.31 (33.70)."""
    floor = values.get(floor_of(metric))
    return cell(values.get(metric)) + ("" if floor is None else f" ({floor['mean']:.2f})")


def cost(values: Mapping[str, Any] | None, name: str) -> str:
    """746 ± 86; minutes and load are small numbers and keep two digits."""
    if values is None or name in ("minutes", "load_per_core"):
        return cell(values)
    return f"{values['mean']:,.0f} ± {values['spread']:,.0f}"


def arms_table(record: Mapping[str, Any], arms: Iterable[str], head: str = "arm") -> str:
    """Accuracies and costs of some arms, mean ± spread over the seeds."""
    arms = list(arms)
    metrics = [m for m in accuracies(record) if any(m in record["arms"][a] for a in arms)]
    costs = [c for c in COSTS if any(c in record["arms"][a] for a in arms)]
    rows = []
    for arm in arms:
        values = record["arms"][arm]
        rows.append([f"`{arm}`", *(with_floor(values, m) for m in metrics), *(cost(values.get(c), c) for c in costs)])
    return table([head, *(metric_name(m) for m in metrics), *(COST_HEADS[c] for c in costs)], rows)


def outcome(record: Mapping[str, Any]) -> str:
    """What the comparison of a claim shows, in one line; empty for a table."""
    if "comparison" not in record:
        return ""
    c = record["comparison"]
    error = "of one seed" if c["standard_error"] is None else f"standard error {c['standard_error']:.2f}"
    control = "random weights" if c["control"] == FLOOR else f"`{c['control']}`"
    return (
        f"**{c['outcome'].capitalize()}**: `{c['arm']}` against {control}, {metric_name(c['metric'])} "
        f"{c['difference']:+.2f} ({error}, {seeds(record)})."
    )


def seeds(record: Mapping[str, Any]) -> str:
    count = len(record["seeds"])
    return f"{count} seed{'s' if count > 1 else ''}"


def provenance(record: Mapping[str, Any]) -> str:
    e = record["environment"]
    return (
        f"Recorded {record['date']} with eyespot {e['eyespot']}, torch {e['torch']}, {cores(record)} "
        f"({e['machine']}): `{record['command']}`."
    )


def cores(record: Mapping[str, Any]) -> str:
    count = record["environment"]["cores"]
    return f"{count} core{'s' if count != 1 else ''}"


def setting(claim: Claim, arm: Arm) -> str:
    """Data, network and length of an arm's training."""
    data = claim.data[arm.data]
    rows = "" if data.rows is None else f", {data.rows[1] - data.rows[0]:,} pictures"
    told = [f"{escape(data.file)}{rows}"]
    options = dict(arm.options)
    if arm.start is not None:
        stage = claim.stages[arm.start]
        told.append(f"from a run of {escape(stage.method)}")
        options = dict(stage.options) | options | ({"epochs": options["epochs"]} if "epochs" in options else {})
    if "init" in options:
        told.append(f"from {escape(str(options['init']))}")
    told += [escape(str(options["backbone"]))] if "backbone" in options else []
    told += [f"{options['image_size']} px"] if "image_size" in options else []
    told += [f"{options[k]} {k}" for k in ("epochs", "minutes") if k in options]
    return ", ".join(told)


# --- the page of claims ----------------------------------------------------------------------------------------------
def claims(folder: Path = CLAIMS) -> str:
    """One section a claim: what is claimed, what came out, the arms, and the command."""
    return "\n\n".join(section(f["claim"], f["record"]) for f in found(folder))


def section(claim: Claim, record: Mapping[str, Any] | None) -> str:
    parts = [f"### {claim.name}", escape(claim.claim)]
    parts += [f"The paper's figures: {escape(claim.paper)}"] if claim.paper else []
    parts += [escape(claim.note)] if claim.note else []
    if record is None:
        return "\n\n".join([*parts, "Nothing is recorded yet."])
    parts += [told] if (told := outcome(record)) else []
    first = next(iter(claim.arms.values()))
    return "\n\n".join([*parts, f"{setting(claim, first)}.", arms_table(record, record["arms"]), provenance(record)])


# --- the numbers of one system ---------------------------------------------------------------------------------------
def of_system(name: str, folder: Path = CLAIMS) -> str:
    """Every record in which a system was trained: its arms, beside the control of the claim that is its own."""
    parts = []
    for f in found(folder):
        claim, record = f["claim"], f["record"]
        own = [a.name for a in claim.arms.values() if name == a.method or name in a.plugins]
        if record is None and claim.subject == name:
            parts.append(f"Its claim, [{claim.name}](../reproductions.md#{claim.name}), was not run yet.")
        if record is None or not own:
            continue
        mine = claim.subject == name
        control = [claim.control] if mine and claim.control in claim.arms and claim.control not in own else []
        parts.append(f"### [{claim.name}](../reproductions.md#{claim.name})")
        parts += [f"{escape(claim.claim)} {outcome(record)}"] if mine and outcome(record) else []
        parts.append(f"{setting(claim, claim.arms[own[0]])}; {seeds(record)}, {cores(record)}, {record['date']}.")
        parts.append(arms_table(record, [*own, *control]))
    if not any("|" in part for part in parts):
        parts.append("No accuracy and no cost of it is recorded yet.")
    else:
        parts.append(
            "Mean ± standard deviation over the seeds; accuracies in percent, in brackets those of random features of "
            "the same network."
        )
    return "\n\n".join(parts)
