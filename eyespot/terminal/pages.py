"""Tables and pages of the command line, as text for a terminal or a pipe."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eyespot.evaluate.records import PLAIN, metrics_of

if TYPE_CHECKING:
    from eyespot.methods.catalog import Entry

COLOURS = {"learning": "green", "stalled": "yellow", "unstable": "yellow", "collapsed": "red"}

WIDE = 10_000


def console() -> Console:
    """Standard output; in a pipe lines are not wrapped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def main_page(verbs: Mapping[str, str]) -> str:
    """The page of `eyespot --help`."""
    width = max(len(v) for v in verbs)
    rows = "\n".join(f"  {verb:<{width}}  {sentence}" for verb, sentence in verbs.items())
    return (
        "usage: eyespot COMMAND ...\n\n"
        "Learn to see without labels: from a path to features, in one command.\n\n"
        f"{rows}\n\n"
        "  eyespot COMMAND --help            the options of a command\n"
        "  eyespot pretrain METHOD --help    a method: its paper, arguments and recipe\n"
        "  --debug                           show the traceback of an error\n"
        "  --version                         print the version\n"
    )


def method_list(entries: Iterable[Entry]) -> Table:
    """The table of `eyespot methods`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "kind", "modality", "golden", "floor beaten", "claim"):
        table.add_column(head, no_wrap=True)
    table.add_column("paper")
    for e in entries:
        seen = [_evidence(e.evidence.get(key)) for key in ("golden", "floor_beaten", "claim")]
        table.add_row(e.name, e.kind, e.modality, *seen, Text(e.paper))
    return table


def _evidence(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def method_page(entry: Entry) -> str:
    """Paper, idea, arguments and recipe of one method."""
    parts = [entry.paper, textwrap.dedent(entry.doc), _use(entry)]
    if entry.origin:
        parts[-1] += f"\nfrom the package: {entry.origin}"
    if entry.extras:
        parts[-1] += f"\ninstall: pip install 'eyespot[{','.join(entry.extras)}]'"
    parts.append(_arguments(entry))
    parts.append(_recipe(entry))
    return "\n\n".join(part for part in parts if part)


def _use(entry: Entry) -> str:
    if entry.kind != "plugin":
        return f"needs: {', '.join(entry.needs) or '-'}"
    from eyespot.methods import catalog

    return f"use: eyespot pretrain METHOD --with {entry.name}\nwith: {', '.join(catalog.hosts(entry)) or '-'}"


def _arguments(entry: Entry) -> str:
    if not entry.fields:
        return ""
    rows = []
    for f in entry.fields:
        rows.append(f"  --set {entry.prefix}{f.name}={plain(f.default)}  ({f.annotation})")
        rows.extend(textwrap.wrap(f.sentence, 100, initial_indent="      ", subsequent_indent="      "))
    return "arguments:\n" + "\n".join(rows)


def _recipe(entry: Entry) -> str:
    if not entry.recipe:
        return ""
    shown = {k: v for k, v in entry.recipe.items() if k in entry.own_recipe or k in RECIPE}
    words = ", ".join(f"{k} {plain(v)}" for k, v in shown.items() if k != "expected")
    text = textwrap.fill(words, 100, initial_indent="  ", subsequent_indent="  ")
    expected = entry.recipe.get("expected")
    return f"recipe:\n{text}" + (f"\n  expected: {expected}" if expected else "")


RECIPE = ("optimizer", "lr", "lr_rule", "lr_batch", "weight_decay", "batch_size", "epochs", "backbone", "image_size")
"""What is shown of every recipe, stated by the method or not."""


def plain(value: Any) -> str:
    """A literal as --set takes it."""
    if isinstance(value, tuple | list):
        return ",".join(plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def verdict(record: Mapping[str, Any]) -> Text:
    """State, reason and remedy of a run."""
    state = str(record.get("state", "no verdict"))
    text = Text(state, style=COLOURS.get(state, ""))
    text.append(f": {record['reason']}" if record.get("reason") else "", style="default")
    if record.get("remedy"):
        text.append(f"\nremedy: {record['remedy']}", style="default")
    return text


def next_commands(run: Path, data: Any, bad: int) -> str:
    """Where the run is, and what can be done with it."""
    where, source = shlex.quote(str(run)), shlex.quote(str(data))
    rows = [
        f"run      {run}",
        f"next     eyespot evaluate {where} --data LABELED_FOLDER",
        f"         eyespot embed {where} --data {source} --out {shlex.quote(str(run / 'embeddings.parquet'))}",
    ]
    if bad:
        files = "file" if bad == 1 else "files"
        rows.insert(1, f"skipped  {bad} unreadable {files}, listed in {run / 'bad_files.txt'}")
    return "\n".join(rows)


def evaluation(results: Iterable[Mapping[str, Any]]) -> Table:
    """Protocol, features and the random floor beside them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("protocol", "metric", "features", "random floor", "train", "test", "classes", "time"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("protocol", "metric") else "right")
    for r in results:
        metrics, floor = metrics_of(r), r.get("floor") or {}
        for metric in (m for m in metrics if not m.endswith(SPREAD)):
            table.add_row(
                f"{r['protocol']} v{r['version']}",
                metric,
                _value(metrics, metric),
                _value(floor, metric),
                *(f"{r[key]:,}" for key in ("n_train", "n_test", "classes")),
                duration(r["seconds"]),
            )
    return table


def exported(done: Mapping[str, Any]) -> str:
    """What was written, how it compares, and the Python that loads it."""
    size = f"{done['bytes'] / 1e6:.1f} MB" if done["bytes"] >= 1e5 else f"{done['bytes'] / 1e3:.1f} kB"
    shape = f"{done['channels']} x {done['image_size']} x {done['image_size']} pixels"
    rows = [
        f"written   {done['out']} ({size}): {done['backbone']}, {shape} to {done['embed_dim']} features",
        f"read by   {done['reader']}: {done['matched']} of {done['tensors']} tensors equal",
        f"features  differ by {done['largest_difference']:.2g} at most, the largest is {done['largest_feature']:.3g} "
        f"(random pixels, {', '.join(done['compared'])})",
    ]
    if done["dynamic"]:
        rows.append(f"open      {', '.join(done['dynamic'])}")
    rows += [f"note      {note}" for note in done["notes"]]
    return "\n".join([*rows, "", textwrap.indent(done["usage"], "    ")])


def estimate(found: Mapping[str, Any]) -> Table:
    """What a run will take."""
    minutes = f"{duration(found['minutes'] * 60)}" + (", and the preparation before it" if found["prepares"] else "")
    rows = {
        "time": f"{minutes}: {found['steps']:,} steps of {found['seconds_per_step']:.3f} s",
        "speed": f"{found['images_per_s']:,.0f} images/s, batch {found['batch_size']}, {found['device']}",
        "memory": f"{found['memory_mb']:,} MB at most ({found['memory_of']})",
        "disk": f"{found['disk_mb']:,} MB of {found['disk_free_mb']:,} MB that are free",
        "trained": f"{found['parameters']:,} parameters",
    }
    if found["disk_mb"] > found["disk_free_mb"]:
        rows["disk"] += ": too little, give --out on another disk"
    return _pairs(rows)


def doctor(found: Mapping[str, Any]) -> Table:
    """What the installation and the machine have."""
    threads = found["threads"]
    rows = {name: value or "not installed" for name, value in found["versions"].items()}
    rows |= {"platform": found["platform"], "devices": ", ".join(found["devices"]) or "none"}
    rows["cores"] = f"{threads['usable_cores']} of {threads['cores']}, torch uses {threads['torch']}"
    for key, name in (("disk_free_mb", "disk"), ("memory_free_mb", "memory"), ("shared_memory_free_mb", "/dev/shm")):
        rows[name] = "unknown" if found[key] is None else f"{found[key]:,} MB free"
    for extra, missing in found["extras"].items():
        rows[f"[{extra}]"] = f"missing {', '.join(missing)}: pip install 'eyespot[{extra}]'" if missing else "complete"
    rows |= {f"advice {i + 1}": sentence for i, sentence in enumerate(found["advice"])}
    return _pairs(rows)


def _pairs(rows: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def claim_list(found: Iterable[Mapping[str, Any]]) -> Table:
    """Claims, and what was recorded of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("claim", "outcome", "difference", "recorded"):
        table.add_column(head, no_wrap=True)
    table.add_column("what is claimed")
    for f in found:
        record = f["record"] or {}
        seen = record.get("comparison", {})
        outcome = seen.get("outcome", "table" if record else "-")
        table.add_row(f["claim"].name, outcome, _difference(seen), record.get("date", "-"), Text(f["claim"].claim))
    return table


def _difference(comparison: Mapping[str, Any]) -> str:
    if not comparison:
        return "-"
    error = comparison["standard_error"]
    return f"{comparison['difference']:+.2f}" + ("" if error is None else f" (error {error:.2f})")


def claim(record: Mapping[str, Any]) -> Table:
    """The arms of one recorded claim: mean and spread over the seeds of every metric."""
    from eyespot.reproduce.outcome import cell, columns

    names = columns(record)
    compared = record.get("comparison")
    title = None
    if compared:
        title = (
            f"{compared['outcome']}: {compared['arm']} against {compared['control']}, {compared['metric']} "
            f"{_difference(compared)}"
        )
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for head in ("arm", *names):
        table.add_column(head, no_wrap=True, justify="left" if head == "arm" else "right")
    for arm, values in record["arms"].items():
        table.add_row(arm, *(cell(values.get(n)) for n in names))
    return table


SPREAD = "_std"
"""What the name of a metric's standard deviation ends with."""


def _value(values: Mapping[str, Any], metric: str) -> str:
    """12.34 %, or 12.34 ± 0.56 % where the deviation over draws is known; 12.340 for a plain number."""
    value, spread = values.get(metric), values.get(metric + SPREAD)
    if not isinstance(value, int | float):
        return "-"
    if metric in PLAIN:
        return f"{value:.3f}"
    return f"{value:.2f} %" if spread is None else f"{value:.2f} ± {spread:.2f} %"


def duration(seconds: float) -> str:
    """95 -> 1:35, 4000 -> 1:06:40."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
