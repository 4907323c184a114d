"""Tensors out of files that others wrote. Nothing in a file is executed, and a damaged or hostile one is one sentence.

safetensors are read as such; files of torch.save only with `weights_only`, which builds tensors and plain containers
and refuses everything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eyespot.errors import UserError

SAFE = (".safetensors",)
TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Endings of files that torch.save writes (`.tar` for the `.pth.tar` of older releases)."""
LARGEST_HEADER = 10_000_000
"""Bytes; that of a file with 100,000 tensors."""
DEEPEST = 6
"""Dictionaries inside dictionaries that are searched for tensors."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """torch and safetensors tell of a full disk by errors of their own; inside, they become the system's.

    Raises:
        OSError: in place of them.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error
    except RuntimeError as error:  # torch writes into an open file: what the file said stands behind it
        if not isinstance(error.__context__, OSError):
            raise
        raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error


# what reading a damaged file raises, in torch, pickle, zipfile and safetensors
DAMAGED = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(MemoryError, OverflowError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, SafetensorError),
)


def is_weight_file(name: str) -> bool:
    """Whether the ending is one of a file of weights."""
    return Path(name).suffix.lower() in (*SAFE, *TORCH)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file on CPU, by name, and the text that a safetensors file carries beside them.

    Dictionaries inside dictionaries are joined with dots: `{"state_dict": {"conv1.weight": t}}` gives
    `state_dict.conv1.weight`.

    Raises:
        UserError: the file is damaged, holds no tensors, or holds what only running code could bring back.
    """
    if not path.is_file():
        raise UserError(f"The file '{path}' does not exist.")
    suffix = path.suffix.lower()
    if suffix in SAFE:
        tensors, text = _read_safetensors(path)
    elif suffix in TORCH:
        tensors, text = dict(_flat(_read_torch(path))), {}
    else:
        raise UserError(f"'{path}' does not end in {', '.join((*SAFE, *TORCH))}; give a file of weights.")
    usable = {name: t for name, t in tensors.items() if _is_plain(t)}
    if not usable:
        raise UserError(f"'{path}' holds no tensors of numbers; give a file that holds a network's weights.")
    return usable, text


def _is_plain(t: Tensor) -> bool:
    """Real numbers in memory; no view that a few bytes blow up to any size."""
    dense = t.layout == torch.strided and t.device.type == "cpu" and not t.is_complex() and not t.is_quantized
    return dense and t.numel() * t.element_size() <= t.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, file.metadata() or {}
    except DAMAGED as error:
        raise _damaged(path, "safetensors file", error) from error


def _check_header(path: Path) -> None:
    """The first 8 bytes say how long the header is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length + 8 > size:
        claim = f"its header would be {length:,} bytes" if len(first) == 8 else "it has no header"
        raise UserError(f"'{path}' is no safetensors file, or cut short ({claim}, the file has {size:,}).")
    if length > LARGEST_HEADER:
        raise UserError(
            f"'{path}' has a header of {length:,} bytes, more than the {LARGEST_HEADER:,} that are read; "
            "save the weights alone."
        )


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Trying to instantiate class|class|type|function) ([\w.]*\w\.\w+)", str(error))
        what = f"more than tensors (it asks for {named.group(1)})" if named else "more than tensors, or is damaged"
        raise UserError(
            f"'{path}' holds {what} and was not opened, because that could run code; save its weights as .safetensors."
        ) from error
    except DAMAGED as error:
        raise _damaged(path, "file of torch.save", error) from error


def _check_archive(path: Path) -> None:
    """torch.save packs nothing; a packed entry could grow without bound. Programs are archives of the same kind."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the older format
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGED as error:
        raise _damaged(path, "file of torch.save", error) from error
    ends = {e.filename.rpartition("/")[2] for e in entries}
    if ends & {"constants.pkl", "archive_format"}:
        kind = "TorchScript" if "constants.pkl" in ends else "torch.export"
        raise UserError(f"'{path}' is a {kind} program, not a file of weights; export with --format timm for that.")
    packed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
    if packed or sum(e.file_size for e in entries) > path.stat().st_size:
        raise UserError(f"'{path}' is a compressed archive, which torch.save does not write; it was not opened.")


def _damaged(path: Path, kind: str, error: BaseException) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(" .")
    return UserError(f"'{path}' is not a readable {kind} ({reason}); fetch or save it again.")


def _flat(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors in dictionaries with text keys; optimizers' and others' are not looked at."""
    if not isinstance(value, Mapping) or depth > DEEPEST:
        return
    for key, inner in value.items():
        if not isinstance(key, str):
            continue
        if isinstance(inner, Tensor):
            yield prefix + key, inner.detach()
        else:
            yield from _flat(inner, f"{prefix}{key}.", depth + 1)


def read_described(path: Path) -> Any:
    """The JSON object in a small text file.

    Raises:
        UserError: it is too large, or no JSON object.
    """
    if path.stat().st_size > LARGEST_HEADER:
        raise UserError(f"'{path}' has {path.stat().st_size:,} bytes, too many for a description.")
    return parse_described(path.read_bytes(), str(path))


def parse_described(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object from a file or from the text beside tensors."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{where}' is not valid JSON ({str(error)[:80]}); fetch or save it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"'{where}' does not hold a JSON object; fetch or save it again.")
    return value
