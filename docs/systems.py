"""One page a system (methods, adapters, plug-ins, also those that other packages install), and the list of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recorded import CLAIMS, escape, of_system, table

from eyespot.methods.catalog import Entry
from eyespot.terminal.pages import plain

EVIDENCE = {"golden": "golden numbers", "floor_beaten": "floor beaten", "claim": "claim"}
DIFFERENCES = "Paper and code:"
"""What begins the paragraph of a docstring on what differs from the paper and from its authors' code."""

OVERVIEW = """# Methods

This list is read from the method files. The last three columns say what was run and recorded for a method: its
computation against recorded numbers, its metric against random features over several seeds, and its paper's claim
against a control. A dash means that nothing is recorded. [Which method for my data](../which-method.md) puts the
recorded numbers side by side.

"""
COMMON = """

## What differs from the authors' code in every method

- Negatives, centres, queues, assignments and batch norm see the batch of all processes, so that the result does not
  depend on their number. Code that counts within one device computes something else on several.
- Colours are jittered by one matrix a picture, with hue as a rotation; `--set color=exact` takes torchvision's
  operations one after the other. Pictures that are not RGB get brightness and contrast only.
- Small pictures (up to 64 px) are not blurred, unless `--set blur=...` says so.
- The recipes are for small nets on one machine. What the source of a method trained with, and reached by it, stands on
  its page as *expected, by its source*: nobody has recorded that with this library.
"""


def page(entry: Entry) -> str:
    return f"methods/{entry.name}.md"


def overview(entries: Sequence[Entry]) -> str:
    rows = [
        [f"[{e.name}]({e.name}.md)", f"{e.modality} {e.kind}", escape(e.paper), *(seen(v) for v in evidence(e))]
        for e in entries
    ]
    return OVERVIEW + table(["name", "kind", "paper", *EVIDENCE.values()], rows) + COMMON


def evidence(entry: Entry) -> list[Any]:
    return [entry.evidence.get(key) for key in EVIDENCE]


def seen(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def system(entry: Entry, entries: Sequence[Entry], folder: Path = CLAIMS) -> str:
    """The page of one system."""
    idea, differences = split_doc(entry.doc)
    parts = [f"# {entry.name}", escape(entry.paper), f"```\n{example(entry, entries)}\n```", prose(idea)]
    parts += ["## What differs from the paper and its code", prose(differences)] if differences else []
    parts += ["## Recorded numbers", of_system(entry.name, folder)]
    heads = table(["what was run", "outcome"], zip(EVIDENCE.values(), map(seen, evidence(entry)), strict=True))
    parts += ["## Evidence", heads, "## Data and plug-ins", data_and_plugins(entry, entries)]
    if entry.fields:
        rows = [
            [
                f"`{entry.prefix}{f.name}`",
                f"`{f.annotation.replace(' | ', ' or ')}`",
                f"`{plain(f.default)}`",
                escape(f.sentence),
            ]
            for f in entry.fields
        ]
        parts += ["## Arguments", table(["`--set`", "type", "default", "what it is"], rows)]
    if entry.recipe and entry.kind != "plugin":
        rows = [[f"`{key}`", f"`{plain(v)}`"] for key, v in entry.recipe.items() if key != "expected"]
        parts += ["## Recipe", table(["field", "value"], rows)]
        if entry.recipe.get("expected"):
            parts.append(f"Expected, by its source: {escape(str(entry.recipe['expected']).rstrip('.'))}.")
    return "\n\n".join(parts) + "\n"


def split_doc(doc: str) -> tuple[str, str]:
    """The docstring without the paragraph on paper and code, and that paragraph."""
    paragraphs = doc.split("\n\n")
    differs = [p for p in paragraphs if p.startswith(DIFFERENCES)]
    text = " ".join(differs)[len(DIFFERENCES) :].strip()
    rest = "\n\n".join(p for p in paragraphs if p not in differs)
    return rest, text[:1].upper() + text[1:]


def example(entry: Entry, entries: Iterable[Entry]) -> str:
    """A command that runs the system."""
    data = "labeled/" if "label" in entry.needs else "photos/"
    if entry.kind == "adapt":
        return f"eyespot adapt {entry.name} runs/a --data labeled/ --out runs/b"
    if entry.kind == "plugin":
        host = next(iter(hosts(entry, entries)), "METHOD")
        return f"eyespot pretrain {host} --with {entry.name} --data photos/ --out runs/a"
    return f"eyespot pretrain {entry.name} --data {data} --out runs/a"


def hosts(plugin: Entry, entries: Iterable[Entry]) -> list[str]:
    """The methods that accept what a plug-in adds; simclr first."""
    fit = [e.name for e in entries if e.kind == "method" and set(plugin.adds) <= set(e.accepts)]
    return sorted(fit, key=lambda name: name != "simclr")


def data_and_plugins(entry: Entry, entries: Sequence[Entry]) -> str:
    lines = [f"Sample fields: {', '.join(f'`{n}`' for n in entry.needs) or 'those of the host'}."]
    if entry.origin:
        lines.append(f"From the package {escape(entry.origin)}.")
    if entry.extras:
        lines.append(f"Install: `pip install 'eyespot[{','.join(entry.extras)}]'`.")
    if entry.kind == "plugin":
        fit = ", ".join(f"[{name}]({name}.md)" for name in hosts(entry, entries))
        lines.append(f"Adds {', '.join(entry.adds) or 'nothing'}; fits {fit or 'no method here'}.")
    elif entry.accepts:
        plugins = [e.name for e in entries if e.kind == "plugin" and entry.name in hosts(e, entries)]
        known = ", ".join(f"[{name}]({name}.md)" for name in plugins) or "none is installed"
        lines.append(f"Plug-ins (`--with NAME`) may add {', '.join(entry.accepts)}: {known}.")
    else:
        lines.append("It takes no plug-ins.")
    lines.append(f"Code: `{entry.target.replace(':', '`, class `')}`.")
    return "\n".join(f"- {line}" for line in lines)


def prose(text: str) -> str:
    """Indented lines of a docstring are code, and backquoted words too: they stay as they are."""
    lines = []
    for line in text.splitlines():
        pieces = line.split("`")
        escaped = [escape(piece) if i % 2 == 0 else piece for i, piece in enumerate(pieces)]
        lines.append(line if line.startswith("    ") else "`".join(escaped))
    return "\n".join(lines)
