"""Tars in the form of WebDataset: the files of one sample lie side by side and share a name up to its first dot.

    000017.jpg  000017.cls  000017.json        one sample: its picture, its label, what is known about it

The picture is the member whose ending is that of a picture; the label is in .cls (a number or a word), else in .json
under "label" or "cls". Every tar is walked once; where its samples begin is kept in the cache (stored.py) and holds as
long as size, times and inode of the tar do, so that a sample is read at once, in any order, and a resumed run goes on
where it was. Nothing is unpacked to disk. Members that are not trusted are left out and listed with the bad files
(tar.py says which). Compressed tars are not read: they have no random access.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eyespot.data.decode import BadFile
from eyespot.data.names import Strings
from eyespot.data.picture import SUFFIXES
from eyespot.data.sources import EncodedSource, numbered
from eyespot.data.stored import Arrays, index_file, keep_index, kept_index, settled
from eyespot.data.tar import Member, NoTar, Reader, members, shown
from eyespot.errors import UserError

KIND = "tar"
LABEL_KEYS = ("label", "cls")
"""Where a label is looked for in a .json."""
MAX_LABEL = 1 << 12
MAX_JSON = 1 << 20
MAX_PICTURE = 1 << 30
"""Bytes of one member that is read."""
OPEN = 32
"""Tars that a process keeps open."""
MAPPED = 128
"""Up to this number of tars their indices stay in mapped files (each keeps a file open); more are read into memory."""
TOLD = 100
"""Refused members of one tar that are named."""


# --- what is in one tar ---------------------------------------------------------------------------------------
@dataclass
class Index:
    """The samples of one tar, in the order of their pictures."""

    names: Strings
    offsets: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    """int32 [n] into `words`, -1 where there is no label."""
    words: list[Any]
    """The labels that occur, integers and strings."""
    refused: list[list[str]]
    """[name, reason]; the name "" is the tar itself."""
    endings: dict[str, int]
    """How often each ending occurs."""
    stamp: tuple[int, int]
    """Size and modification time (ns) of the tar."""

    def __len__(self) -> int:
        return len(self.offsets)


def index_of(file: Path, image: str | None = None, label: str | None = None, *, mapped: bool = True) -> Index:
    """The index of a tar, kept or made now.

    Args:
        image, label: the endings of picture and label where they are named; a label may also be a key of the .json.

    Raises:
        UserError: it cannot be opened, or is no tar.
    """
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{file} is no file that can be read at any place; copy the tar to a file.")
        kept = index_file(KIND, str(file.resolve()), image, label)
        key = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        index = _kept(kept, key, mapped)
        if index is not None:
            return index
        index = _walk(Reader(file), image, label)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}; mend or remove it.") from error
    except NoTar as reason:
        raise UserError(f"{file} {reason}; remove it, or write it again.") from reason
    if settled(found.st_mtime) and index.stamp == (found.st_size, found.st_mtime_ns):
        about = {"tar": key, "words": index.words, "refused": index.refused, "endings": index.endings}
        keep_index(kept, KIND, about, _arrays(index))
    return index


def _kept(file: Path, key: list[int], mapped: bool) -> Index | None:
    """The index that was made of this very tar."""
    found = kept_index(file, KIND, mapped=mapped)
    if found is None or found[0].get("tar") != key:
        return None
    about, arrays = found
    try:
        names, words = Strings(arrays["names"], arrays["ends"]), list(about["words"])
        offsets, sizes, codes = (arrays[k] for k in ("offsets", "sizes", "codes"))
        if not len(names) == len(offsets) == len(sizes) == len(codes):
            return None
        if len(codes) and not -1 <= int(codes.min()) <= int(codes.max()) < len(words):
            return None
        refused, endings = about["refused"], about["endings"]
        return Index(names, offsets, sizes, codes, words, refused, endings, (key[0], key[1]))
    except (LookupError, TypeError, ValueError):
        return None  # another program's file


def _arrays(index: Index) -> Arrays:
    return {
        "names": index.names.block,
        "ends": index.names.ends,
        "offsets": index.offsets,
        "sizes": index.sizes,
        "codes": index.codes,
    }


@dataclass
class _Sample:
    """The members with one key."""

    pictures: dict[str, Member] = field(default_factory=dict)
    label: Any = None
    rank: int = 9
    """Of the member that the label is from; the lowest counts."""


class _Walk:
    """The samples of a tar, as its members come by."""

    def __init__(self, tar: Reader, image: str | None, label: str | None):
        self.tar = tar
        self.image, self.label = (None if word is None else word.lower().lstrip(".") for word in (image, label))
        self.samples: dict[str, _Sample] = {}
        self.endings: Counter[str] = Counter()
        self.refused: list[list[str]] = []
        self.more = 0

    def refuse(self, name: str, reason: str) -> None:
        if len(self.refused) < TOLD:
            self.refused.append([name, reason])
        else:
            self.more += 1

    def add(self, member: Member) -> None:
        if member.reason:
            self.refuse(member.name, member.reason)
            return
        folder, _, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        ending = ending.lower()
        if not dot or not stem or "__MACOSX" in folder:  # hidden, or no file of a sample
            return
        self.endings["." + ending] += 1
        sample = self.samples.setdefault(f"{folder}/{stem}", _Sample())
        if self._is_picture(ending):
            if ending in sample.pictures:
                self.refuse(member.name, "occurs twice; the first is taken")
            elif member.size > MAX_PICTURE:
                self.refuse(member.name, f"has {member.size:,} bytes, more than {MAX_PICTURE:,}")
            else:
                sample.pictures[ending] = member
        rank = self._rank(ending)
        if rank < sample.rank:
            value = self._value(member, ending)
            if value is not None:
                sample.label, sample.rank = value, rank

    def _is_picture(self, ending: str) -> bool:
        if self.image is not None:
            return ending == self.image
        return "." + ending.rpartition(".")[2] in SUFFIXES

    def _rank(self, ending: str) -> int:
        """Which member a label is taken from first; 9 for none."""
        if self.label is None:
            return {"cls": 0, "json": 1}.get(ending, 9)
        return 0 if ending == self.label else 1 if ending == "json" else 9

    def _value(self, member: Member, ending: str) -> Any:
        """The label in a member: an integer or a word; None where there is none that can be read."""
        as_json = ending == "json"
        most = MAX_JSON if as_json else MAX_LABEL
        if member.size > most:
            self.refuse(member.name, f"no label is taken from it: it has {member.size:,} bytes, more than {most:,}")
            return None
        try:
            text = self.tar.read(member.offset, member.size).decode("utf-8-sig").strip()
            return _json_label(text, self.label) if as_json else _word(text)
        except UnicodeDecodeError:
            reason = "is not text in UTF-8"
        except (ValueError, RecursionError):
            reason = "is not valid JSON" if as_json else "holds more than a number or a word"
        self.refuse(member.name, f"no label is taken from it: it {reason}")
        return None


def _word(text: str) -> Any:
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    if len(text.splitlines()) > 1 or len(text) > 200:
        raise ValueError(text)
    return text or None


def _json_label(text: str, key: str | None) -> Any:
    about = json.loads(text)
    if not isinstance(about, dict):
        return None
    found = {str(k).lower(): v for k, v in about.items()} if key else about
    value = next((found[k] for k in ((key,) if key else LABEL_KEYS) if k in found), None)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return value if isinstance(value, str) or abs(value) < 1 << 53 else None


def _walk(tar: Reader, image: str | None, label: str | None) -> Index:
    walk = _Walk(tar, image, label)
    for member in members(tar):
        walk.add(member)
    chosen: list[tuple[Member, Any]] = []
    for key, sample in walk.samples.items():
        picture, reason = _picture(sample.pictures)
        if picture is not None:
            chosen.append((picture, sample.label))
        elif reason:
            walk.refuse(key.lstrip("/"), reason)
    chosen.sort(key=lambda pair: pair[0].offset)
    if walk.more:
        walk.refused.append(["", f"{walk.more} more members are left out for such reasons"])
    words: dict[Any, int] = {}
    codes = [-1 if value is None else words.setdefault(value, len(words)) for _, value in chosen]
    return Index(
        Strings.of(m.name for m, _ in chosen),
        np.array([m.offset for m, _ in chosen], np.int64),
        np.array([m.size for m, _ in chosen], np.int64),
        np.array(codes, np.int32),
        list(words),
        walk.refused,
        dict(walk.endings.most_common(20)),
        tar.stamp,
    )


def _picture(found: dict[str, Member]) -> tuple[Member | None, str]:
    """The picture of a sample, or why it cannot be told ("" when there is none)."""
    if len(found) < 2:
        return next(iter(found.values()), None), ""
    plain = sorted((e == "npy", e) for e in found if "." not in e)
    named = sorted(e for e in found if e.startswith(("image.", "img.")))
    if plain or named:
        return found[plain[0][1] if plain else named[0]], ""
    return None, f"holds several pictures ({', '.join(map(shown, sorted(found)[:4]))}); name one with --image-column"


# --- the source -----------------------------------------------------------------------------------------------
class TarSource(EncodedSource):
    """The samples of one or more tars, in the order of the tars and of the pictures in them.

    Args:
        files: the tars.
        image_column: the ending of the member that is the picture; None finds it.
        label_column: the ending of the member that is the label, or a key of the .json; None finds it.

    Raises:
        UserError: a file is no tar, there is no picture in any, or no label where one was named.
    """

    def __init__(
        self, files: list[Path], *, image_column: str | None = None, label_column: str | None = None, name: str = ""
    ):
        self.files, self.name = files, name or str(files[0])
        mapped = len(files) <= MAPPED
        self.parts = [index_of(f, image_column, label_column, mapped=mapped) for f in files]
        self.refused = self._refused()
        self._ends = np.cumsum([len(part) for part in self.parts])
        if not self._ends[-1]:
            raise self._nothing(image_column)
        self._labels()
        if label_column is not None and self.labels is None:
            raise UserError(
                f"No sample of {self.name} has a label in '.{label_column}' or under that key of its .json; "
                f"its members end in {self._endings()}."
            )
        self._reader = lru_cache(maxsize=OPEN)(Reader)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, i: int) -> tuple[int, int]:
        """The tar of sample i, and its number there."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self._ends, i, side="right"))
        return k, i - (int(self._ends[k - 1]) if k else 0)

    def path(self, i: int) -> str:
        k, row = self._place(i)
        return f"{self.files[k]}#{self.parts[k].names[row]}"

    def raw(self, i: int) -> bytes | Path:
        k, row = self._place(i)
        part = self.parts[k]
        try:
            tar = self._reader(self.files[k])
            if tar.stamp != part.stamp:
                raise BadFile(self.path(i), "its tar has changed since the run began")
            data = tar.read(int(part.offsets[row]), int(part.sizes[row]))
        except OSError as error:
            raise BadFile(self.path(i), (error.strerror or str(error)).lower()) from error
        if len(data) < int(part.sizes[row]):
            raise BadFile(self.path(i), "its tar has been cut off since the run began")
        return data

    def _refused(self) -> dict[str, str]:
        told: dict[str, str] = {}
        for file, part in zip(self.files, self.parts, strict=True):
            for name, reason in part.refused:
                path = f"{file}#{name}" if name else str(file)
                told[path] = f"{told[path]}; {reason}" if path in told else reason
        return told

    def _labels(self) -> None:
        words = list(dict.fromkeys(word for part in self.parts for word in part.words))
        numbers, self.class_names = numbered(words)
        if numbers is None:
            return
        number = dict(zip(words, numbers.tolist(), strict=True))
        tables = [np.array([*(number[word] for word in part.words), -1], np.int64) for part in self.parts]
        self.labels = np.concatenate([table[part.codes] for table, part in zip(tables, self.parts, strict=True)])

    def _endings(self) -> str:
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.endings)
        return ", ".join(shown(e) for e, _ in total.most_common(5)) or "nothing"

    def _nothing(self, image: str | None) -> UserError:
        first = next(iter(self.refused.items()), None)
        why = f"; refused was, for one, {first[0]}: {first[1]}" if first else ""
        what = "no picture" if image is None else f"no member that ends in '.{image}'"
        return UserError(f"{self.name} holds {what}, its members end in {self._endings()}{why}.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_reader": lru_cache(maxsize=OPEN)(Reader)})
