"""A claim: what is compared, on which data, over which seeds, by which metric. One TOML file each, in reproductions/.

claim = "one sentence"                 what the paper says, as it is tested here
paper = "+2.6 points on CIFAR-10"      the paper's own figures
subject = "core_tuning"                the method whose claim it is
arm = "full"; control = "plain"        which arm should beat which; without them the file is a table
metric = "accuracy.top1"               also "knn.top1", "linear.top1": protocol.metric; "train.NAME": what was watched
direction = "higher"                   or "lower"
seeds = [0, 1, 2]
protocols = ["knn", "linear"]          what is evaluated after pre-training

[data]                                 files under the data folder; rows cut a Parquet file
train = {file = "cifar10/train.parquet", rows = [0, 10000]}
scenes = {file = "cifar10/train.parquet", make = "mosaic"}    built-in data made of a file
flowers = {file = "flowers17/flowers17.parquet", split = "train"}    the rows of a split

[common]                               options of every arm, by their names on the command line
backbone = "resnet8"

[stages.base]                          runs that arms start from, made once a seed
pretrain = "simclr"

[arms.full]
adapt = "core_tuning"
start = "base"
data = "labelled"
set = {eta = 0.1}
protocols = ["slots"]                  beside those of the claim, for this arm alone

[arms.more]
pretrain = "simclr"
with = ["hallucinator"]                plug-ins; their arguments are set as on the command line
set = {"hallucinator.ratio" = 0.2}
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyespot.errors import UserError, unknown

KEYS = ("claim", "paper", "subject", "arm", "control", "metric", "direction", "seeds", "protocols", "data", "common")
KEYS = (*KEYS, "stages", "arms", "note")
FLOOR = "floor"
MAKERS = ("mosaic", "glyphs")
"""Built-in data that are made of other data, by the name before the colon."""
OWN = ("pretrain", "adapt", "start", "data", "test", "set", "with", "protocols")
"""Keys of an arm that are not plain options."""


@dataclass(frozen=True)
class DataFile:
    """One data set of a claim: a path below the data folder (or a name such as scenes:train), some of its rows, what is
    made of it ("" for nothing), and its split ("" for the usual one)."""

    file: str
    rows: tuple[int, int] | None = None
    make: str = ""
    split: str = ""

    @property
    def built_in(self) -> bool:
        return ":" in self.file


@dataclass(frozen=True)
class Arm:
    """One thing that is trained, or a stage that arms start from."""

    name: str
    command: str
    """pretrain or adapt."""
    method: str
    start: str | None
    data: str
    test: str
    settings: Mapping[str, Any]
    plugins: tuple[str, ...]
    options: Mapping[str, Any]
    protocols: tuple[str, ...] = ()
    """Evaluated beside those of the claim."""


@dataclass(frozen=True)
class Claim:
    """See the head of this file."""

    name: str
    claim: str
    paper: str
    subject: str
    arm: str
    control: str
    metric: str
    direction: str
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]
    data: Mapping[str, DataFile]
    stages: Mapping[str, Arm]
    arms: Mapping[str, Arm]
    note: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The file as it was read, for the record."""


def claim_names(folder: Path) -> list[str]:
    """The claims in a folder, in alphabetical order."""
    return sorted(p.stem for p in folder.glob("*.toml"))


def read_claim(folder: Path, name: str) -> Claim:
    """The claim `name` of a folder.

    Raises:
        UserError: there is no such claim, or its file does not say what it must.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        raise unknown("claim", name, claim_names(folder))
    try:
        return parse_claim(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"'{path}' is not valid TOML ({error}); mend it.") from error


def parse_claim(name: str, raw: Mapping[str, Any]) -> Claim:
    """A claim from the contents of its file."""
    for key in raw:
        if key not in KEYS:
            raise unknown(f"key of the claim {name}", key, KEYS)
    missing = [k for k in ("claim", "metric", "seeds", "data", "arms") if not raw.get(k)]
    if missing:
        raise UserError(f"The claim {name} does not say '{missing[0]}'; add it to its file.")
    common = dict(raw.get("common", {}))
    data = {key: _data(value) for key, value in raw["data"].items()}
    stages = {key: _arm(key, value, common, data) for key, value in raw.get("stages", {}).items()}
    arms = {key: _arm(key, value, common, data) for key, value in raw["arms"].items()}
    for arm in arms.values():
        if arm.start is not None and arm.start not in stages:
            raise unknown(f"stage that the arm {arm.name} starts from", arm.start, list(stages))
    for key in ("arm", "control"):
        if raw.get(key) and raw[key] not in arms and not (key == "control" and raw[key] == FLOOR):
            raise unknown(f"{key} of the claim {name}", raw[key], list(arms))
    if raw.get("direction", "higher") not in ("higher", "lower"):
        raise UserError(f"The claim {name} has direction '{raw['direction']}'; it is higher or lower.")
    return Claim(
        name=name,
        claim=raw["claim"],
        paper=raw.get("paper", ""),
        subject=raw.get("subject", ""),
        arm=raw.get("arm", ""),
        control=raw.get("control", ""),
        metric=raw["metric"],
        direction=raw.get("direction", "higher"),
        seeds=tuple(raw["seeds"]),
        protocols=tuple(raw.get("protocols", ("knn", "linear"))),
        data=data,
        stages=stages,
        arms=arms,
        note=raw.get("note", ""),
        source=dict(raw),
    )


def _data(value: Any) -> DataFile:
    if isinstance(value, str):
        return DataFile(value)
    rows, make = value.get("rows"), value.get("make", "")
    if make and make not in MAKERS:
        raise unknown("maker of data", make, MAKERS)
    cut = None if rows is None else (int(rows[0]), int(rows[1]))
    return DataFile(value["file"], cut, make, value.get("split", ""))


def _arm(name: str, raw: Mapping[str, Any], common: Mapping[str, Any], data: Mapping[str, DataFile]) -> Arm:
    commands = [c for c in ("pretrain", "adapt") if c in raw]
    if len(commands) != 1:
        raise UserError(f"The arm {name} must say what it runs: pretrain = METHOD or adapt = METHOD.")
    command = commands[0]
    if command == "adapt" and not raw.get("start"):
        raise UserError(f"The arm {name} adapts, so it must name the stage it starts from: start = STAGE.")
    used = {"data": raw.get("data", "train"), "test": raw.get("test", "test")}
    for value in used.values():
        if value not in data:
            raise unknown(f"data set of the arm {name}", value, list(data))
    own = {k: v for k, v in raw.items() if k not in OWN}
    # an adapter starts from a run, whose network and size it keeps
    shared = {k: v for k, v in common.items() if command == "pretrain" or k == "workers"}
    return Arm(
        name=name,
        command=command,
        method=raw[command],
        start=raw.get("start"),
        data=used["data"],
        test=used["test"],
        settings=dict(raw.get("set", {})),
        plugins=(raw["with"],) if isinstance(raw.get("with"), str) else tuple(raw.get("with", ())),
        options=shared | own,
        protocols=tuple(raw.get("protocols", ())),
    )
