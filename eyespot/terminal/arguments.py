"""Words of the command line to the arguments of the Python function of the same name.

tyro splits the words and writes the help; types, ranges and sentences come from `eyespot.options`, so that both ways
in give the same errors, in one sentence and without a box.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from eyespot.declare import OptionField, Switch, option_fields
from eyespot.errors import UserError, nearest
from eyespot.fields import REQUIRED, Kind, kind_of, parse

ABSENT = "\0"
METAVARS = {"int": "INT", "float": "FLOAT", "str": "TEXT", "Any": "PATH"}


def read(verb: str, cls: type, switches: Sequence[Switch], words: Sequence[str], description: str) -> dict[str, Any]:
    """The arguments that were given, by name.

    Args:
        verb: the command, for usage and messages.
        cls: its options class.
        switches: options that are not arguments of the function.
        words: the command line after the verb.
        description: shown above the options in the help.

    Raises:
        UserError: for an unknown option, a stray word or a value that does not fit.
        SystemExit: after the help was printed.
    """
    options = [o for o in option_fields(cls) if not o.python_only]
    form = _form(verb, options, switches)
    filled, rest = _parse(form, verb, words, description)
    values = {o.name: getattr(filled, o.name) for o in options}
    stray = _settle(values, options, rest)
    if stray:
        raise _stray(verb, stray[0], [o.flag for o in options if not o.positional], switches)
    given = {o.name: _value(o, values[o.name]) for o in options if values[o.name] not in (ABSENT, [], o.default)}
    return given | {s.name: getattr(filled, s.name) for s in switches}


def _form(verb: str, options: Sequence[OptionField], switches: Sequence[Switch]) -> type:
    """A dataclass for tyro in which every value is text: it never refuses a value, our own parser does."""
    fields: list[Any] = [(o.name, _annotation(o), _default(o)) for o in options]
    for s in switches:
        about = arg(name=s.name, help=s.sentence, help_behavior_hint="")
        fields.append((s.name, FlagCreatePairsOff[Annotated[bool, about]], dataclasses.field(default=False)))
    return dataclasses.make_dataclass(verb, fields, kw_only=True)


def _default(option: OptionField) -> Any:
    if option.many or option.repeat:  # starts empty; a stated default would cost tyro an import of 0.1 s
        return dataclasses.field()
    return dataclasses.field(default=option.default if isinstance(option.default, bool) else ABSENT)


def _annotation(option: OptionField) -> Any:
    about: dict[str, Any] = {
        "help": option.sentence,
        "help_behavior_hint": _hint(option),
        "name": option.name.rstrip("_"),
    }
    if isinstance(option.default, bool):
        return FlagCreatePairsOff[Annotated[bool, arg(**about)]]
    about["metavar"] = _metavar(option, kind_of(option.annotation))
    if option.many and option.positional:
        return Positional[Annotated[list[str], arg(**about)]]
    if option.many:
        return Annotated[UseAppendAction[list[list[str]]], arg(**about)]
    if option.repeat:
        return Annotated[UseAppendAction[list[str]], arg(**about)]
    text = Annotated[str, arg(**about)]
    return Positional[text] if option.positional else text


def _hint(option: OptionField) -> str:
    if option.default is REQUIRED:
        return "(required)"
    if option.many or option.default == ():
        return ""
    if option.default is None:
        return f"(default: {option.none})" if option.none else ""
    return f"(default: {option.default})"


def _metavar(option: OptionField, kind: Kind) -> str:
    if option.positional:
        name = f"{option.flag} ..." if option.many else option.flag
        return name if option.default is REQUIRED else f"[{name}]"
    if option.many:
        return f"{option.word} ..."
    parts = [k for k in (kind.parts if kind.head == "union" else (kind,)) if k.head != "None"]
    return option.word or "|".join(
        "|".join(str(v) for v in k.parts) if k.head == "literal" else METAVARS.get(k.head, "TEXT") for k in parts
    )


def _parse(form: type, verb: str, words: Sequence[str], description: str) -> tuple[Any, list[str]]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                form, prog=f"eyespot {verb}", description=description, args=list(words), return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(said.getvalue(), verb)) from stop


def _sentence(boxed: str, verb: str) -> str:
    """The first sentence in tyro's box."""
    missing = re.search(r"Missing value for argument '?(--[\w-]+)", boxed)
    if missing:
        return f"{missing.group(1)} needs a value; see eyespot {verb} --help."
    lines = [line.strip(" │|") for line in boxed.splitlines() if line.strip(" │|") and line.strip()[0] not in "╭╰─"]
    return (lines[0].rstrip(".") if lines else "The options cannot be read") + f"; see eyespot {verb} --help."


def _settle(values: dict[str, Any], options: Sequence[OptionField], rest: Sequence[str]) -> list[str]:
    """Join repeated options; words that --set took but that are no key=value fill the empty positional places."""
    places = [o.name for o in options if o.positional and values[o.name] == ABSENT]
    for option in (o for o in options if o.many and not o.positional):
        joined = [word for group in values[option.name] for word in group]
        if option.name == "set_":
            for word in [w for w in joined if "=" not in w][: len(places)]:
                values[places.pop(0)] = word
                joined.remove(word)
        values[option.name] = joined
    return list(rest)


def _stray(verb: str, word: str, flags: Sequence[str], switches: Sequence[Switch]) -> UserError:
    if not word.startswith("-"):
        return UserError(f"'{word}' is one word too many for eyespot {verb}; see eyespot {verb} --help.")
    name = word.partition("=")[0]
    known = [flag.lstrip("-") for flag in flags] + [s.name for s in switches] + ["debug", "help"]
    guess = re.sub(r"'([\w-]+)'", r"'--\1'", nearest(name.lstrip("-"), known))
    hint = guess if guess.startswith("did you mean") else f"see eyespot {verb} --help."
    return UserError(f"There is no option '{name}' for eyespot {verb}; {hint}")


def _value(option: OptionField, text: Any) -> Any:
    if option.many or option.repeat or isinstance(text, bool):
        return text
    return parse(text, option.annotation, option.flag)
