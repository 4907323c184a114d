"""Which method for which data: read from the records of claims, and what no record says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorded import (
    CLAIMS,
    arms_table,
    cores,
    escape,
    floor_of,
    found,
    metric_name,
    provenance,
    setting,
    table,
)
from recorded import seeds as seed_count

from eyespot.reproduce.claim import Arm, Claim, DataFile
from eyespot.reproduce.outcome import cell, compared

NOTHING = "**Nothing is recorded yet**, so no figure stands here. `eyespot reproduce` records them."
NO_FIGURE = "no figure"
SIZES = {"up to 10,000 pictures": 10_000, "up to 100,000": 100_000, "up to a million": 1_000_000, "more": None}
BUDGETS = {"up to 10 minutes": 10, "up to an hour": 60, "up to a day": 24 * 60, "days": None}
PHOTOGRAPHS = "photographs of everyday things"
DOMAINS = {name: PHOTOGRAPHS for name in ("cifar10", "cifar100", "tiny_imagenet_100", "flowers17", "stl10")}
DOMAINS |= {"scenes": "rendered scenes"}
OTHERS = ("other RGB pictures (microscopes, satellites, ...)", "one channel, or more than three")
STARTS = ("random weights", "published weights", "own run")


@dataclass(frozen=True)
class Situation:
    """Arms of one record that were trained on the same pictures, from the same start."""

    claim: Claim
    record: dict[str, Any]
    arms: tuple[Arm, ...]

    @property
    def metric(self) -> str:
        return self.claim.metric

    @property
    def data(self) -> DataFile:
        return self.claim.data[self.arms[0].data]

    @property
    def pictures(self) -> int | None:
        """Number of training pictures, where the claim says it."""
        rows = self.data.rows
        return None if rows is None else rows[1] - rows[0]

    @property
    def domain(self) -> str:
        name = self.data.file.replace(":", "/").partition("/")[0]
        return DOMAINS.get(name, f"the data set {name}")

    @property
    def start(self) -> str:
        return start_of(self.arms[0])

    @property
    def minutes(self) -> float:
        """The longest mean over the seeds of an arm's training."""
        return max(self.record["arms"][arm.name]["minutes"]["mean"] for arm in self.arms)

    @property
    def size(self) -> str:
        return bucket(SIZES, self.pictures)

    @property
    def budget(self) -> str:
        return bucket(BUDGETS, self.minutes)

    def values(self, arm: Arm, metric: str) -> list[float]:
        """One value a seed."""
        return [float(run["metrics"][metric]) for run in self.record["runs"][arm.name]]

    def ranked(self) -> list[Arm]:
        sign = 1 if self.claim.direction == "higher" else -1
        return sorted(self.arms, key=lambda arm: -sign * self.record["arms"][arm.name][self.metric]["mean"])

    def choice(self) -> tuple[Arm, list[Arm]]:
        """The arm to take and those that the seeds do not tell apart from it: the one with the best mean, but the
        claim's control where none is clearly better than that."""
        first, *rest = self.ranked()
        top, direction = self.values(first, self.metric), self.claim.direction
        same = [a for a in rest if compared(top, self.values(a, self.metric), direction)["outcome"] != "shown"]
        control = next((arm for arm in same if arm.name == self.claim.control), None)
        return (first, same) if control is None else (control, [first, *(arm for arm in same if arm is not control)])

    def above_floor(self, arm: Arm) -> bool | None:
        """Whether an arm is clearly better than random features; None where they were not measured."""
        floor = floor_of(self.metric)
        if floor not in self.record["arms"][arm.name]:
            return None
        seen = compared(self.values(arm, self.metric), self.values(arm, floor), self.claim.direction)
        return seen["outcome"] == "shown"

    def advice(self) -> str:
        """The method to take, in few words."""
        arm, _ = self.choice()
        if self.above_floor(arm) is False:
            return "none: not clearly above random features"
        return label(arm) + (", the control: nothing is clearly better" if arm.name == self.claim.control else "")


def label(arm: Arm) -> str:
    """The arm, with the method and the settings that its name does not say."""
    told = [] if arm.name == arm.method else [escape(arm.method)]
    told += [f"{escape(key)}={str(value).lower()}" for key, value in arm.settings.items()]
    return f"`{arm.name}`" + (f" ({', '.join(told)})" if told else "")


def start_of(arm: Arm) -> str:
    if arm.start is not None:
        return STARTS[2]
    if "init" in arm.options:
        return STARTS[1] if not str(arm.options["init"]).startswith("runs/") else STARTS[2]
    return STARTS[0]


def situations(folder: Path = CLAIMS) -> list[Situation]:
    """All recorded ones; arms of a claim that differ in data or start are apart."""
    out = []
    for f in found(folder):
        claim, record = f["claim"], f["record"]
        if record is None:
            continue
        groups: dict[Any, list[Arm]] = {}
        for name in record["arms"]:
            if {claim.metric, "minutes"} <= record["arms"][name].keys() and name in claim.arms:
                arm = claim.arms[name]
                groups.setdefault((arm.data, start_of(arm)), []).append(arm)
        out += [Situation(claim, record, tuple(arms)) for arms in groups.values()]
    return out


# --- what the page shows ---------------------------------------------------------------------------------------------
def measured(folder: Path = CLAIMS) -> str:
    """One row a recorded situation: size, domain, start and budget -> method and what to expect."""
    known = situations(folder)
    if not known:
        return NOTHING
    head = ["pictures", "start from", "budget", "take", "not told apart from it", "expect", "record"]
    return table(head, [measured_row(s) for s in known])


def measured_row(s: Situation) -> list[str]:
    arm, same = s.choice()
    values = s.record["arms"][arm.name]
    floor = values.get(floor_of(s.metric))
    below = "floor not measured" if floor is None else f"floor {floor['mean']:.2f} %"
    return [
        escape(f"all of {s.data.file}, {s.domain}") if s.pictures is None else f"{s.pictures:,} {escape(s.domain)}",
        s.start,
        f"{s.minutes:.1f} minutes, {cores(s.record)}",
        s.advice(),
        ", ".join(map(label, same)) or "-",
        f"{metric_name(s.metric)} {cell(values[s.metric])} % ({below}; {seed_count(s.record)})",
        f"[{s.claim.name}](reproductions.md#{s.claim.name})",
    ]


def tables(folder: Path = CLAIMS) -> str:
    """Records that put methods side by side without a claim, best first."""
    parts = []
    for s in situations(folder):
        if "comparison" not in s.record:
            parts += [f"### {s.claim.name}", escape(s.claim.claim), *([escape(s.claim.note)] if s.claim.note else [])]
            parts.append(f"{setting(s.claim, s.arms[0])}; {seed_count(s.record)}.")
            parts += [arms_table(s.record, [arm.name for arm in s.ranked()], "method"), provenance(s.record)]
    waiting = [f["claim"] for f in found(folder) if f["record"] is None and not f["claim"].control]
    parts += [f"The table [{c.name}](reproductions.md#{c.name}) is not recorded yet." for c in waiting]
    return "\n\n".join(parts) or NOTHING


def missing(folder: Path = CLAIMS) -> str:
    """Two grids of what is recorded; the cells without a record say so."""
    known = situations(folder)
    sizes = [
        [size, *(figure(s for s in known if s.size == size and s.budget == budget) for budget in BUDGETS)]
        for size in SIZES
    ]
    seen = [s.domain for s in known]
    domains = [*dict.fromkeys([PHOTOGRAPHS, *seen]), *(name for name in OTHERS if name not in seen)]
    starts = [
        [escape(domain), *(figure(s for s in known if s.domain == domain and s.start == start) for start in STARTS)]
        for domain in domains
    ]
    return "\n\n".join([table(["size, and time of a run", *BUDGETS], sizes), table(["start from", *STARTS], starts)])


def figure(known: Iterable[Situation]) -> str:
    """A cell: what records advise, or that there is none."""
    told = [f"{s.advice()} ([{s.claim.name}](reproductions.md#{s.claim.name}))" for s in known]
    return "; ".join(dict.fromkeys(told)) or NO_FIGURE


def bucket(limits: Mapping[str, float | None], value: float | None) -> str:
    """The first of the named limits that holds a value; empty where it is not known."""
    if value is None:
        return ""
    return next(name for name, limit in limits.items() if limit is None or value <= limit)
