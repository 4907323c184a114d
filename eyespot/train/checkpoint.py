"""One atomic checkpoint: tensors and plain Python only, read back with `weights_only`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from eyespot.errors import UserError
from eyespot.nets.files import disk_errors
from eyespot.runs import replacing

VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` and replace the old checkpoint in one step.

    Raises:
        NotWritten: there is no room, ...; the old checkpoint stays.
    """
    with replacing(path) as part, disk_errors(part), open(part, "wb") as stream:
        torch.save({"version": VERSION, **state}, stream)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state written by `save_checkpoint`.

    Raises:
        UserError: the file is damaged, not a checkpoint of eyespot, or written by a newer version.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"Checkpoint '{path}' cannot be read ({str(error).splitlines()[0][:120]}); "
            "delete it to start again, or restore it from a copy."
        ) from error
    if not isinstance(state, dict) or "version" not in state:
        raise UserError(f"'{path}' is not a checkpoint of eyespot; delete it or choose another --out.")
    if state["version"] > VERSION:
        raise UserError(f"Checkpoint '{path}' was written by a newer eyespot; update eyespot.")
    return state
