"""What methods exist and what they say about themselves, read from their files without importing them or torch.

One paper is one file: `eyespot/methods/<modality>/<slug>.py` or `eyespot/adapt/<slug>.py` (a survey or toolbox is a
folder with one file a system). Its docstring, base class, argument dataclass and recipe are read by `ast`; only `load`
imports it. Installed third-party methods are found through the entry-point group `eyespot.methods`; what another
package offers there and cannot be used is told by `problems`, and is in nobody's way.

    >>> entries()["simclr"].paper
    >>> load("simclr")          # the class
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import MissingExtra, UserError, unknown
from eyespot.fields import Field
from eyespot.methods import source
from eyespot.methods.source import Module

GROUP = "eyespot.methods"
PACKAGE = Path(__file__).resolve().parent.parent
KINDS = {"Method": "method", "Adapter": "adapt", "Plugin": "plugin"}
COMMANDS = {"method": "pretrain", "adapt": "adapt", "plugin": "pretrain METHOD --with"}


@dataclass(frozen=True)
class Entry:
    """One method, as its file describes it."""

    name: str
    paper: str
    """First paragraph of the docstring: name, title, authors, venue, arXiv number."""
    modality: str
    kind: str
    """method, adapt or plugin."""
    needs: tuple[str, ...]
    fields: tuple[Field, ...]
    """The arguments that --set changes."""
    recipe: Mapping[str, Any]
    """How it is trained: every field of Recipe."""
    own_recipe: tuple[str, ...]
    """The fields of the recipe that the method states itself."""
    extras: tuple[str, ...]
    """Optional stacks it needs: pip install 'eyespot[...]'."""
    adds: tuple[str, ...]
    """What a plug-in adds to its host."""
    accepts: tuple[str, ...]
    """What a plug-in may add to this method."""
    doc: str
    """The docstring without its first paragraph."""
    target: str
    """module:Class."""
    file: Path | None
    evidence: Mapping[str, Any]
    origin: str = ""
    """The package that it is from, with its version; empty for eyespot's own."""

    @property
    def prefix(self) -> str:
        """What stands before the names of its arguments in --set."""
        return f"{self.name}." if self.kind == "plugin" else ""

    def json(self) -> dict[str, Any]:
        """The record of `eyespot methods --json`."""
        keys = ("name", "paper", "modality", "kind")
        record: dict[str, Any] = {key: getattr(self, key) for key in keys}
        return record | {"extras": list(self.extras), "evidence": dict(self.evidence)}

    def json_in_full(self) -> dict[str, Any]:
        """The record of `eyespot methods NAME --json`: the same, with needs, arguments and recipe."""
        arguments = {f.name: {"type": f.annotation, "default": f.default, "sentence": f.sentence} for f in self.fields}
        fitting = {"hosts": hosts(self)} if self.kind == "plugin" else {"accepts": list(self.accepts)}
        return self.json() | {"needs": list(self.needs), **fitting, "arguments": arguments, "recipe": dict(self.recipe)}


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
    except (Exception, SystemExit) as error:  # it is not ours: whatever it raises is this sentence
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
        entry = _entry(source.read(".".join(("eyespot", *parts)), path), path.stem, modality, None)
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
    entry = _entry(module, slug, "", point.attr) if module is not None else None
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


def evidence(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What was run and recorded for a method; None says that it was not run.

    golden: its computation agrees with the recorded numbers. floor_beaten: its metric beats random features by more
    than the spread over seeds. claim: how its claim came out against its control.
    """
    return {"golden": False, "floor_beaten": None, "claim": None} | dict(recorded)


# --- reading a file ---------------------------------------------------------------------------------------------------
def _entry(module: Module, name: str, modality: str, attribute: str | None) -> Entry | None:
    """The entry of a file, or None when no class in it is a method."""
    node = _method_class(module, attribute)
    if node is None:
        return None
    chain = source.ancestry(module, node)
    needs = _strings(_value(chain, "needs"))
    paragraphs = (ast.get_docstring(module.tree) or node.name).split("\n\n", 1)
    recipe, own = _recipe(chain)
    return Entry(
        name=name,
        paper=" ".join(paragraphs[0].split()),
        modality=modality or _first(_strings(_value(chain, "modality")), _kind_of_data(needs)),
        kind=KINDS[_root(chain)],
        needs=needs,
        fields=_arguments(chain),
        recipe=recipe,
        own_recipe=own,
        extras=_strings(_value(chain, "extras")) or module.extras,
        adds=_strings(_value(chain, "adds")),
        accepts=_strings(_value(chain, "accepts")),
        doc=paragraphs[1].strip() if len(paragraphs) > 1 else "",
        target=f"{module.name}:{node.name}",
        file=module.path,
        evidence=evidence({}),
    )


def _method_class(module: Module, attribute: str | None) -> ast.ClassDef | None:
    """The class that is the method: the named one, else the one whose name is the slug's, else the last leaf."""
    if attribute is not None:
        node = module.classes.get(attribute)
        return node if node is not None and _root(source.ancestry(module, node)) else None
    found = [node for node in module.classes.values() if _root(source.ancestry(module, node))]
    found = [node for node in found if not node.name.startswith("_")]
    slug = module.path.stem.replace("_", "")
    named = [node for node in found if node.name.lower() == slug]
    bases = {source.tail(base) for node in found for base in node.bases}
    leaves = [node for node in found if node.name not in bases]
    return (named or leaves or [None])[-1]


def _root(chain: source.Ancestry) -> str:
    """Method, Adapter or Plugin, whichever the class descends from first; empty for another class."""
    for module, node in chain:
        if module.name == source.CONTRACT and node.name in KINDS:
            return node.name
    return ""


def _value(chain: source.Ancestry, name: str) -> ast.expr | None:
    """What a class attribute is set to, by the class itself or the nearest class above it."""
    for _, node in chain:
        value = source.assigned(node, name)
        if value is not None:
            return value
    return None


def _strings(node: ast.expr | None) -> tuple[str, ...]:
    value = source.literal(node, ())
    if isinstance(value, str):
        return (value,)
    return tuple(str(v) for v in value) if isinstance(value, list | tuple) else ()


def _first(values: Sequence[str], otherwise: str) -> str:
    return values[0] if values else otherwise


def _kind_of_data(needs: Sequence[str]) -> str:
    return next((need for need in needs if need not in ("label", "index")), "")


def _arguments(chain: source.Ancestry) -> tuple[Field, ...]:
    """The fields of the nearest Config, its own first, then inherited ones; what every method has is left out."""
    for module, node in chain:
        value = source.assigned(node, "Config")
        if value is None:
            continue
        found = source.resolve(module, source.tail(value))
        if found is None:
            return ()
        fields: dict[str, Field] = {}
        for owner, config in source.ancestry(*found):
            if owner.name != source.CONTRACT:
                fields = fields | {f.name: f for f in source.fields(config) if f.name not in fields}
        return tuple(fields.values())
    return ()


def _recipe(chain: source.Ancestry) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Every field of the recipe, and the names of those that the method states; a plug-in has none."""
    if _root(chain) == "Plugin":
        return {}, ()
    contract = source.read(source.CONTRACT, PACKAGE / "methods" / "method.py")
    recipe = {f.name: f.default for f in source.fields(contract.classes["Recipe"])}
    value = _value(chain, "recipe")
    keywords = value.keywords if isinstance(value, ast.Call) else []
    own = {k.arg: source.literal(k.value, ast.unparse(k.value)) for k in keywords if k.arg}
    return recipe | own, tuple(own)
