"""Pages and tables that are made from the source when the documentation is built.

One page a system, and in the other pages: `<!-- options: pretrain -->`, the options of a command; `<!-- claims -->`,
the recorded claims; `<!-- measured -->`, `<!-- tables -->`, `<!-- missing -->`, which method for which data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import choosing
import recorded
import systems
from mkdocs.structure.files import File
from recorded import table

from eyespot.cli import COMMANDS
from eyespot.declare import OptionField, option_fields
from eyespot.fields import REQUIRED
from eyespot.methods import catalog
from eyespot.terminal.pages import plain

GENERATED: dict[str, Callable[[], str]] = {
    "claims": recorded.claims,
    "measured": choosing.measured,
    "tables": choosing.tables,
    "missing": choosing.missing,
}


def on_config(config: Any) -> Any:
    """Put the pages of systems into the navigation, by modality; adapters stand together."""
    groups: dict[str, list[Any]] = {}
    for entry in catalog.entries().values():
        group = "adapters" if entry.kind == "adapt" else entry.modality or "other"
        groups.setdefault(group, []).append({entry.name: systems.page(entry)})
    methods: list[Any] = [{"All methods": "methods/index.md"}]
    methods += [{group: pages} for group, pages in sorted(groups.items())]
    config["nav"] = [{"Methods": methods} if "Methods" in item else item for item in config["nav"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    entries = list(catalog.entries().values())
    files.append(File.generated(config, "methods/index.md", content=systems.overview(entries)))
    for entry in entries:
        files.append(File.generated(config, systems.page(entry), content=systems.system(entry, entries)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    for name, make in GENERATED.items():
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return re.sub(r"<!-- options: (\w+) -->", lambda m: options(m.group(1)), markdown)


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
