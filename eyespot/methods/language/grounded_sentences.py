"""Grounded sentences: learning semantic sentence representations from visually grounded language without lexical
knowledge (Merkx and Frank; Natural Language Engineering 25(4), 2019; arXiv 1903.11393).

A sentence encoder that reads characters, and knows no word, is trained only to bring captions to their pictures. The
vectors of sentences that come out are then compared with human judgements of similarity, without any further training
(protocol `sts`).

    L = 1 / B^2 sum over i != j of max(0, m + S_ij - S_jj) + max(0, m + S_ij - S_ii),   S_ij = cos(picture i, caption j)

Characters pass a bidirectional GRU; its states are pooled by an attention that has weights over time for every feature:
sum_t softmax_t(V tanh(U h_t + b) + c) * h_t. A picture is one linear layer on the features of a network that the paper
takes pre-trained and frozen (`freeze=true` with --init); without weights to start from it is trained along.

Paper and code: characters are bytes of UTF-8 (`tokenizer=bytes`), which for English are the characters, so that any
script is fine; `printable` is the paper's 100 printable ASCII characters. Filling takes no part in the attention; in
the authors' code it takes soft-max mass, so that a vector depends on the longest caption of its batch. The mean is over
B * B entries with the zeros of the diagonal, as in the code, and the character with number 0, the digit zero, is
learned like others, where the code takes it for filling. Both matrices of an attention start orthogonal, which the code
does for one of them, twice. Of several heads the maps of all captions of a batch are kept apart, where the code looks
at the first. The rate falls by one cosine here; the paper's goes up and down in cycles of four epochs
(`eyespot.train.cyclic`), and its ensembles add the vectors of the networks at the end of several cycles.

    >>> method = GroundedSentences(backbone("resnet8", image_size=64))
    >>> batch = {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "text": ["a red barn", "two boats"]}
    >>> method(method.views(batch, Draws(index=range(2))))
    {'hinge': tensor(...)}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.losses.contrastive import cosines
from eyespot.losses.image_text import head_diversity, hinge_pairs
from eyespot.methods.method import Info, Recipe
from eyespot.methods.pairs import PairConfig, PairMethod, equal_captions
from eyespot.methods.ranges import WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.text import TextGRU, trimmed, used
from eyespot.process import gather


@dataclass(frozen=True)
class GroundedSentencesConfig(PairConfig):
    margin: float = 0.2
    """m, by how much a pair must be more alike than either side and a stranger."""
    equal: Literal["pairs", "negatives"] = "pairs"
    """Whether captions that are equal within a batch are left out of each other's negatives."""
    freeze: bool = False
    """Whether the picture's network keeps the weights it starts from (true in the paper, with pre-trained ones)."""
    tokenizer: str = "bytes"
    """Characters: bytes of UTF-8, printable (the paper's), or any other tokenizer of the library."""
    context: int = 128
    """Most characters of a caption; longer ones are cut."""
    vocab: int = 1024
    """Entries, where the tokenizer learns byte pairs."""
    text_width: int = 128
    """States of one direction of the GRU (1024 in the paper)."""
    letters: int = 20
    """Width of the embeddings of characters."""
    attention: int = 128
    """Hidden units of an attention."""
    heads: int = 1
    """Attentions, whose results stand side by side (2 on Flickr8k)."""
    diversity: float = 1.0
    """Weight of the term that keeps several heads apart."""


class GroundedSentences(PairMethod):
    Config = GroundedSentencesConfig
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=0.0,
        batch_size=32,
        epochs=32,
        warmup_epochs=1,
        image_size=224,
        expected="frozen ResNet-152, COCO: Pearson 88.1 on STS15 Images, 70.7 on STS-B (the authors' supplement)",
    )

    def __init__(
        self,
        backbone: Backbone,
        config: GroundedSentencesConfig = GroundedSentencesConfig(),
        info: Info | None = None,
    ):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, margin=(0.0, 2.0), text_width=WIDTH, letters=WIDTH, attention=WIDTH, heads=WIDTH)
        check_ranges(c, context=(4, None), diversity=(0.0, None))
        self.text = TextGRU(self.tokenizer.vocab, c.text_width, c.letters, c.attention, c.heads)
        self.image_projection = nn.Linear(backbone.embed_dim, self.text.embed_dim)
        nn.init.xavier_uniform_(self.image_projection.weight)
        if c.freeze:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> GroundedSentences:
        """A frozen network of the pictures stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze:
            self.backbone.eval()
        return self

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return super().views(batch | ended(batch), draws)

    # --- features -------------------------------------------------------------------------------------------------
    def image_features(self, pixels: Tensor) -> Tensor:
        return self.image_projection(self.backbone(pixels))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        views = self.tokens([sentence(text) for text in texts], self.place)
        return self.text(views["tokens"], views["length"])

    # --- training -------------------------------------------------------------------------------------------------
    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """ "image" and "text" [B, D], not normalised, "caption" [B] where it is known; of several heads "diversity"."""
        tokens, length = views["tokens"], views["length"]
        states = self.text.states(tokens, length)
        encoded = {"image": self.image_features(views["image"]), "text": self.text.pooled(states, tokens, length)}
        if self.config.heads > 1:
            encoded["diversity"] = self._diversity(states, used(trimmed(tokens, length), length), encoded["text"])
        return encoded | {k: views[k] for k in ("caption",) if k in views}

    def _diversity(self, states: Tensor, mask: Tensor, text: Tensor) -> Tensor:
        """The heads' first matrices, attention maps and parts of the vector, kept apart."""
        heads: list[Any] = list(self.text.heads)
        parts = [part[:, None] for part in text.chunk(len(heads), 1)]
        terms = ([h.hidden.weight for h in heads], [h.weights(states, mask) for h in heads], parts)
        return torch.stack([head_diversity(term) for term in terms]).sum()

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        similarity = cosines(gather(encoded["image"]), gather(encoded["text"]))
        pairs = None
        if self.config.equal == "pairs" and "caption" in encoded:
            pairs = equal_captions(gather(encoded["caption"]))
        terms = {"hinge": hinge_pairs(similarity, self.config.margin, pairs)}
        if "diversity" in encoded:
            terms["diversity"] = self.config.diversity * encoded["diversity"]
        return terms

    def plateau(self, batch: int) -> dict[str, float]:
        """All vectors equal: every negative costs the margin, in both directions."""
        return {"hinge": 2 * self.config.margin * (batch - 1) / batch}


def sentence(text: str) -> str:
    """A caption with the full stop that it should end with."""
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?", "。")) else f"{text} ."


def ended(batch: dict[str, Any]) -> dict[str, Any]:
    """The captions of a batch with their full stops."""
    if "captions" in batch:
        return {"captions": [tuple(sentence(c) for c in captions) for captions in batch["captions"]]}
    return {"text": [sentence(text) for text in batch["text"]]}
