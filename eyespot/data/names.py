"""Millions of names without millions of objects: a Python string of 40 letters takes 90 bytes and is copied into every
worker process as soon as it is looked at; here it takes 40 bytes, in a block that may stay in a mapped file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class Strings(Sequence[str]):
    """Strings in one block of bytes.

    Args:
        block: uint8, the strings in UTF-8 one after the other (bytes that are no UTF-8 as Python escapes them).
        ends: int64 [n], where each ends.

    Raises:
        ValueError: the ends do not fit the block.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray):
        if len(ends) and (ends[0] < 0 or ends[-1] != len(block) or (ends[1:] < ends[:-1]).any()):
            raise ValueError("the ends of the strings do not fit their block")
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, words: Iterable[str]) -> Strings:
        raw = [word.encode("utf-8", "surrogateescape") for word in words]
        ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(raw), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = int(self.ends[i - 1]) if i else 0
        return self.block[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")


class Files(Sequence[str]):
    """Paths of files below a folder, in order.

    Args:
        root: the folder.
        folders: folders relative to it, each with a slash at its end; "" is the folder itself.
        folder_of: int32 [n], the folder of each file.
        leaves: the name of each file in its folder.
        part: which of them this is, (start, stop).
    """

    def __init__(
        self,
        root: str,
        folders: Strings,
        folder_of: np.ndarray,
        leaves: Strings,
        part: tuple[int, int] | None = None,
    ):
        if len(folder_of) != len(leaves):
            raise ValueError("the files and their folders differ in number")
        if len(folder_of) and not 0 <= int(folder_of.min()) <= int(folder_of.max()) < len(folders):
            raise ValueError("a file lies in no folder")
        self.root, self.folders, self.folder_of, self.leaves = root, folders, folder_of, leaves
        self.start, self.stop = part or (0, len(leaves))
        self.prefix = "" if root in ("", ".") else root.rstrip("/") + "/"

    @classmethod
    def of(cls, root: str, names: Sequence[str]) -> Files:
        """From paths relative to the folder, with "/" between parts."""
        number: dict[str, int] = {}
        folder_of, leaves = np.empty(len(names), np.int32), []
        for i, name in enumerate(names):
            cut = name.rfind("/") + 1
            folder_of[i] = number.setdefault(name[:cut], len(number))
            leaves.append(name[cut:])
        return cls(root, Strings.of(number), folder_of, Strings.of(leaves))

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> str:
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(i)
        i += self.start
        return f"{self.prefix}{self.folders[int(self.folder_of[i])]}{self.leaves[i]}"

    def numbers(self) -> np.ndarray:
        """int32 [n], the folder of each file."""
        return self.folder_of[self.start : self.stop]

    def below(self, folder: str) -> Files:
        """The files below one folder, which follow one another because the names are sorted."""
        inside = [k for k, name in enumerate(self.folders) if name.startswith(folder)]
        rows = np.flatnonzero(np.isin(self.folder_of, inside))
        part = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        return Files(self.root, self.folders, self.folder_of, self.leaves, part)
