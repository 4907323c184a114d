"""What an options class is: fields with ranges, one sentence each, and the errors of all ways in.

`eyespot.options` holds the classes. No torch here, so that help is quick.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from eyespot.errors import UserError, unknown
from eyespot.fields import REQUIRED, Field, check, read_fields

T = TypeVar("T")


def option(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    none: str = "",
    word: str = "",
    many: bool = False,
    repeat: bool = False,
    python_only: bool = False,
) -> Any:
    """A field with the range of its values.

    Args:
        low: smallest value.
        above: a value that must be exceeded.
        high: largest value.
        none: what happens when it is not given, shown in place of a default of None.
        word: what stands for the value in the help.
        many: takes several words on the command line, and may repeat.
        repeat: takes one word on the command line, and may repeat.
        python_only: not on the command line.
    """
    about = {"low": low, "above": above, "high": high, "none": none, "word": word}
    about |= {"many": many, "repeat": repeat, "python_only": python_only}
    return field(default=default, metadata=about)


class Options:
    """Base: types and ranges are checked when the object is made, so that all ways in give the same errors."""

    last: ClassVar[bool] = False
    """Whether the fields of this class, not of its children, come last in the help."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for about in option_fields(cls):
            given = getattr(self, about.name)
            if given is None and about.default is None:
                continue
            value = given if about.many else check(given, about.annotation, about.flag)
            _in_range(value, about)
            object.__setattr__(self, about.name, value)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        cls: Any = type(self)
        pairs = ((f, getattr(self, f.name)) for f in option_fields(cls))
        return {f.name: value for f, value in pairs if value is not f.default and value != f.default}


@dataclass(frozen=True)
class OptionField(Field):
    """One option, with its range and how the command line names it."""

    positional: bool
    low: float | None
    above: float | None
    high: float | None
    none: str
    word: str
    many: bool
    repeat: bool
    python_only: bool

    @property
    def flag(self) -> str:
        """--image-size for image_size, METHOD for the positional method."""
        word = self.name.rstrip("_")
        return word.upper() if self.positional else "--" + word.replace("_", "-")


@dataclass(frozen=True)
class Switch:
    """A yes-no option that only the command line has."""

    name: str
    sentence: str


def _in_range(value: Any, about: OptionField) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if about.low is not None and value < about.low:
        raise UserError(f"{about.flag} cannot be {value:g}: it must be at least {about.low}.")
    if about.above is not None and value <= about.above:
        raise UserError(f"{about.flag} cannot be {value:g}: it must be more than {about.above}.")
    if about.high is not None and value > about.high:
        raise UserError(f"{about.flag} cannot be {value:g}: it must be at most {about.high}.")


@functools.cache
def _sentences(module: str) -> dict[str, dict[str, str]]:
    """The sentence under each field of each class of a module, read from its file."""
    file = sys.modules[module].__file__
    if file is None:
        return {}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    classes = (n for n in tree.body if isinstance(n, ast.ClassDef))
    return {n.name: {f.name: f.sentence for f in read_fields(n)} for n in classes}


@functools.cache
def option_fields(cls: type) -> tuple[OptionField, ...]:
    """The options of one command: the positional ones first, then in the order of the file, own before inherited."""
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        sentences |= _sentences(base.__module__).get(base.__name__, {}) if issubclass(base, Options) else {}
    fields = [_option(f, sentences.get(f.name, "")) for f in dataclasses.fields(cls)]
    shared = {f.name for base in cls.__mro__ if vars(base).get("last") for f in dataclasses.fields(base)}
    return tuple(sorted(fields, key=lambda f: (not f.positional, f.default is not REQUIRED, f.name in shared)))


def _option(f: dataclasses.Field[Any], sentence: str) -> OptionField:
    meta = f.metadata
    return OptionField(
        name=f.name,
        annotation=str(f.type),
        default=REQUIRED if f.default is dataclasses.MISSING else f.default,
        sentence=sentence,
        positional=not f.kw_only,
        low=meta.get("low"),
        above=meta.get("above"),
        high=meta.get("high"),
        none=meta.get("none", ""),
        word=meta.get("word", ""),
        many=meta.get("many", False),
        repeat=meta.get("repeat", False),
        python_only=meta.get("python_only", False),
    )


def build(cls: type[T], /, *positional: Any, **given: Any) -> T:
    """An options object from the arguments of a Python function, with the command line's errors.

    Raises:
        UserError: for an unknown or missing option, a wrong value or one out of range.
    """
    fields = option_fields(cls)
    names = [f.name for f in fields]
    places = [f.name for f in fields if f.positional]
    if len(positional) > len(places):
        raise UserError(f"{len(positional)} positional arguments are too many; it takes {', '.join(places)}.")
    values = dict(zip(places, positional, strict=False)) | _renamed(given, names)
    for f in fields:
        if f.default is REQUIRED and values.get(f.name) in (None, ""):
            raise UserError(f"{f.flag} is missing: {f.sentence[:1].lower()}{f.sentence[1:]}")
    return cls(**values)


def _renamed(given: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """`set` and `with` are accepted for `set_` and `with_`."""
    values = {}
    for key, value in given.items():
        name = key if key in names or key + "_" not in names else key + "_"
        if name not in names:
            raise unknown("option", key, [n.rstrip("_") for n in names])
        values[name] = value
    return values
