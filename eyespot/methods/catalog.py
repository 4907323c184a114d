"""What methods exist and what they say about themselves, read from their files without importing them or torch.

One paper is one file: `eyespot/methods/<modality>/<slug>.py` or `eyespot/adapt/<slug>.py` (a survey or toolbox is a
folder with one file a system). Its docstring, base class, argument dataclass and recipe are read by `ast`; only `load`
imports it. Installed third-party methods are found through the entry-point group `eyespot.methods`; what another
package offers there and cannot be used is told by `problems`, and is in nobody's way.

    >>> entries()["simclr"].paper
    >>> load("simclr")          # the class
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eyespot.errors import MissingExtra, UserError, unknown
from eyespot.methods import source
from eyespot.methods.entry import PACKAGE, Entry, evidence, read_entry

GROUP = "eyespot.methods"
IMPORT_FAILS = (
    *(ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, LookupError, AssertionError),
    *(ArithmeticError, OSError, RuntimeError, SystemExit),
)
"""What the import of somebody else's package raises."""
COMMANDS = {"method": "pretrain", "adapt": "adapt", "plugin": "pretrain METHOD --with"}


def entries() -> dict[str, Entry]:
    """All methods by name: those of this package, then installed ones whose names are not taken."""
    own = {entry.name: entry for entry in _own()}
    return dict(sorted((_installed(own)[0] | own).items()))


def problems(load_all: bool = False) -> list[str]:
    """One sentence for every method of another package that cannot be used.

    Args:
        load_all: also import those that look well.
    """
    found, wrong = _installed({entry.name: entry for entry in _own()})
    told = list(wrong.values())
    for name in found if load_all else ():
        try:
            load(name)
        except UserError as error:
            told.append(str(error))
    return told


def methods(name: str | None = None) -> Any:
    """`eyespot.methods()`: all entries by name; `eyespot.methods("simclr")`: one entry."""
    return entries() if name is None else find(name)


def find(name: str, kind: str | None = None) -> Entry:
    """One method by name ('core-tuning' is 'core_tuning').

    Args:
        kind: method, adapt or plugin where only one kind fits.

    Raises:
        UserError: with the nearest names, or with the command that takes this kind.
    """
    slug = slug_of(str(name))
    known = {entry.name: entry for entry in _own(slug)} if slug.isidentifier() else {}
    known = known or entries()
    if slug not in known:
        wrong = _installed(known)[1]
        if slug in wrong:
            raise UserError(wrong[slug])
        raise unknown("plug-in" if kind == "plugin" else "method", name, _fitting(known, kind))
    entry = known[slug]
    if kind is not None and entry.kind != kind:
        word = {"method": "a method", "adapt": "an adapter", "plugin": "a plug-in"}[entry.kind]
        raise UserError(f"'{slug}' is {word}: use it with eyespot {COMMANDS[entry.kind]} {slug}.")
    return entry


def in_full(entry: Entry) -> dict[str, Any]:
    """The record of `eyespot methods NAME --json`: that of the list, with needs, arguments and recipe."""
    arguments = {f.name: {"type": f.annotation, "default": f.default, "sentence": f.sentence} for f in entry.fields}
    fitting = {"hosts": hosts(entry)} if entry.kind == "plugin" else {"accepts": list(entry.accepts)}
    return entry.json() | {"needs": list(entry.needs), **fitting, "arguments": arguments, "recipe": dict(entry.recipe)}


def hosts(plugin: Entry) -> list[str]:
    """The methods that accept what a plug-in adds."""
    return [e.name for e in entries().values() if e.kind != "plugin" and set(plugin.adds) <= set(e.accepts)]


def plugins(names: Sequence[str], host: Entry) -> list[Entry]:
    """The plug-ins named, in their order.

    Raises:
        UserError: an unknown name, one named twice, or one that the host does not accept.
    """
    found = [find(name, "plugin") for name in names]
    for i, entry in enumerate(found):
        if entry in found[:i]:
            raise UserError(f"The plug-in '{entry.name}' is named twice; name it once.")
        missing = [a for a in entry.adds if a not in host.accepts]
        if missing:
            raise UserError(
                f"The plug-in '{entry.name}' adds {', '.join(entry.adds)}, but {host.name} accepts "
                f"{', '.join(host.accepts) or 'nothing'}; use it with {' or '.join(hosts(entry)) or 'another method'}."
            )
    return found


def _fitting(known: Mapping[str, Entry], kind: str | None) -> list[str]:
    return [e.name for e in known.values() if kind in (None, e.kind)] or list(known)


def load(name: str, kind: str | None = None) -> type[Any]:
    """Import a method and return its class.

    Raises:
        UserError: for an unknown name, or (MissingExtra) where its optional stack is not installed.
    """
    entry = find(name, kind)
    return _foreign(entry) if entry.origin else _import(entry)


def _import(entry: Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not entry.extras or (error.name or "").partition(".")[0] == "eyespot":
            raise
        raise MissingExtra(error.name or "?", entry.extras[0], f"The method '{entry.name}'") from error
    return getattr(loaded, attribute)


def _foreign(entry: Entry) -> type[Any]:
    """The class of another package, whose import may fail in any way."""
    from eyespot.methods.method import Method, Plugin

    what = f"The method '{entry.name}' of the package '{entry.origin}'"
    try:
        found = _import(entry)
    except UserError:
        raise
    except IMPORT_FAILS as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise UserError(f"{what} cannot be imported ({reason}); update or uninstall that package.") from error
    if not (isinstance(found, type) and issubclass(found, Method | Plugin)):
        kind = "class" if isinstance(found, type) else type(found).__name__
        raise UserError(
            f"{what} is no method: '{entry.target}' is a {kind} that does not derive from eyespot.methods.method."
            "Method; update or uninstall that package."
        )
    return found


# --- finding the files -----------------------------------------------------------------------------------------------
def _own(slug: str = "*") -> Iterator[Entry]:
    """The methods of this package, or the one of that name: one file is read quicker than all."""
    recorded = json.loads((PACKAGE / "methods" / "evidence.json").read_text(encoding="utf-8"))
    folders = ("methods/*", "methods/*/*", "adapt", "adapt/*")
    for path in sorted(p for folder in folders for p in PACKAGE.glob(f"{folder}/{slug}.py")):
        if path.stem.startswith("_"):
            continue
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modality = parts[1] if parts[0] == "methods" else ""
        entry = read_entry(source.read(".".join(("eyespot", *parts)), path), path.stem, modality, None)
        if entry is not None:
            yield dataclasses.replace(entry, evidence=evidence(recorded.get(entry.name, {})))


def _installed(taken: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, str]]:
    """({name: entry}, {name: why it cannot be used}) of the methods of other packages."""
    found: dict[str, Entry] = {}
    wrong: dict[str, str] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        slug, origin = slug_of(point.name), _origin(point)
        what = f"The method '{point.name}' of the package '{origin}'"
        try:
            entry = dataclasses.replace(_foreign_entry(point, slug), origin=origin)
        except (UserError, OSError, RecursionError) as error:
            wrong[slug] = f"{what} cannot be read ({str(error).rstrip('.')}); update or uninstall that package."
            continue
        if slug in taken:
            wrong[slug] = f"{what} has the name of one of eyespot's own, which is used; uninstall that package."
        elif slug not in found:
            found[slug] = entry
        elif found[slug].target != entry.target:
            wrong[slug] = f"{what} has the name of one of '{found[slug].origin}', which is used; uninstall one of them."
    return found, wrong


def slug_of(name: str) -> str:
    """A method's name as a word of Python: 'Core-tuning' is 'core_tuning'."""
    return name.strip().lower().replace("-", "_")


def _origin(point: importlib.metadata.EntryPoint) -> str:
    dist = point.dist
    about = [dist.name, dist.version] if dist is not None else [point.value.partition(".")[0]]
    return " ".join(str(word) for word in about if word)


def _foreign_entry(point: importlib.metadata.EntryPoint, slug: str) -> Entry:
    """The entry of an installed method.

    Raises:
        UserError: its name or place is none, or its file is no Python.
    """
    if not slug.isidentifier():
        raise UserError("its name may only have letters, digits and _")
    if not re.fullmatch(r"[\w.]+:\w+", point.value.replace(" ", "")):
        raise UserError(f"'{point.value}' is not of the form package.module:Class")
    path = source.locate(point.module)
    module = source.read(point.module, path) if path is not None else None
    entry = read_entry(module, slug, "", point.attr) if module is not None else None
    return entry or _unread(point, slug)


def _unread(point: importlib.metadata.EntryPoint, slug: str) -> Entry:
    """An installed method whose file cannot be read as source; it still loads."""
    return Entry(
        name=slug,
        paper=f"{slug}: installed from {point.value}.",
        modality="",
        kind="method",
        needs=(),
        fields=(),
        recipe={},
        own_recipe=(),
        extras=(),
        adds=(),
        accepts=(),
        doc="",
        target=point.value,
        file=None,
        evidence=evidence({}),
    )
