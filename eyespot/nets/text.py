"""Text towers: from token ids to one vector a text.

    transformer    CLIP's: causal, the feature stands at the last token (Radford et al., ICML 2021, arXiv 2103.00020)
    gru            bidirectional, with an attention over time for every feature (Merkx and Frank 2019, arXiv 1903.11393)
    bag            the mean of the tokens' embeddings
    hf:FOLDER      a model of the Hugging Face library, the mean of its last states

A tower takes what a tokenizer gives, tokens [B, L] and the number of ids of each text [B]; what fills a text up never
changes its vector.

    >>> tower = text_tower("transformer", vocab=1024, context=32)
    >>> tower(torch.randint(0, 1024, (2, 32)), torch.tensor([5, 32])).shape
    torch.Size([2, 128])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eyespot.errors import MissingExtra, UserError, unknown

TOWERS = ("transformer", "gru", "bag", "hf:FOLDER")


class TextTower(nn.Module):
    """A subclass gives `forward`.

    Attributes:
        embed_dim: D, width of the vectors.
    """

    embed_dim: int

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        """Vectors [B, D] of texts.

        Args:
            tokens: int64 [B, L].
            length: int64 [B], ids of each text that are no filling, from 1 to L.
        """
        raise NotImplementedError


def trimmed(tokens: Tensor, length: Tensor) -> Tensor:
    """The columns that any text uses: most batches are far shorter than the context."""
    return tokens[:, : int(length.max())]


def used(tokens: Tensor, length: Tensor) -> Tensor:
    """Which places of tokens [B, L] are no filling: bool [B, L]."""
    return torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of CLIP's released weights, x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """A pre-norm block of causal attention and a perceptron four times as wide."""

    def __init__(self, width: int, heads: int, quick: bool):
        super().__init__()
        self.heads, self.quick = heads, quick
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        hidden = self.fc1(self.norm2(x))
        return x + self.fc2(quick_gelu(hidden) if self.quick else F.gelu(hidden))


class TextTransformer(TextTower):
    """CLIP's text tower, without its projection. The last id of a text should be an end token: its place is the only
    one that sees the whole text.

    Args:
        vocab: number of ids.
        context: most tokens of a text.
        width, layers, heads: 512, 12 and 8 in CLIP.
        quick: the activation of the released weights in place of the exact GELU.
    """

    def __init__(
        self, vocab: int, context: int, width: int = 128, layers: int = 3, heads: int = 4, *, quick: bool = True
    ):
        super().__init__()
        if width % heads:
            raise UserError(
                f"The width {width} of the text tower is not a multiple of {heads} heads; change one of them."
            )
        self.embed_dim, self.context = width, context
        self.embedding = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList([TextBlock(width, heads, quick) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self._init()

    def _init(self) -> None:
        """As CLIP starts: the branches of a block are the smaller the deeper the tower."""
        width, depth = self.embed_dim, len(self.blocks)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        blocks: list[Any] = list(self.blocks)
        for block in blocks:
            nn.init.normal_(block.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            for part in (block.qkv, block.proj, block.fc1, block.fc2):
                nn.init.zeros_(part.bias)

    def states(self, tokens: Tensor, length: Tensor) -> Tensor:
        """Normed states [B, l, D] of all places, l the longest text."""
        tokens = trimmed(tokens, length)
        if tokens.shape[1] > self.context:
            raise UserError(
                f"A text has {tokens.shape[1]} tokens where {self.context} fit; cut it, or raise the context."
            )
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        states = self.states(tokens, length)
        return states[torch.arange(len(states), device=states.device), length - 1]


class TextBag(TextTower):
    """The mean of the tokens' embeddings: what is said, not in which order."""

    def __init__(self, vocab: int, width: int = 128):
        super().__init__()
        self.embed_dim = width
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        tokens = trimmed(tokens, length)
        states = self.embedding(tokens).masked_fill(~used(tokens, length)[..., None], 0.0)
        return states.sum(1) / length[:, None]


class VectorAttention(nn.Module):
    """Attention over time, one for every feature: sum_t softmax_t(V tanh(U h_t + b) + c) * h_t.

    Args:
        dim: features of a state.
        hidden: rows of U.
    """

    def __init__(self, dim: int, hidden: int = 128):
        super().__init__()
        self.hidden, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        for part in (self.hidden, self.out):
            nn.init.orthogonal_(part.weight)

    def weights(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D], each feature sums to 1 over T; 0 where the mask bool [B, T] is false."""
        scores = self.out(torch.tanh(self.hidden(states)))
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)
        return scores.softmax(1)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D] of states [B, T, D]."""
        return (self.weights(states, mask) * states).sum(1)


class TextGRU(TextTower):
    """A bidirectional GRU whose states are pooled by one or more vector attentions, side by side.

    Args:
        vocab: number of ids; 0 fills up.
        width: states of one direction (1024 in the paper).
        letters: width of the embeddings (20).
        hidden: of the attention (128).
        heads: attentions; the vector is heads * 2 * width wide.
    """

    def __init__(self, vocab: int, width: int = 128, letters: int = 20, hidden: int = 128, heads: int = 1):
        super().__init__()
        self.embed_dim = heads * 2 * width
        self.embedding = nn.Embedding(vocab, letters, padding_idx=0)
        self.gru = nn.GRU(letters, width, batch_first=True, bidirectional=True)
        self.heads = nn.ModuleList([VectorAttention(2 * width, hidden) for _ in range(heads)])

    def states(self, tokens: Tensor, length: Tensor) -> Tensor:
        """States [B, l, 2 * width], l the longest text; 0 after the end of a text."""
        x = self.embedding(trimmed(tokens, length))
        packed = pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        return self.pooled(self.states(tokens, length), tokens, length)

    def pooled(self, states: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
        mask = used(trimmed(tokens, length), length)
        return torch.cat([head(states, mask) for head in self.heads], 1)


class HuggingFaceTower(TextTower):
    """A text model of the Hugging Face library: the mean of its last states over the text.

    Args:
        name: folder or name of the model; a folder with config.json alone gives random weights.
    """

    def __init__(self, name: str):
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise MissingExtra("transformers", "language", f"The text tower hf:{name}") from error
        folder = Path(name)
        bare = folder.is_dir() and not any(p.suffix in (".safetensors", ".bin") for p in folder.iterdir())
        try:
            config: Any = AutoConfig.from_pretrained(name)
            self.net: Any = AutoModel.from_config(config) if bare else AutoModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(f"No text model can be loaded from '{name}' ({reason}); give its folder.") from error
        for part in ("pooler",):  # not used: parameters without a gradient would end a distributed run
            if getattr(self.net, part, None) is not None:
                setattr(self.net, part, None)
        self.embed_dim = int(config.hidden_size)

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        tokens = trimmed(tokens, length)
        mask = used(tokens, length)
        states = self.net(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return states.masked_fill(~mask[..., None], 0.0).sum(1) / length[:, None]


def text_tower(
    name: str, *, vocab: int, context: int, width: int = 128, layers: int = 3, heads: int = 4, **options: Any
) -> TextTower:
    """A tower by name, see the head of this file.

    Args:
        name: "transformer", "gru", "bag" or "hf:FOLDER".
        vocab: ids of the tokenizer.
        context: most tokens of a text.
        width: of the tower; a gru's vector is twice as wide.
        layers, heads: of the transformer.
        options: of the tower's class.

    Raises:
        UserError: another name, or what it names cannot be read.
    """
    head, _, folder = name.partition(":")
    if head == "hf" and folder:
        return HuggingFaceTower(folder)
    if name == "transformer":
        return TextTransformer(vocab, context, width, layers, heads, **options)
    if name in ("gru", "bag"):
        return TextGRU(vocab, width, **options) if name == "gru" else TextBag(vocab, width)
    raise unknown("text tower", name, TOWERS)
