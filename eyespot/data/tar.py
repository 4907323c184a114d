"""The members of a tar by their headers, read as if by an enemy's hand.

Headers are parsed by the standard library one block at a time; the walk from one to the next is here, so that nothing
is believed that the file does not bear out. Nothing is ever written to disk. What is refused, each with its reason:

    paths that are absolute or have `..` in them, and names with control characters
    links, devices, pipes, sparse members and kinds that are not known
    sizes that are negative, or larger than what is left of the file (cut off, or a false size): the walk ends there
    headers that are damaged, or long names and attributes of more than MAX_NAME and MAX_ATTRIBUTES bytes: it ends too
    data behind the end mark, such as a second tar
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = tarfile.BLOCKSIZE
MAX_NAME = 1 << 16
MAX_ATTRIBUTES = 1 << 20
PADDING = 1 << 20
"""Most zeros behind the end mark: writers fill up a record, of 10 KiB usually."""
LONG_NAME, LONG_LINK = b"L", b"K"
ATTRIBUTES, COMMON_ATTRIBUTES = (b"x", b"X"), b"g"
ABOUT_NEXT = (LONG_NAME, LONG_LINK, COMMON_ATTRIBUTES, *ATTRIBUTES)
SPARSE = b"S"
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    SPARSE: "a sparse member",
}
BODILESS = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Kinds without data, whatever size they declare."""
REGULAR = (b"0", b"\0", b"7")
FOLDER = b"5"


class NoTar(Exception):
    """The file is no tar at all, with the reason."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar; `reason` says why it is refused, "" when it is not. A reason without a name is about
    the tar itself."""

    name: str
    offset: int = 0
    size: int = 0
    reason: str = ""


@dataclass
class _Before:
    """What headers before a member's own say about it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


class _Broken(Exception):
    """The walk cannot go on, with the reason."""


class Reader:
    """A tar that is open for reading at any place, from any thread, in any process that was forked after."""

    def __init__(self, path: str | Path):
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        stat = os.fstat(self.fd)
        self.size, self.stamp = stat.st_size, (stat.st_size, stat.st_mtime_ns)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer at the end of the file."""
        data = os.pread(self.fd, size, offset)
        while data and len(data) < size:  # a signal, or more than one call may give
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


def members(tar: Reader) -> Iterator[Member]:
    """The regular files of a tar in order, and what is refused. Folders are left out.

    Raises:
        NoTar: the file is empty or does not begin as a tar does.
    """
    if not tar.size:
        raise NoTar("is empty")
    at, before = 0, _Before()
    while at + BLOCK <= tar.size:
        block = tar.read(at, BLOCK)
        if block.count(0) == len(block):
            yield from _behind(tar, at)
            return
        try:
            info = _header(block, at)
            at = _behind_sparse_map(tar, at, block, info)
            if info.type in ABOUT_NEXT:
                _about_next(tar, at, info, before)
                at += -(-info.size // BLOCK) * BLOCK
                continue
            size = 0 if info.type in BODILESS else info.size if before.size is None else before.size
            member = _member(tar, at, info, size, before)
        except _Broken as broken:
            yield Member("", reason=str(broken))
            return
        if member is not None:
            yield member
        at, before = at + -(-size // BLOCK) * BLOCK, _Before()
    yield Member("", reason="ends without its end mark: it may be cut off")


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.TarError as error:
        if at == 0:
            raise NoTar("is not a tar") from error
        raise _Broken(f"the header at byte {at} is damaged; what follows is not read") from error


def _behind_sparse_map(tar: Reader, at: int, block: bytes, info: tarfile.TarInfo) -> int:
    """Where the data of a member begins: behind its header, and behind the rest of the map of a sparse one."""
    at += BLOCK
    more = info.type == SPARSE and block[482] != 0
    while more:
        block = tar.read(at, BLOCK)
        if len(block) < BLOCK:
            raise _Broken("ends within a header: it is cut off")
        at, more = at + BLOCK, block[504] != 0
    return at


def _about_next(tar: Reader, at: int, info: tarfile.TarInfo, before: _Before) -> None:
    """A header that is only about the next one; what it says is kept in `before`."""
    most = MAX_ATTRIBUTES if info.type in ATTRIBUTES else MAX_NAME
    if not 0 <= info.size <= min(most, tar.size - at):
        raise _Broken(f"a header at byte {at - BLOCK} declares {info.size:,} bytes; what follows is not read")
    if info.type == LONG_NAME:
        before.name = tar.read(at, info.size).split(b"\0")[0].decode("utf-8", "backslashreplace")
    elif info.type in ATTRIBUTES:
        _attributes(tar.read(at, info.size), at, before)


def _attributes(data: bytes, at: int, before: _Before) -> None:
    """The records "LENGTH KEY=VALUE\\n" of a pax header."""
    start = 0
    while start < len(data) and data[start]:
        digits, space, _ = data[start : start + 9].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[start : start + length]
        key, mark, value = record[len(digits) + 1 : -1].partition(b"=")
        if not mark or len(record) != length or not record.endswith(b"\n"):
            raise _Broken(f"the attributes at byte {at} are damaged; what follows is not read")
        if key == b"path":
            before.name = value.decode("utf-8", "backslashreplace")
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise _Broken(f"the attributes at byte {at} are damaged; what follows is not read")
            before.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            before.sparse = True
        start += length


def _member(tar: Reader, at: int, info: tarfile.TarInfo, size: int, before: _Before) -> Member | None:
    name = before.name if before.name is not None else info.name
    name = re.sub(r"^(\./+)+", "", name)
    if not 0 <= size <= tar.size - at:
        raise _Broken(
            f"'{shown(name)}' declares {size:,} bytes where {max(0, tar.size - at):,} are left: the tar is cut off or "
            "the size is false; what follows is not read"
        )
    if info.type == FOLDER:
        return None
    reason = _unsafe(name)
    if before.sparse:
        reason = reason or KINDS[SPARSE]
    if info.type not in REGULAR:
        reason = reason or KINDS.get(info.type, f"a member of the unknown kind {info.type!r}")
    return Member(shown(name) if reason else name, at, size, reason)


def _unsafe(name: str) -> str:
    """Why a path in a tar is not trusted, although nothing is written to it; else ""."""
    if not name:
        return "has no name"
    if len(name.splitlines()) != 1 or any(c < " " or c == "\x7f" for c in name):
        return "control characters in its name"
    if name[0] in "/\\" or re.match(r"[A-Za-z]:[/\\]", name):
        return "an absolute path"
    return "'..' in its path" if ".." in re.split(r"[/\\]", name) else ""


def shown(name: str) -> str:
    """A name that may hold anything, on one line of at most 200 letters."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return plain if len(plain) <= 200 else plain[:197] + "..."


def _behind(tar: Reader, at: int) -> Iterator[Member]:
    """What lies behind the first block of zeros that is no padding."""
    rest = tar.read(at, PADDING)
    if rest.count(0) != len(rest) or tar.size - at > PADDING:
        yield Member("", reason=f"{tar.size - at:,} bytes behind its end mark are not read: it may be two tars in one")
