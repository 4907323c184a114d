"""CLIP: learning transferable visual models from natural language supervision (Radford, Kim, Hallacy et al.; ICML 2021;
arXiv 2103.00020).

A batch of pictures with captions supervises itself: of its N x N pairings the model must say which N are real. A
network for pictures and one for text are trained together, and afterwards text makes classifiers: a picture belongs to
the class whose description lies nearest.

    L = 1/2 [ cross entropy over rows + over columns ] of exp(t) f_i g_j,  f and g of unit length        (figure 3)

Which of a picture's captions a step sees is drawn anew each epoch. The text network is a causal transformer, read at
its end token. Its words are byte pairs, learned from the training captions before training and kept with the run, so
that no file is needed and any script is fine; `tokenizer=clip` takes CLIP's own 49,408 entries, and `text` and
`tokenizer` as hf:FOLDER a model of the Hugging Face library. `objective=sigmoid` is SigLIP's loss, `objective=words`
the paper's baseline that predicts the bag of a caption's words from the picture.

Paper and code: captions that are equal within a batch count as pairs (`equal=pairs`), where paper and code make them
each other's negatives; without equal captions both are the same. Negatives are those of all processes, with gradients
to both sides, which the paper does not say. As in the code, t starts at log(1 / 0.07) and is held at most log 100, the
activation of the text network is x sigmoid(1.702 x), and a text that is too long keeps its end token. The text network
is small here (512 wide with 12 layers in the paper), and the picture's network is any backbone of the library, read
before its projection by all other protocols. Views are squares of 0.6 to
1 of the largest one (1 in the paper), the rate is higher and the decay lower, as few pictures need them.

    >>> method = CLIP(backbone("resnet8", image_size=64))
    >>> batch = {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "text": ["a red barn", "two boats"]}
    >>> method(method.views(batch, Draws(index=range(2))))
    {'contrast': tensor(...)}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.losses.contrastive import cosines
from eyespot.losses.image_text import sigmoid_pairs, symmetric_contrast, word_prediction
from eyespot.methods.method import Info, Recipe
from eyespot.methods.pairs import PairConfig, PairMethod, check_text, equal_captions
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.text import used
from eyespot.process import gather


@dataclass(frozen=True)
class CLIPConfig(PairConfig):
    objective: Literal["contrast", "sigmoid", "words"] = "contrast"
    """CLIP's cross entropies, SigLIP's sigmoids, or the prediction of a caption's words (the paper's baseline)."""
    equal: Literal["pairs", "negatives"] = "pairs"
    """What captions that are equal within a batch are to each other's pictures."""
    temperature: float | None = None
    """Where the learned temperature starts, whose inverse scales the cosines; none is 0.07 (sigmoid: 0.1)."""
    largest_scale: float = 100.0
    """What the scale is held below."""
    out: int = 128
    """Width of the space of both (512 in CLIP B/32)."""
    text: str = "transformer"
    """Text network: transformer, gru, bag, or hf:FOLDER."""
    tokenizer: str = "pairs"
    """Words of the text: pairs (learned from the captions), bytes, clip, clip:FILE, printable, or hf:FOLDER."""
    vocab: int = 1024
    """Entries of learned byte pairs (49,408 in CLIP)."""
    context: int = 40
    """Most tokens of a caption; longer ones are cut (77 in CLIP)."""
    text_width: int = 128
    """Width of the text network (512 in CLIP)."""
    text_layers: int = 2
    """Blocks of the transformer (12 in CLIP)."""
    text_heads: int = 4
    """Attention heads of the transformer (8 in CLIP)."""
    freeze_text: bool = False
    """Whether the text network keeps its weights: for a trained one of the Hugging Face library."""


class CLIP(PairMethod):
    Config = CLIPConfig
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        lr_rule="sqrt",
        lr_batch=128,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        eps=1e-6,
        batch_size=128,
        epochs=30,
        warmup_epochs=2,
        image_size=224,
        expected="400 million pairs, 32 epochs: ImageNet zero-shot 59.6 (ResNet-50), 63.2 (ViT-B/32), 76.2 (ViT-L/14 "
        "at 336 px) (the paper)",
    )

    def __init__(self, backbone: Backbone, config: CLIPConfig = CLIPConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, temperature=POSITIVE, largest_scale=POSITIVE, out=WIDTH, text_layers=WIDTH, text_heads=WIDTH)
        check_text(c)
        if c.objective == "words":
            self.unit = False
            self.words = nn.Linear(backbone.embed_dim, self.tokenizer.vocab)
            return
        options = {"layers": c.text_layers, "heads": c.text_heads}
        self.text = self.build_text(c.text, width=c.text_width, **options)
        self.image_projection = nn.Linear(backbone.embed_dim, c.out, bias=False)
        self.text_projection = nn.Linear(self.text.embed_dim, c.out, bias=False)
        for part in (self.image_projection, self.text_projection):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        if c.freeze_text:
            self.text.requires_grad_(False)
        # one number, but with a dimension, which sharding needs
        start = c.temperature or (0.1 if c.objective == "sigmoid" else 0.07)
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(start)))
        if c.objective == "sigmoid":
            self.bias = nn.Parameter(torch.full((1,), -10.0))

    def train(self, mode: bool = True) -> CLIP:
        """A frozen text network stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_text and self.config.objective != "words":
            self.text.eval()
        return self

    # --- features -------------------------------------------------------------------------------------------------
    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, out], or for `objective=words` the logarithm of each word's probability [B, vocab]."""
        features = self.backbone(pixels)
        if self.config.objective == "words":
            return self.words(features).log_softmax(1)
        return self.image_projection(features)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[n, out], or for `objective=words` each word's share of the text [n, vocab]."""
        views = self.tokens(texts, self.place)
        if self.config.objective == "words":
            counts = self._counts(views)
            return counts / counts.sum(1, keepdim=True).clamp_min(1)
        return self._text(views)

    def _text(self, views: dict[str, Tensor]) -> Tensor:
        return self.text_projection(self.text(views["tokens"], views["length"]))

    def _counts(self, views: dict[str, Tensor]) -> Tensor:
        """How often each entry stands in a caption, [B, vocab]; start and end are no words."""
        tokens, weight = views["tokens"], self.words.weight
        counts = weight.new_zeros(len(tokens), self.tokenizer.vocab)
        counts = counts.scatter_add(1, tokens, used(tokens, views["length"]).to(weight.dtype))
        counts[:, list(self.tokenizer.special)] = 0
        return counts

    # --- training -------------------------------------------------------------------------------------------------
    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """ "image" and "text" [B, out], not normalised, and "caption" [B] where it is known. For `objective=words`
        "logits" and "counts" [B, vocab]."""
        if self.config.objective == "words":
            return {"logits": self.words(self.backbone(views["image"])), "counts": self._counts(views)}
        encoded = {"image": self.image_projection(self.backbone(views["image"])), "text": self._text(views)}
        return encoded | {k: views[k] for k in ("caption",) if k in views}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        if c.objective == "words":
            return {"words": word_prediction(encoded["logits"], encoded["counts"])}
        scale = self.log_scale.exp()
        logits = scale * cosines(gather(encoded["image"]), gather(encoded["text"]))
        pairs = None
        if c.equal == "pairs" and "caption" in encoded:
            pairs = equal_captions(gather(encoded["caption"]))
        self.watch = {"scale": scale.detach()}
        if c.objective == "sigmoid":
            return {"sigmoid": sigmoid_pairs(logits + self.bias, pairs)}
        return {"contrast": symmetric_contrast(logits, pairs)}

    @torch.no_grad()
    def after_step(self) -> None:
        """The scale stays in [1, largest_scale]."""
        if self.config.objective != "words":
            self.log_scale.clamp_(0.0, math.log(self.config.largest_scale))

    def plateau(self, batch: int) -> dict[str, float]:
        """All cosines equal; equal captions, which are not known before, would lower it a little."""
        if self.config.objective == "words":
            return {"words": math.log(self.tokenizer.vocab)}
        if self.config.objective == "sigmoid":
            return {}
        return {"contrast": math.log(batch)}
