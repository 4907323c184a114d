"""What came out: means, spreads, and whether the claim shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eyespot.reproduce.claim import FLOOR, Claim

ERRORS = 2.0
"""A difference counts when its mean over the seeds is more than this many standard errors from zero, in the expected
direction, with at least three seeds: the seeds are paired, so what they share cancels."""
FEWEST = 3


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, spread (standard deviation over seeds, n - 1), least and largest."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.fmean(values), 4),
        "spread": round(spread, 4),
        "least": min(values),
        "largest": max(values),
        "seeds": len(values),
    }


def compared(first: Sequence[float], second: Sequence[float], direction: str) -> dict[str, Any]:
    """Paired differences first - second over the seeds, and what they show.

    Returns:
        {"difference", "standard_error", "outcome"}; outcome is "shown", "not shown", or "opposite" when the difference
        is as clear in the other direction.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    gain = mean if direction == "higher" else -mean
    clear = len(differences) >= FEWEST and abs(mean) > ERRORS * error
    outcome = "not shown" if not clear else ("shown" if gain > 0 else "opposite")
    return {
        "difference": round(mean, 4),
        "standard_error": None if math.isinf(error) else round(error, 4),
        "outcome": outcome,
    }


def judged(claim: Claim, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Summaries of every arm, the comparison with the control, and which arms beat random features.

    Args:
        results: for each arm, one record a seed in the order of the seeds, each with "metrics".
    """
    arms = {name: _arm(runs) for name, runs in results.items()}
    out: dict[str, Any] = {"arms": arms}
    if claim.arm and claim.control:
        first = [run["metrics"][claim.metric] for run in results[claim.arm]]
        protocol, _, name = claim.metric.partition(".")
        other = (claim.arm, f"{protocol}.floor.{name}") if claim.control == FLOOR else (claim.control, claim.metric)
        second = [run["metrics"][other[1]] for run in results[other[0]]]
        out["comparison"] = {
            "arm": claim.arm,
            "control": claim.control,
            "metric": claim.metric,
            "direction": claim.direction,
            **compared(first, second, claim.direction),
        }
    out["floor_beaten"] = {name: beaten for name, runs in results.items() if (beaten := _beats_floor(runs)) is not None}
    return out


HEADLINES = ("top1", "mIoU", "mAP", "ARI_O", "MSE")
"""What the names of the metrics end with that a table shows."""
FLOORED = (("knn", "top1"), ("linear", "top1"), ("pixel_linear", "mIoU"), ("patch_knn", "mIoU"), ("scenes", "ARI_O"))
"""Protocols and metrics by which a method may beat its floor."""
COSTS = ("minutes", "images_per_s", "peak_memory_mb", "load_per_core")


def columns(record: Mapping[str, Any]) -> list[str]:
    """The metrics of a record that a table shows: accuracies, then costs."""
    names = list(dict.fromkeys(name for values in record["arms"].values() for name in values))
    return [n for n in names if n.endswith(HEADLINES)] + [n for n in COSTS if n in names]


def cell(values: Mapping[str, float] | None) -> str:
    """Mean and spread of one metric."""
    return "-" if values is None else f"{values['mean']:.2f} ± {values['spread']:.2f}"


def _arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [n for n in runs[0]["metrics"] if all(n in run["metrics"] for run in runs)]
    return {name: summary([float(run["metrics"][name]) for run in runs]) for name in names}


def _beats_floor(runs: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether a protocol's metric is above that of random features by more than the spread over seeds."""
    verdicts = []
    for protocol, metric in (
        ("knn", "top1"),
        ("linear", "top1"),
        ("pixel_linear", "mIoU"),
        ("patch_knn", "mIoU"),
        ("scenes", "ARI_O"),
    ):
        ours = [run["metrics"].get(f"{protocol}.{metric}") for run in runs]
        floor = [run["metrics"].get(f"{protocol}.floor.{metric}") for run in runs]
        if None in ours or None in floor or len(ours) < 2:
            continue
        spread = max(statistics.stdev(ours), statistics.stdev(floor))
        verdicts.append(statistics.fmean(ours) - statistics.fmean(floor) > spread)
    return any(verdicts) if verdicts else None
