"""What one method says about itself: its entry, read by `ast` from its file."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.fields import Field
from eyespot.methods import source
from eyespot.methods.source import Module

PACKAGE = Path(__file__).resolve().parent.parent
KINDS = {"Method": "method", "Adapter": "adapt", "Plugin": "plugin"}


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


def evidence(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What was run and recorded for a method; None says that it was not run.

    golden: its computation agrees with the recorded numbers. floor_beaten: its metric beats random features by more
    than the spread over seeds. claim: how its claim came out against its control.
    """
    return {"golden": False, "floor_beaten": None, "claim": None} | dict(recorded)


def read_entry(module: Module, name: str, modality: str, attribute: str | None) -> Entry | None:
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
