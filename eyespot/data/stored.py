"""What is kept between two starts: where, in which form, and when it counts.

Everything lies in one folder, which may be deleted at any time: `$EYESPOT_CACHE`, else `$XDG_CACHE_HOME/eyespot`, else
~/.cache/eyespot. An index is one file of plain numbers and text, no pickle:

    16 bytes    MAGIC, with the version of the form
     8 bytes    length of the header
     4 bytes    CRC-32 of all that follows
     4 bytes    zero
    header      JSON {"kind", "about", "arrays": [[name, type, items, place in the body]]}
    body        the arrays one after the other, each at a multiple of 64 bytes

It is replaced in one step. A file that is damaged, cut off, of another version or of another kind is no index: it is
made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from eyespot.runs import replacing

MAGIC = b"eyespot index 1\n"
HEAD = struct.Struct("<16sQII")
TYPES = ("u1", "i4", "i8")
ALIGN = 64
CHUNK = 1 << 20
YOUNG = 2.0
"""Seconds. Two changes within the granularity of a file system's clock (2 s on FAT) look like one: what changed so
shortly before it was read is not kept."""
Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """The folder of everything that is kept between two starts; made by whoever writes."""
    given = os.environ.get("EYESPOT_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "eyespot"


def index_file(kind: str, *key: Any) -> Path:
    """Where the index of something is kept."""
    digest = hashlib.blake2b(json.dumps([kind, *key]).encode(), digest_size=12).hexdigest()
    return cache_folder() / "index" / f"{kind}-{digest}"


def settled(changed: float, now: float | None = None) -> bool:
    """Whether a modification time, in seconds, is old enough to tell the next change from it."""
    return changed < (time.time() if now is None else now) - YOUNG


def keep_index(file: Path, kind: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    """Write an index of one-dimensional arrays; whether that could be done. A run goes on without it."""
    places, parts, at = [], [], 0
    for name, array in arrays.items():
        places.append([name, array.dtype.str[1:], len(array), at])
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        padding = -raw.nbytes % ALIGN
        parts += [raw.data.cast("B") if raw.nbytes else b"", bytes(padding)]
        at += raw.nbytes + padding
    header = json.dumps({"kind": kind, "about": about, "arrays": places}).encode()
    header += b" " * (-len(header) % ALIGN)
    check = zlib.crc32(header)
    for part in parts:
        check = zlib.crc32(part, check)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, open(part, "wb") as stream:
            stream.write(HEAD.pack(MAGIC, len(header), check, 0))
            stream.writelines([header, *parts])
        return True
    return False


def kept_index(file: Path, kind: str, *, mapped: bool = True) -> tuple[dict[str, Any], Arrays] | None:
    """(about, arrays) of an index, or None where there is none that is whole.

    Args:
        mapped: the arrays stay in the file, and only what is used of them is read; else they are read into memory.
    """
    try:
        with open(file, "rb") as stream:
            magic, length, check, zero = HEAD.unpack(stream.read(HEAD.size))
            size = os.fstat(stream.fileno()).st_size
            if magic != MAGIC or zero or length > size - HEAD.size:
                return None
            raw = stream.read(length)
            found = zlib.crc32(raw)
            while chunk := stream.read(CHUNK):
                found = zlib.crc32(chunk, found)
        if found != check:
            return None
        header = json.loads(raw)
        if header["kind"] != kind:
            return None
        body = np.memmap(file, np.uint8, "r") if mapped else np.fromfile(file, np.uint8)
        return header["about"], _arrays(body[HEAD.size + length :], header["arrays"])
    except (OSError, ValueError, LookupError, TypeError, struct.error):
        return None


def _arrays(body: np.ndarray, places: Sequence[Any]) -> Arrays:
    arrays = {}
    for name, kind, items, at in places:
        if kind not in TYPES:
            raise ValueError(f"no array of type {kind} is kept")
        dtype = np.dtype(f"<{kind}")
        part = body[at : at + items * dtype.itemsize]
        if len(part) != items * dtype.itemsize:
            raise ValueError("the arrays are cut off")
        arrays[str(name)] = np.asarray(part).view(dtype)
    return arrays


@contextlib.contextmanager
def alone_on_this_machine(file: Path) -> Iterator[None]:
    """While one process makes `file`, the others that want to make it wait. Where the file system has no locks they do
    not wait: the work is done more than once, and the last one stays. Raises OSError where nothing can be written."""
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name(f".{file.name}.lock"), "wb") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
