"""Text to numbers: byte pairs as CLIP has them, learned from captions or read from CLIP's file; bytes; characters; the
tokenizers of the Hugging Face library.

    bytes          one token a byte of UTF-8, of any script, without any file
    pairs          CLIP's byte pairs, the merges learned from the training captions (`learn_merges`); bytes until then
    clip           CLIP's own 49,408 entries, from the package open-clip-torch or "clip:FILE"
    printable      one token a printable ASCII character, as string.printable orders them; others are left out
    hf:FOLDER      a folder or name of the Hugging Face library

Every tokenizer gives int64 ids [B, context], filled up with `pad`, and the number of ids of each text, so that a tower
never guesses where a text ends.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import string
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyespot.errors import MissingExtra, UserError, unknown

BYTES = 256
KINDS = ("bytes", "pairs", "clip", "printable", "hf:FOLDER")
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
CLIP_FILE, CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz", 48_894
MOST_WORDS = 50_000
"""Most different words from which merges are learned: the frequent ones decide."""


class Tokenizer(ABC):
    """Attributes:
    vocab: number of ids.
    pad: what short texts are filled up with.
    special: ids that are no words: start, end, filling.
    """

    vocab: int
    pad: int = 0
    special: tuple[int, ...] = (0,)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """All ids of a text, with its start and end where the tokenizer has them."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, as far as they keep it."""

    def cut(self, ids: list[int], context: int) -> list[int]:
        """The first `context` ids; the last of them stays the end where there is one."""
        return ids[:context]

    def __call__(self, texts: Sequence[str], context: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """{"tokens": int64 [B, context], "length": int64 [B] ids that are no filling (at least 1)}."""
        rows = [self.cut(self.encode(text), context) or [self.pad] for text in texts]
        tokens = np.full((len(rows), context), self.pad, np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        length = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        return {"tokens": torch.from_numpy(tokens).to(device), "length": length.to(device)}


# --- bytes and byte pairs -----------------------------------------------------------------------------------------
def cleaned(text: str) -> str:
    """As CLIP cleans a text: HTML marks unescaped twice, white space to single spaces, lower case. Unicode is composed
    (NFC); text that was decoded with the wrong code page is not repaired."""
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
    return " ".join(text.split()).lower()


@lru_cache(maxsize=1 << 16)
def _class(character: str) -> str:
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else " " if character.isspace() else "."


def words(text: str) -> Iterator[str]:
    """CLIP's words: contractions, runs of letters, single digits, runs of other signs; white space parts them."""
    for kind, group in groupby(text, _class):
        if kind == "N":
            yield from group
        elif kind != " ":
            yield "".join(group)


def split_words(text: str) -> list[str]:
    """`words`, with the contractions of English kept whole: it's -> it, 's."""
    found, start = [], 0
    at = text.find("'")
    while at >= 0:
        part = next((c for c in sorted(CONTRACTIONS, key=len, reverse=True) if text.startswith(c, at)), None)
        # a run of signs takes the apostrophe, as a pattern that is read from the left does
        joined = at > start and _class(text[at - 1]) == "."
        if part is not None and not joined:
            found += [*words(text[start:at]), part]
            start = at + len(part)
            at = text.find("'", start)
        else:
            at = text.find("'", at + 1)
    return [*found, *words(text[start:])]


class BytePairs(Tokenizer):
    """CLIP's tokenizer: a word is its bytes, the last one marked as the word's end; pairs are merged, the pair that was
    learned first goes first.

    Ids: 256 bytes, the same 256 at the end of a word, the merges, start, end. They are filled up with 0.

    Args:
        merges: int64 [M, 2], ids that are merged, in the order they were learned.
        order: the byte that each of the first 256 ids stands for; None: the byte itself.
        capacity: merges that there is room for, so that the number of ids is known before any is learned.
    """

    def __init__(
        self, merges: np.ndarray | Tensor | None = None, order: Sequence[int] | None = None, capacity: int | None = None
    ):
        pairs = np.zeros((0, 2), np.int64) if merges is None else np.asarray(merges, np.int64).reshape(-1, 2)
        room = len(pairs) if capacity is None else capacity
        if len(pairs) > room:
            raise UserError(f"{len(pairs)} merges do not fit into room for {room}; give a larger vocabulary.")
        self.rank = {(a, b): r for r, (a, b) in enumerate(pairs.tolist()) if a >= 0}
        self.order = list(range(BYTES)) if order is None else list(order)
        self.id_of_byte = {byte: k for k, byte in enumerate(self.order)}
        self.start = 2 * BYTES + room
        self.end = self.start + 1
        self.vocab = self.start + 2
        self.special = (self.start, self.end)
        self._pairs = pairs
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids = [i for word in split_words(cleaned(text)) for i in self._word(word)]
        return [self.start, *ids, self.end]

    def cut(self, ids: list[int], context: int) -> list[int]:
        return ids if len(ids) <= context else [*ids[: context - 1], self.end]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            if len(self._known) >= MOST_WORDS:
                self._known.clear()
            self._known[word] = merged(self.letters(word), self.rank)
        return self._known[word]

    def letters(self, word: str) -> list[int]:
        """The ids of a word before anything is merged."""
        ids = [self.id_of_byte[b] for b in word.encode("utf-8", "replace")]
        return [*ids[:-1], ids[-1] + BYTES]

    def decode(self, ids: Sequence[int]) -> str:
        """A space after every word; start, end and what follows it are left out."""
        kept = list(ids)[: list(ids).index(self.end)] if self.end in ids else list(ids)
        raw = b"".join(self._bytes(i) for i in kept if i < self.start)
        return raw.decode("utf-8", "replace")

    def _bytes(self, i: int) -> bytes:
        if i < BYTES:
            return bytes([self.order[i]])
        if i < 2 * BYTES:
            return bytes([self.order[i - BYTES]]) + b" "
        a, b = self._pairs[i - 2 * BYTES].tolist()
        return self._bytes(a) + self._bytes(b)


def merged(ids: list[int], rank: dict[tuple[int, int], int]) -> list[int]:
    """The ids of a word after all merges, the earliest-learned pair first, each from left to right."""
    while len(ids) > 1:
        best = min(((rank.get(pair, -1), pair) for pair in pairwise(ids) if pair in rank), default=None)
        if best is None:
            break
        ids = joined(ids, best[1], 2 * BYTES + best[0])
    return ids


def joined(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Every occurrence of a pair replaced by one id, from left to right."""
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def learn_merges(texts: Iterable[str], merges: int, least: int = 2) -> Tensor:
    """Byte pairs (Sennrich, Haddow and Birch, ACL 2016, algorithm 1) of texts, in CLIP's form: int64 [M, 2].

    Args:
        texts: captions.
        merges: most pairs to learn; M is smaller where no pair occurs `least` times.
        least: how often a pair must occur.

    Of equally frequent pairs the one with the smaller ids is learned first, so the order of the texts does not matter.
    """
    plain = BytePairs()
    counted = Counter(word for text in texts for word in split_words(cleaned(text)))
    common = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]
    spelled, often = [plain.letters(word) for word, _ in common], [count for _, count in common]
    total: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = {}
    for k, ids in enumerate(spelled):
        for pair in pairwise(ids):
            total[pair] += often[k]
            where.setdefault(pair, set()).add(k)
    learned: list[tuple[int, int]] = []
    while total and len(learned) < merges:
        pair, count = max(total.items(), key=lambda item: (item[1], -item[0][0], -item[0][1]))
        if count < least:
            break
        new = 2 * BYTES + len(learned)
        learned.append(pair)
        for k in sorted(where.pop(pair)):
            before, spelled[k] = spelled[k], joined(spelled[k], pair, new)
            for old in pairwise(before):
                total[old] -= often[k]
                if total[old] <= 0:
                    del total[old]
            for fresh in zip(spelled[k], spelled[k][1:], strict=False):
                total[fresh] += often[k]
                where.setdefault(fresh, set()).add(k)
        total.pop(pair, None)
    return torch.tensor(learned, dtype=torch.int64).reshape(-1, 2)


class Bytes(Tokenizer):
    """One id a byte of UTF-8, 1 to 256, as the text is: for English exactly one a character. 0 fills up."""

    vocab = BYTES + 1

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode("utf-8", "replace")]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 1 for i in ids if i > 0).decode("utf-8", "replace")


class Printable(Tokenizer):
    """One id a printable ASCII character, 1 to 100 in the order of string.printable; other characters are left out."""

    vocab = len(string.printable) + 1

    def encode(self, text: str) -> list[int]:
        return [string.printable.index(c) + 1 for c in text if c in string.printable]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(string.printable[i - 1] for i in ids if i > 0)


# --- CLIP's own file ----------------------------------------------------------------------------------------------
def clip_order() -> list[int]:
    """The byte that each of CLIP's first 256 ids stands for: those that print first, then the rest."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return prints + [b for b in range(BYTES) if b not in prints]


def clip_tokenizer(file: str | Path | None = None) -> BytePairs:
    """CLIP's tokenizer with its 49,408 entries.

    Args:
        file: its merges, bpe_simple_vocab_16e6.txt(.gz); None: the copy in the package open-clip-torch.

    Raises:
        UserError: no such file, or it holds something else.
    """
    path = Path(file).expanduser() if file else _installed_clip()
    if not path.is_file():
        raise UserError(f"There is no file of merges '{path}'; give {CLIP_FILE}, or install open-clip-torch.")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = raw.decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
        return BytePairs(clip_merges([tuple(line.split()) for line in lines]), clip_order())
    except (OSError, UnicodeDecodeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' does not hold CLIP's merges ({error}); give {CLIP_FILE}.") from error


def clip_merges(pairs: Sequence[tuple[str, ...] | None]) -> np.ndarray:
    """Merges as CLIP writes them, two words a line, as ids: int64 [M, 2]; a None (not known) is -1, -1.

    Raises:
        KeyError: a part that no line before has made.
        ValueError: a line that is not two parts.
    """
    shown = BYTES - 68  # bytes that print stand for themselves, the other 68 for the characters from 256 on
    letters = [chr(b) if k < shown else chr(BYTES + k - shown) for k, b in enumerate(clip_order())]
    number = {letter: k for k, letter in enumerate(letters)} | {f"{c}</w>": BYTES + k for k, c in enumerate(letters)}
    merges = np.full((len(pairs), 2), -1, np.int64)
    for r, pair in enumerate(pairs):
        if pair is not None:
            first, second = pair
            merges[r] = number[first], number[second]
            number.setdefault(first + second, 2 * BYTES + r)
    return merges


def _installed_clip() -> Path:
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (Path(folder) / CLIP_FILE).is_file():
                return Path(folder) / CLIP_FILE
    raise MissingExtra("open-clip-torch", "language", "CLIP's own tokenizer")


# --- Hugging Face -------------------------------------------------------------------------------------------------
class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face library.

    Args:
        name: folder with its files, or a name on the hub.
    """

    def __init__(self, name: str):
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingExtra("transformers", "language", f"The tokenizer hf:{name}") from error
        try:
            self.inner: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"No tokenizer can be loaded from '{name}' ({_first_line(error)}); give its folder."
            ) from error
        self.vocab = len(self.inner)
        self.pad = int(self.inner.pad_token_id or 0)
        self.special = tuple(int(i) for i in self.inner.all_special_ids)

    def encode(self, text: str) -> list[int]:
        return list(self.inner(text, truncation=False, padding=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def cut(self, ids: list[int], context: int) -> list[int]:
        """The last id stays when it is a special one: an end, a separator."""
        if len(ids) <= context:
            return ids
        last = [ids[-1]] if ids[-1] in self.special else []
        return [*ids[: context - len(last)], *last]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


# --- by name ------------------------------------------------------------------------------------------------------
def tokenizer(name: str, vocab: int = 1024, merges: np.ndarray | Tensor | None = None) -> Tokenizer:
    """A tokenizer by name, see the head of this file.

    Args:
        name: "bytes", "pairs", "clip", "clip:FILE", "printable" or "hf:FOLDER".
        vocab: ids of "pairs": 514 and the merges.
        merges: of "pairs", from `learn_merges`; None: words stay bytes.

    Raises:
        UserError: another name, or what it names cannot be read.
    """
    head, _, tail = name.partition(":")
    if head == "hf" and tail:
        return HuggingFaceTokenizer(tail)
    if head == "clip":
        return clip_tokenizer(tail or None)
    if name == "pairs":
        if vocab < 2 * BYTES + 2:
            raise UserError(f"vocab={vocab} is too small for byte pairs; give {2 * BYTES + 2} or more.")
        return BytePairs(merges, capacity=vocab - 2 * BYTES - 2)
    if name in ("bytes", "printable"):
        return Bytes() if name == "bytes" else Printable()
    raise unknown("tokenizer", name, KINDS)
