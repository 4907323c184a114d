"""The options that a run was started with, as its config.json keeps them and as a resumed run must agree with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from eyespot.errors import UserError
from eyespot.methods import catalog
from eyespot.options import PretrainOptions
from eyespot.settings import pairs

FREE_ON_RESUME = ("resume", "out", "data", "listener", "workers", "device", "log_every", "method", "run", "test_data")
FREE_ON_RESUME += ("parallel", "cache", "pictures")


def as_stored(options: PretrainOptions, stored: dict[str, Any], command: str) -> PretrainOptions:
    """The options a run was started with; what is given now must agree."""
    if stored.get("command") != command or stored.get("method") != catalog.find(str(options.method)).name:
        raise UserError(
            f"--out '{options.out}' holds a run of {stored.get('command')} {stored.get('method')}; "
            "resume with the same command, or choose another --out."
        )
    before = dict(stored["options"])
    for key, value in plain_options(options).items():
        if key not in FREE_ON_RESUME and before.get(key) != value:
            flag = key.rstrip("_").replace("_", "-")
            raise UserError(
                f"--{flag} {value} differs from the run in '{options.out}' "
                f"({before.get(key, 'not given')}); leave it out to resume, or choose another --out."
            )
    merged = {k: v for k, v in before.items() if k not in FREE_ON_RESUME}
    return dataclasses.replace(options, **merged)


def plain_options(options: PretrainOptions) -> dict[str, Any]:
    """What was given, in the form config.json keeps."""
    given = dict(options.given)
    given.pop("listener", None)
    for key, value in given.items():
        if key == "set_":
            given[key] = {k: str(v) for k, v in pairs(value).items()}
        elif not isinstance(value, int | float | str | bool | list | tuple):
            given[key] = str(getattr(value, "path", value if isinstance(value, Path) else type(value).__name__))
        elif isinstance(value, tuple):
            given[key] = list(value)
    return given
