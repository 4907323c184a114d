"""Arguments of a method: `--set key=value` by the types of the method's Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eyespot.declare import option_fields
from eyespot.errors import UserError, nearest
from eyespot.fields import Field, check
from eyespot.options import PretrainOptions


def pairs(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """`--set a=1 b=2` as {"a": "1", "b": "2"}; a dictionary as it is. The last of two equal keys counts."""
    if isinstance(given, Mapping):
        return dict(given)
    values = {}
    for item in given:
        key, equals, text = str(item).partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, not '{item}'.")
        values[key.strip().replace("-", "_")] = text
    return values


def settings(
    given: Mapping[str, Any] | Sequence[str], fields: Sequence[Field], owner: str, prefix: str = ""
) -> dict[str, Any]:
    """Values of a method's arguments, by their types.

    Args:
        given: key=value words, or a dictionary.
        fields: the arguments that exist.
        owner: whose arguments they are, for the message.
        prefix: "hallucinator." reads the keys of one plug-in and leaves the others out; without a prefix keys with a
            dot are left out.

    Raises:
        UserError: for an unknown key (with the nearest) or a value that does not fit (with what is valid).
    """
    known = {f.name: f for f in fields}
    values = {}
    for full, value in pairs(given).items():
        head, dot, tail = full.rpartition(".")
        if head + dot != prefix:
            continue
        if tail not in known:
            raise _unknown_setting(tail, known, owner)
        values[tail] = check(value, known[tail].annotation, f"--set {full}")
    return values


def no_stray_settings(given: Mapping[str, Any] | Sequence[str], plugins: Sequence[str]) -> None:
    """Every `plugin.key` must belong to a plug-in of the run.

    Raises:
        UserError: with the plug-in to add.
    """
    for full in pairs(given):
        owner, dot, _ = full.rpartition(".")
        if dot and owner not in plugins:
            have = f" (it has {', '.join(plugins)})" if plugins else ""
            raise UserError(
                f"--set {full} is of the plug-in '{owner}', which this run does not have{have}; add --with {owner}, or "
                "mend the name."
            )


def _unknown_setting(key: str, known: Mapping[str, Field], owner: str) -> UserError:
    flags = {f.name: f.flag for f in option_fields(PretrainOptions)}
    if key in flags:
        return UserError(f"'{key}' is not an argument of {owner} but an option: use {flags[key]} {key.upper()}.")
    hint = nearest(key, known) if known else "it has none."
    return UserError(f"{owner} has no argument '{key}'; {hint}")
