"""The table of `eyespot compare`, as text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from eyespot.terminal.pages import COLOURS, plain


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of `eyespot compare`: a row a run, a column for each way in which results were measured."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "method", "backbone", "verdict", "minutes", "images/s"):
        made.add_column(head, no_wrap=True, justify="right" if head in ("minutes", "images/s") else "left")
    columns = _columns(rows)
    for column in columns:
        made.add_column(_head(column), no_wrap=True, justify="right")
    for row in rows:
        found = {_column(r): r for r in row["results"]}
        made.add_row(
            str(row["run"]),
            str(row["method"] or "-"),
            str(row["backbone"] or "-"),
            Text(str(row["verdict"] or "-"), style=COLOURS.get(str(row["verdict"]), "")),
            "-" if row["minutes"] is None else f"{row['minutes']:.1f}",
            "-" if row["images_per_s"] is None else f"{row['images_per_s']:,.0f}",
            *(_cell(found.get(column)) for column in columns),
        )
    return made


Column = tuple[str, int, str, str]


def _column(result: Mapping[str, Any]) -> Column:
    """(protocol, version, group, metric): results in one column may be compared."""
    return result["protocol"], result["version"], result["group"], next(iter(result["metrics"]), "")


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Comparable ones first, in the order of the protocols; each once."""
    found = [r for row in rows for r in row["results"]]
    ordered = sorted(found, key=lambda r: not r["comparable"])
    names = list(dict.fromkeys(r["protocol"] for r in found))
    return sorted(dict.fromkeys(_column(r) for r in ordered), key=lambda c: names.index(c[0]))


def _head(column: Column) -> str:
    protocol, version, group, metric = column
    return rf"{protocol} v{version} {metric} \[{group}]"


def _cell(result: Mapping[str, Any] | None) -> str:
    """The metric, and in brackets its floor."""
    if result is None:
        return "-"
    metric, value = next(iter(result["metrics"].items()))
    floor = (result["floor"] or {}).get(metric)
    text = f"{value:.2f}" + ("" if floor is None else f" ({floor:.2f})")
    return text if result["comparable"] else text + " *"


def notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the letters and marks of the table mean, and which runs have no results."""
    lines = ["percent (an effective rank is a number), in brackets that of random weights"]
    described: dict[str, str] = {}
    for r in (r for row in rows for r in row["results"]):
        sides = f"{r['data']} -> {r['test_data'] or 'a held-out part'}"
        settings = "".join(f", {k} {plain(v)}" for k, v in r["settings"].items())
        described.setdefault(
            r["group"], f"[{r['group']}] {r['name']}: {sides} ({r['n_train']:,} / {r['n_test']:,} samples{settings})"
        )
    lines += [described[group] for group in sorted(described, key=lambda g: (len(g), g))]
    strange = {str(row["run"]) for row in rows for r in row["results"] if not r["comparable"]}
    if strange:
        where = ", ".join(sorted(strange))
        lines.append(f"* not comparable with what most runs share: other samples, version or settings ({where})")
    empty = [str(row["run"]) for row in rows if not row["results"]]
    if empty:
        lines.append(f"no results in {', '.join(empty)}: eyespot evaluate RUN --data LABELED, or add --data here")
    return "\n".join(lines)
