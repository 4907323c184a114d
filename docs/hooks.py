"""Pages and tables that are made from the source when the documentation is built: one page a method, option tables.

`<!-- options: pretrain -->` in a page becomes the table of that command's options.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from eyespot.cli import COMMANDS
from eyespot.declare import OptionField, option_fields
from eyespot.fields import REQUIRED
from eyespot.methods import catalog
from eyespot.methods.catalog import Entry
from eyespot.reproduce.claim import Claim
from eyespot.reproduce.outcome import cell, columns
from eyespot.reproduce.runner import recorded
from eyespot.terminal.pages import plain

CLAIMS = Path(__file__).parents[1] / "reproductions"


def on_config(config: Any) -> Any:
    """Put the method pages into the navigation, by modality."""
    groups: dict[str, list[Any]] = {}
    for entry in catalog.entries().values():
        groups.setdefault(entry.modality or "other", []).append({entry.name: page(entry)})
    methods: list[Any] = [{"All methods": "methods/index.md"}]
    methods += [{modality: pages} for modality, pages in sorted(groups.items())]
    config["nav"] = [{"Methods": methods} if "Methods" in item else item for item in config["nav"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    entries = list(catalog.entries().values())
    files.append(File.generated(config, "methods/index.md", content=overview(entries)))
    for entry in entries:
        files.append(File.generated(config, page(entry), content=method(entry)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = markdown.replace("<!-- claims -->", claims())
    return re.sub(r"<!-- options: (\w+) -->", lambda m: options(m.group(1)), markdown)


def claims() -> str:
    """One section a recorded claim: what is claimed, what came out, the arms, and the command."""
    return "\n\n".join(claim(f["claim"], f["record"]) for f in recorded(CLAIMS))


def claim(claim: Claim, record: Any) -> str:
    parts = [f"## {claim.name}", escape(claim.claim)]
    parts += [f"The paper's figures: {escape(claim.paper)}"] if claim.paper else []
    parts += [escape(claim.note)] if claim.note else []
    if record is None:
        return "\n\n".join([*parts, "Nothing is recorded yet."])
    if "comparison" in record:
        c = record["comparison"]
        parts.append(
            f"**{c['outcome'].capitalize()}**: `{c['arm']}` against `{c['control']}`, {c['metric']} "
            f"{c['difference']:+.2f} (standard error {c['standard_error']}, seeds {len(record['seeds'])})."
        )
    shown = columns(record)
    rows = [[f"`{arm}`", *(cell(values.get(n)) for n in shown)] for arm, values in record["arms"].items()]
    parts.append(table(["arm", *shown], rows))
    e = record["environment"]
    parts.append(
        f"Recorded {record['date']} with eyespot {e['eyespot']}, torch {e['torch']}, {e['cores']} cores "
        f"({e['machine']}): `{record['command']}`."
    )
    return "\n\n".join(parts)


def page(entry: Entry) -> str:
    return f"methods/{entry.name}.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def options(verb: str) -> str:
    command = COMMANDS[verb]
    shown = [o for o in option_fields(command.options) if not o.python_only]
    rows = [[f"`{o.flag}`", default(o), o.sentence] for o in shown]
    rows += [[f"`--{s.name}`", "", s.sentence] for s in command.switches]
    return table(["option", "default", "what it does"], rows)


def default(option: OptionField) -> str:
    if option.default is REQUIRED:
        return "required"
    if option.default is None:
        return option.none
    return "" if option.many or option.default == () else f"`{plain(option.default)}`"


def overview(entries: list[Entry]) -> str:
    rows = [
        [f"[{e.name}]({e.name}.md)", e.kind, e.modality, escape(e.paper), *(seen(v) for v in evidence(e))]
        for e in entries
    ]
    head = ["name", "kind", "modality", "paper", "golden numbers", "floor beaten", "claim"]
    return (
        "# Methods\n\n"
        "This list is read from the method files. The last three columns say what was run and recorded for a method: "
        "its computation against recorded numbers, its metric against random features over several seeds, and its "
        "paper's claim against a control. A dash means that nothing is recorded.\n\n" + table(head, rows) + "\n"
    )


def evidence(entry: Entry) -> list[Any]:
    return [entry.evidence.get(key) for key in ("golden", "floor_beaten", "claim")]


def seen(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def method(entry: Entry) -> str:
    verb = {"method": "pretrain", "adapt": "adapt", "plugin": "pretrain METHOD --with"}[entry.kind]
    run = " RUN" if entry.kind == "adapt" else ""
    parts = [
        f"# {entry.name}",
        escape(entry.paper),
        f"```\neyespot {verb} {entry.name}{run} --data photos/ --out runs/a\n```",
        "\n".join(escape_prose(line) for line in entry.doc.splitlines()),
        f"From the package {escape(entry.origin)}." if entry.origin else "",
        f"Sample fields: {', '.join(f'`{n}`' for n in entry.needs) or 'those of the host'}."
        + (f" Install: `pip install 'eyespot[{','.join(entry.extras)}]'`." if entry.extras else ""),
    ]
    if entry.fields:
        rows = [
            [f"`{f.name}`", f"`{f.annotation.replace(' | ', ' or ')}`", f"`{plain(f.default)}`", escape(f.sentence)]
            for f in entry.fields
        ]
        parts += ["## Arguments", table(["`--set`", "type", "default", "what it is"], rows)]
    if entry.recipe and entry.kind != "plugin":
        rows = [[f"`{key}`", f"`{plain(v)}`"] for key, v in entry.recipe.items() if key != "expected"]
        parts += ["## Recipe", table(["field", "value"], rows)]
        if entry.recipe.get("expected"):
            parts.append(f"Expected, by its source: {escape(str(entry.recipe['expected']).rstrip('.'))}.")
    heads = ("golden numbers", "floor beaten", "claim")
    rows = [[head, seen(value)] for head, value in zip(heads, evidence(entry), strict=True)]
    parts += ["## Evidence", table(["what was run", "outcome"], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def escape_prose(line: str) -> str:
    """Indented lines of a docstring are code and stay as they are."""
    return line if line.startswith("    ") else escape(line)
