"""`eyespot.compare`: runs beside each other, with every result that is kept in them.

Results may be compared where protocol, version, samples and settings agree; each such group has a column. Of a protocol
that was measured in several ways, the way that most runs share is the comparable one, and other results are marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eyespot.declare import build
from eyespot.errors import UserError
from eyespot.evaluate import records
from eyespot.evaluate.records import Record
from eyespot.options import PROTOCOLS, CompareOptions
from eyespot.runs import Run

USUAL = ("knn", "linear")
"""What is measured when data is given and no protocol."""


def compare(runs: Any, **options: Any) -> list[dict[str, Any]]:
    """One row a run, the best first by the first protocol that has results.

    Args:
        runs: run folders or runs.
        options: the options of `eyespot compare`, with their defaults, in `eyespot.options.CompareOptions`. With `data`
            what a run lacks on it is measured first, and kept in the run.

    Returns:
        [{"run", "method", "backbone", "verdict", "minutes", "images_per_s", "results": [...]}] with results
        {"protocol", "version", "metrics", "floor", "name", "data", "test_data", "n_train", "n_test", "classes",
        "settings", "group", "comparable", "date"}. Results with equal protocol, version and group may be compared;
        `comparable` is false for those outside the group that most runs share.

    Raises:
        UserError: a folder holds no run, or there are no results at all.
    """
    o = build(CompareOptions, runs, **options)
    opened = _opened(o.folders)
    if o.data is not None:
        _measure_missing(opened, o)
    kept = [_latest(run, o.protocols) for run in opened]
    if not any(kept):
        what = f"results of {' or '.join(o.protocols)}" if o.protocols else "results"
        raise UserError(
            f"There are no {what} in {_listed(opened)}; run eyespot evaluate on each run, or give --data with labelled "
            "pictures to measure them now."
        )
    groups = _groups(kept)
    main = _main(kept)
    rows = [_row(run, found, groups, main) for run, found in zip(opened, kept, strict=True)]
    return sorted(rows, key=_order(rows))


def _listed(runs: Sequence[Run]) -> str:
    names = ", ".join(f"'{run.path}'" for run in runs[:3])
    return names + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")


def _opened(folders: Sequence[Any]) -> list[Run]:
    """The runs, each once; a folder of runs is told how to be given."""
    found: dict[Path, Run] = {}
    for folder in folders:
        run = folder if isinstance(folder, Run) else _open(folder)
        found.setdefault(run.path.absolute(), run)
    return list(found.values())


def _open(folder: Any) -> Run:
    path = Path(getattr(folder, "path", folder)).expanduser()
    inside = sorted(p.parent.name for p in path.glob("*/config.json")) if path.is_dir() else []
    if inside and not (path / "config.json").exists():
        raise UserError(f"'{path}' holds no run but runs ({', '.join(inside[:3])}, ...); give {path}/*.")
    if not path.exists():
        raise UserError(f"There is no run '{path}'; give the --out folder of a pretrain.")
    return Run(path)


def _latest(run: Run, wanted: Sequence[str]) -> list[Record]:
    """The results kept in a run, the latest of each kind, in the order of the protocols."""
    latest = {r.key: r for r in records.read(run.path) if not wanted or r.result["protocol"] in wanted}
    return sorted(latest.values(), key=lambda r: (_rank(r.result["protocol"]), str(r.key)))


def _rank(protocol: str) -> tuple[int, str]:
    return (PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS), protocol)


def _measure_missing(runs: Sequence[Run], o: CompareOptions) -> None:
    """Evaluate what a run lacks on the data given; all that one run lacks in one pass."""
    from eyespot.evaluate import protocols
    from eyespot.evaluate.evaluate import evaluate

    wanted = o.protocols or USUAL
    columns = ("image_column", "label_column", "mask_column", "ignore")
    passed = {k: getattr(o, k) for k in ("split", "channels", "workers", "max_bad", "seed", "device", *columns)}
    samples = {name: _samples(name, o) for name in wanted}
    for run in runs:
        kept = {r.key[:3] for r in records.read(run.path)}
        missing = [name for name in wanted if (name, protocols.ALL[name].VERSION, samples[name]) not in kept]
        if missing:
            evaluate(run, data=o.data, test_data=o.test_data, protocol=missing, **passed)


def _samples(protocol: str, o: CompareOptions) -> str:
    """What identifies the samples that a protocol would be measured on, as its results say it."""
    from eyespot.data.masks import open_masked
    from eyespot.data.sources import open_source
    from eyespot.evaluate import masked, protocols, representation, samples

    sides = [(o.data, o.split), *([] if o.test_data is None else [(o.test_data, None)])]
    if protocol in protocols.MASKED:
        names = {"image_column": o.image_column, "mask_column": o.mask_column}
        opened = [open_masked(data, split=split, **names) for data, split in sides]
        return masked.data_id(opened[0], opened[1] if len(opened) > 1 else None, o)
    columns = {"image_column": o.image_column, "label_column": o.label_column}
    if protocol in protocols.UNLABELLED:
        data, split = sides[-1]
        return representation.data_id(open_source(data, split=split, **columns), o.seed)
    sources = [open_source(data, split=split, **columns) for data, split in sides]
    return samples.data_id(sources[0], sources[1] if len(sources) > 1 else None, o.seed)


# --- rows -----------------------------------------------------------------------------------------------------
def _row(run: Run, kept: Sequence[Record], groups: Mapping[Any, str], main: Mapping[str, Any]) -> dict[str, Any]:
    minutes, rate = _speed(run)
    return {
        "run": str(run.path),
        "method": "+".join([run.config["method"], *run.config.get("plugins", [])]) if "method" in run.config else None,
        "backbone": (run.config.get("backbone") or {}).get("name"),
        "verdict": run.verdict.get("state"),
        "minutes": minutes,
        "images_per_s": rate,
        "results": [_result(r, groups[r.key], main[r.result["protocol"]] == r.key) for r in kept],
    }


def _result(record: Record, group: str, comparable: bool) -> dict[str, Any]:
    result = record.result
    config = result["config"]
    about = {k: result[k] for k in ("n_train", "n_test", "classes")}
    return {
        "protocol": result["protocol"],
        "version": result["version"],
        "metrics": records.metrics_of(result),
        "floor": result["floor"],
        "name": records.data_name(config),
        "data": config.get("data"),
        "test_data": config.get("test_data"),
        **about,
        "settings": dict(record.settings),
        "group": group,
        "comparable": comparable,
        "date": record.date,
    }


def _speed(run: Run) -> tuple[float | None, float | None]:
    """Minutes of training and images a second, by the log."""
    batch = (run.config.get("plan") or {}).get("batch_size")
    seconds, images, before = 0.0, 0, 0
    for record in run.metrics:
        rate, step = record.get("images_per_s"), record.get("step", before)
        if batch and rate and step > before:
            images += (step - before) * batch
            seconds += (step - before) * batch / rate
            before = step
    if not seconds:
        return None, None
    return round(seconds / 60, 2), round(images / seconds, 1)


def _groups(kept: Sequence[Sequence[Record]]) -> dict[Any, str]:
    """A letter for each (samples, settings) in the order in which they are met."""
    letters: dict[Any, str] = {}
    found: dict[Any, str] = {}
    for record in (r for records_of in kept for r in records_of):
        place = record.key[2:]
        letters.setdefault(place, _letter(len(letters)))
        found[record.key] = letters[place]
    return found


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    head = _letter(number // 26 - 1) if number >= 26 else ""
    return head + chr(ord("A") + number % 26)


def _main(kept: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """For each protocol the key that most runs share; of equally many the first met."""
    counts: dict[str, Counter[Any]] = {}
    for record in (r for records_of in kept for r in records_of):
        counts.setdefault(record.result["protocol"], Counter())[record.key] += 1
    return {protocol: counter.most_common(1)[0][0] for protocol, counter in counts.items()}


def _order(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Best first by the comparable result of the first protocol; runs without it last, by name."""
    first = min((r["protocol"] for row in rows for r in row["results"]), key=_rank)

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        best = [v for r in row["results"] if r["protocol"] == first and r["comparable"] for v in _headline(r)]
        return (-best[0] if best else float("inf"), row["run"])

    return key


def _headline(result: Mapping[str, Any]) -> Iterator[float]:
    """The metric that stands for a result: its first."""
    yield from list(result["metrics"].values())[:1]
