"""What methods of pictures with captions share: the caption of a step, its tokens, towers, and the features that
protocols compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.methods.method import Info, Method, MethodConfig, Tools
from eyespot.methods.ranges import SHARE, WIDTH, check_ranges
from eyespot.nets import tokenizers
from eyespot.nets.text import TextTower, text_tower
from eyespot.nets.tokenizers import BYTES, Tokenizer
from eyespot.views.square import square_view
from eyespot.views.tiles import bar_tiles, text_tiles

MANY = 1 << 30
"""A number far above any number of captions, drawn and counted round."""


@dataclass(frozen=True)
class PairConfig(MethodConfig):
    crop_min: float = 0.6
    """Least area of the square that a view keeps, as a share of the largest square (1 in CLIP)."""
    flip: float = 0.0
    """Probability that a view is mirrored left to right; captions may say where things are."""

    def __post_init__(self) -> None:
        check_ranges(self, crop_min=(0.01, 1.0), flip=SHARE)


class PairMethod(Method):
    """A method whose samples are "image" and "text". A subclass builds its text tower by `build_text`, and gives
    `image_features` and `text_features`.

    Attributes:
        text: the text tower.
        unit: whether features are compared by their cosine, else by their product.
    """

    needs = ("image", "text")
    unit: bool = True

    def __init__(self, backbone: Any, config: Any, info: Info | None = None):
        super().__init__(backbone, config, info)
        self._tokenizer: Tokenizer | None = None
        self._learned: Any = None

    # --- text ---------------------------------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer by the config's name; with the merges of `prepare` once they are there."""
        merges = self.prepared.get("merges")
        if self._tokenizer is None or self._learned is not merges:
            vocab = getattr(self.config, "vocab", 2 * BYTES + 2)
            self._tokenizer, self._learned = tokenizers.tokenizer(self.config.tokenizer, vocab, merges), merges
        return self._tokenizer

    def build_text(self, name: str, **options: Any) -> TextTower:
        """The tower of that name for the tokenizer of the config; both of one Hugging Face folder, or neither."""
        theirs = [n.partition(":")[2] for n in (name, self.config.tokenizer) if n.startswith("hf:")]
        if len(theirs) != 2 and name.startswith("hf:"):
            raise UserError(f"The text tower {name} has words of its own; set tokenizer={name} too.")
        return text_tower(name, vocab=self.tokenizer.vocab, context=self.config.context, **options)

    def tokens(self, texts: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The "tokens" int64 [B, context] and "length" int64 [B] of texts."""
        return self.tokenizer(texts, self.config.context, device)

    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        """Byte pairs of the training captions, where the tokenizer learns them."""
        if self.config.tokenizer != "pairs":
            return {}
        return {"merges": tokenizers.learn_merges(every_caption(data), self.config.vocab - 2 * BYTES - 2)}

    # --- views --------------------------------------------------------------------------------------------------
    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Views "image" [B, C, S, S] in [0, 1], "tokens" and "length" of one caption of each, and "caption" int64 [B],
        equal where captions are equal."""
        c, texts = self.config, drawn_captions(batch, draws)
        image = square_view(batch["image"], draws.scope("image"), c.image_size, c.crop_min, c.flip)
        return {"image": image, **self.tokens(texts, draws.device), "caption": text_keys(texts).to(draws.device)}

    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """How well each picture fits the captions of all the others: its own is marked."""
        texts = drawn_captions(batch, draws)
        pixels = square_view(batch["image"], draws.scope("image"), self.config.image_size)
        fit = self.match(self.image_features(pixels.to(next(self.parameters()).dtype)), self.text_features(texts))
        bars = bar_tiles(fit.float(), torch.arange(len(texts)))
        return {"captions": {"picture": pixels, "caption": text_tiles(texts), "fits captions": bars}}

    # --- what protocols compare -----------------------------------------------------------------------------------
    def image_features(self, pixels: Tensor) -> Tensor:
        """Features [B, E] of clean pictures [B, C, S, S] in [0, 1], in the space of both."""
        raise UserError(f"{type(self).__name__} does not say where a picture lies among texts.")

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features [n, E] of texts, in the space of both."""
        raise UserError(f"{type(self).__name__} does not say where a text lies among pictures.")

    def match(self, image: Tensor, text: Tensor) -> Tensor:
        """How well pictures [N, E] and texts [M, E] fit, by their features: [N, M]."""
        return F.normalize(image, dim=1) @ F.normalize(text, dim=1).T if self.unit else image @ text.T

    @property
    def place(self) -> torch.device:
        """Where the method is."""
        return next(self.parameters()).device


def drawn_captions(batch: Mapping[str, Any], draws: Draws) -> list[str]:
    """One caption of each sample: of all that it has ("captions") one that is drawn, else the one there is ("text")."""
    if "captions" not in batch:
        return [str(text) for text in batch["text"]]
    number = draws.integers("caption", MANY).tolist()
    return [captions[k % len(captions)] for captions, k in zip(batch["captions"], number, strict=True)]


def text_keys(texts: Sequence[str]) -> Tensor:
    """int64 [B], equal for equal texts: 63 bits of a hash, so that processes may compare them."""
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(d, "little") >> 1 for d in digests], dtype=torch.int64)


def every_caption(data: Any) -> Iterable[str]:
    """All captions of the data; the pictures are not read where the source knows them without."""
    texts = getattr(data.source, "texts", None)
    return texts.all() if texts is not None else _read_captions(data)


def _read_captions(data: Any) -> Iterator[str]:
    for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 256)):
        batch = data.batch(rows)
        yield from (c for captions in batch["captions"] for c in captions) if "captions" in batch else batch["text"]


def equal_captions(caption: Tensor) -> Tensor:
    """Which samples of a batch have equal captions, bool [N, N], for the numbers of `text_keys`."""
    return caption[:, None] == caption[None, :]


def check_text(config: Any) -> None:
    """The arguments that all text towers share."""
    check_ranges(config, context=(4, None), vocab=(2 * BYTES + 2, None), text_width=WIDTH)
