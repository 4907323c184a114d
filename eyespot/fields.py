"""Fields of option and config dataclasses: read from source without importing it, parsed from text, checked.

A field is a name, an annotation, a literal default and the sentence under it. Annotations are limited to int, float,
str, bool, None, Any, `X | Y`, Optional, Literal and tuple, so that `--set key=value` knows what a value may be.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eyespot.errors import UserError, nearest

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "Any": "text"}


class Required:
    """The default of a field that has none."""

    def __repr__(self) -> str:
        return "required"


class Unread(str):
    """The source of a default that is not a literal."""


REQUIRED = Required()


@dataclass(frozen=True)
class Field:
    """One argument of a dataclass."""

    name: str
    annotation: str
    default: Any
    sentence: str


class Mismatch(ValueError):
    """A value that does not fit an annotation."""


def read_fields(node: ast.ClassDef) -> Iterator[Field]:
    """The fields that a class body declares, each with the string under it as its sentence."""
    for i, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            continue
        follower = node.body[i + 1] if i + 1 < len(node.body) else None
        yield Field(statement.target.id, annotation, _literal(statement.value), _sentence(follower))


def _sentence(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return Unread(ast.unparse(node))


# --- annotations ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kind:
    """A parsed annotation: `head` is int, float, str, bool, None, Any, union, literal or tuple."""

    head: str
    parts: tuple[Any, ...] = ()
    """Kinds of a union or tuple, values of a literal."""
    open_ended: bool = False
    """A tuple of any length: tuple[X, ...]."""


@functools.lru_cache(maxsize=512)
def kind_of(annotation: str) -> Kind:
    """The kind that an annotation's source says.

    Raises:
        UserError: for an annotation outside the allowed set.
    """
    return _kind(ast.parse(annotation, mode="eval").body)


def _kind(node: ast.expr) -> Kind:
    if isinstance(node, ast.Constant) and node.value is None:
        return Kind("None")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _kind(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Name) and node.id in KINDS:
        return Kind(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Kind("union", (*_members(_kind(node.left)), *_members(_kind(node.right))))
    if isinstance(node, ast.Subscript):
        return _subscript(ast.unparse(node.value).rpartition(".")[2], node.slice)
    raise UserError(f"The annotation '{ast.unparse(node)}' is not one that a field may have; see eyespot/fields.py.")


def _subscript(outer: str, inner: ast.expr) -> Kind:
    parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if outer == "Literal":
        return Kind("literal", tuple(ast.literal_eval(p) for p in parts))
    if outer == "Optional":
        return Kind("union", (*_members(_kind(parts[0])), Kind("None")))
    if outer == "Union":
        return Kind("union", tuple(m for p in parts for m in _members(_kind(p))))
    if outer in ("tuple", "Tuple"):
        last = parts[-1]
        if isinstance(last, ast.Constant) and last.value is Ellipsis:
            return Kind("tuple", (_kind(parts[0]),), open_ended=True)
        return Kind("tuple", tuple(_kind(p) for p in parts))
    if outer in ("Mapping", "Sequence", "Callable"):
        return Kind("Any")
    raise UserError(f"The annotation '{outer}[...]' is not one that a field may have; see eyespot/fields.py.")


def _members(kind: Kind) -> tuple[Kind, ...]:
    return kind.parts if kind.head == "union" else (kind,)


def describe(kind: Kind) -> str:
    """What a value may be, in words: "a whole number or none"."""
    if kind.head == "union":
        return " or ".join(describe(k) for k in kind.parts)
    if kind.head == "literal":
        return "one of " + ", ".join(str(v) for v in kind.parts)
    if kind.head == "tuple":
        if kind.open_ended:
            return f"values with commas between them (each {describe(kind.parts[0])})"
        return f"{len(kind.parts)} values with commas between them"
    return KINDS.get(kind.head, "none")


# --- text to value ---------------------------------------------------------------------------------------------------
def parse(text: str, annotation: str, where: str) -> Any:
    """The value that `text` stands for under an annotation.

    Args:
        where: how the field is named to the user: "--epochs", "--set temperature".

    Raises:
        UserError: one sentence that names the field, the value and what is valid.
    """
    kind = kind_of(annotation)
    try:
        return _parse(text.strip(), kind)
    except Mismatch as error:
        raise _refusal(text, kind, where) from error


def check(value: Any, annotation: str, where: str) -> Any:
    """A Python value as the annotation wants it: text is parsed, lists become tuples, whole numbers floats."""
    kind = kind_of(annotation)
    try:
        return _check(value, kind)
    except Mismatch as error:
        raise _refusal(value, kind, where) from error


def _refusal(value: Any, kind: Kind, where: str) -> UserError:
    near = ""
    literals = [str(v) for k in _members(kind) if k.head == "literal" for v in k.parts]
    if literals and isinstance(value, str):
        guess = nearest(value, literals)
        near = f"; {guess}" if guess.startswith("did you mean") else ""
    return UserError(f"{where} cannot be {value!r}: it takes {describe(kind)}{near or '.'}")


def _parse(text: str, kind: Kind) -> Any:
    if kind.head == "union":
        return _first(kind, lambda k: _parse(text, k))
    if kind.head == "None":
        if text.lower() in ("none", "null"):
            return None
        raise Mismatch
    if kind.head == "literal":
        for value in kind.parts:
            if text == str(value) or (isinstance(value, bool | None) and text.lower() == str(value).lower()):
                return value
        raise Mismatch
    if kind.head == "bool":
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise Mismatch
    if kind.head == "tuple":
        return _parse_tuple(text, kind)
    return _parse_number(text, kind) if kind.head in ("int", "float") else text


def _parse_number(text: str, kind: Kind) -> int | float:
    try:
        value = int(text) if kind.head == "int" else float(text)
    except ValueError as error:
        raise Mismatch from error
    if not math.isfinite(value):
        raise Mismatch
    return value


def _parse_tuple(text: str, kind: Kind) -> tuple[Any, ...]:
    inner = text[1:-1]
    whole = text[:1] + text[-1:] in ("()", "[]") and inner.find(")") >= inner.find("(")
    pieces = _split(inner if whole else text)
    return tuple(_parse(p, k) for p, k in zip(pieces, _elements(kind, len(pieces)), strict=True))


def _split(text: str) -> list[str]:
    """Pieces between the commas that stand in no bracket."""
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    return [p for p in (piece.strip(" '\"") for piece in [*pieces, text[start:]]) if p]


def _elements(kind: Kind, count: int) -> tuple[Kind, ...]:
    if kind.open_ended:
        return kind.parts * count
    if count != len(kind.parts):
        raise Mismatch
    return kind.parts


def _first(kind: Kind, attempt: Any) -> Any:
    # none, literals and numbers first: text would take everything
    order = ("None", "literal", "bool", "int", "float", "tuple", "str", "Any")
    for part in sorted(kind.parts, key=lambda k: order.index(k.head)):
        try:
            return attempt(part)
        except Mismatch:
            continue
    raise Mismatch


def _check(value: Any, kind: Kind) -> Any:
    if kind.head == "Any":
        return value
    if isinstance(value, str) and kind.head != "str":
        return _parse(value, kind)
    if kind.head == "union":
        return _first(kind, lambda k: _check(value, k))
    if kind.head == "literal":
        if value in kind.parts:
            return value
        raise Mismatch
    if kind.head == "tuple" and isinstance(value, tuple | list):
        return tuple(_check(v, k) for v, k in zip(value, _elements(kind, len(value)), strict=True))
    return _check_scalar(value, kind)


def _check_scalar(value: Any, kind: Kind) -> Any:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # numpy and torch scalars
        value = value.item()
    if kind.head == "bool" and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind.head == "float" and number:
        return float(value)
    if kind.head == "int" and number and value == int(value):
        return int(value)
    if (kind.head == "str" and isinstance(value, str)) or (kind.head == "None" and value is None):
        return value
    raise Mismatch
