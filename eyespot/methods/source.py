"""Python files as syntax trees: classes, their ancestors and literals, without importing anything."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import UserError
from eyespot.fields import Field, read_fields

CONTRACT = "eyespot.methods.method"
"""The module that defines Method, Adapter, Plugin, MethodConfig and Recipe."""


@dataclass(frozen=True, eq=False)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str]]
    """Local name -> (module, name there), of `from module import name`; `import a.b as c` has no name there."""
    extras: tuple[str, ...]
    """The optional stacks that it asks for: the second argument of its MissingExtra(...) calls."""


Ancestry = list[tuple[Module, ast.ClassDef]]


def read(name: str, path: Path) -> Module:
    """Parse a file; files that did not change are parsed once.

    Raises:
        UserError: when the file is no valid Python.
    """
    return _read(name, path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _read(name: str, path: Path, changed: int) -> Module:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:  # zero bytes, or no UTF-8
        place = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"'{path}' is not valid Python ({place}); mend it.") from error
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    extras = _missing_extras(tree) if "MissingExtra(" in text else ()  # walking every tree would take the most time
    return Module(name, path, tree, classes, dict(_imports(tree, name)), extras)


def _imports(tree: ast.Module, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, (module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((a.asname or a.name, (a.name, "")) for a in node.names)


@functools.lru_cache(maxsize=512)
def locate(name: str) -> Path | None:
    """The file of a module, found without importing its package; None where there is no source file."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for candidate in (base.with_suffix(".py") if rest else base / "__init__.py", base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def tail(node: ast.expr) -> str:
    """`Method` of both `Method` and `method.Method`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def resolve(module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
    """A class that a module defines or imports by name."""
    if name in module.classes:
        return module, module.classes[name]
    if name not in module.imports:
        return None
    where, original = module.imports[name]
    path = locate(where)
    return resolve(read(where, path), original) if path is not None else None


def _base(module: Module, base: ast.expr) -> tuple[Module, ast.ClassDef] | None:
    """The class that `Name` or `module.Name` in a class header means."""
    if not isinstance(base, ast.Attribute):
        return resolve(module, tail(base))
    where, name = module.imports.get(ast.unparse(base.value), ("", ""))
    full = f"{where}.{name}".strip(".")
    path = locate(full) if full else None
    return resolve(read(full, path), base.attr) if path is not None else None


def ancestry(module: Module, node: ast.ClassDef) -> Ancestry:
    """The class and the classes above it, nearest first, as far as their source is found."""
    chain: Ancestry = []
    waiting = [(module, node)]
    while waiting:
        owner, cls = waiting.pop(0)
        if any(c is cls for _, c in chain):
            continue
        chain.append((owner, cls))
        found = (_base(owner, base) for base in cls.bases)
        waiting.extend(pair for pair in found if pair is not None)
    return chain


def assigned(node: ast.ClassDef, name: str) -> ast.expr | None:
    """What the class body sets `name` to."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return statement.value  # pyright: ignore[reportAttributeAccessIssue]
    return None


def literal(node: ast.expr | None, otherwise: Any) -> Any:
    if node is None:
        return otherwise
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return otherwise


def fields(node: ast.ClassDef) -> list[Field]:
    return list(read_fields(node))


def _missing_extras(tree: ast.Module) -> tuple[str, ...]:
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and tail(n.func) == "MissingExtra")
    named = (literal(call.args[1], "") for call in calls if len(call.args) > 1)
    return tuple(sorted({name for name in named if name}))
