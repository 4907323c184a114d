"""APC: autoregressive predictive coding (Chung, Hsu, Tang, Glass; Interspeech 2019; arXiv 1904.03240), the generative
method of the review of Mohamed et al. (JSTSP 2022; arXiv 2205.10643).

A recurrent network reads the log-mel frames of a sound one by one and says at each which frame comes n steps later.
The next frame can be guessed from smoothness alone; n steps on, the network has to know what is being said.

    L = 1/(T - n) sum_t | x_{t+n} - W h_t |,   h_t = GRU(x_1 .. x_t)                                          (eq. 2)

Paper and code: the network must be causal, so every backbone here is; one that looks ahead would copy. The distance is
the mean over the bands, where the paper has the sum: the rate does not depend on their number then. Frames are
normalised by AudioSet's statistics in place of each speaker's. A sound that is shorter than the cut is repeated. Widths
and the length of the cut are for small sets; the paper has 3 layers of 512 and whole utterances.

    >>> method = APC(backbone("gru_micro", channels=1, image_size=98))
    >>> method({"audio": torch.randn(4, 16000)})
    {'apc': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.speech import apc
from eyespot.methods.method import Info, Method, MethodConfig, Recipe
from eyespot.methods.ranges import WIDTH, check_ranges
from eyespot.nets.audio import RATE, AudioBackbone
from eyespot.views.spectrogram import samples_of


@dataclass(frozen=True)
class APCConfig(MethodConfig):
    ahead: int = 3
    """n, frames of 10 ms from the last one read to the one that is predicted (1 to 20 in the paper)."""
    gain: float = 0.0
    """The loudness of a sound is multiplied by up to 1 + this, or divided by it; 0 leaves it."""


class APC(Method):
    needs = "audio"
    extras = ("audio",)
    Config = APCConfig
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=0.0,
        batch_size=32,
        epochs=20,
        warmup_epochs=1,
        clip=1.0,
        backbone="gru_micro",
        image_size=96,
    )

    def __init__(self, backbone: AudioBackbone, config: APCConfig = APCConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, ahead=WIDTH, gain=(0.0, 10.0))
        if config.ahead >= config.image_size:
            raise UserError(f"ahead={config.ahead} is not within {config.image_size} frames; give less.")
        if backbone.modality != "audio":
            raise UserError(f"APC reads sound, but {backbone.name} takes pictures; use gru_micro or gru_base.")
        self.head = nn.Linear(backbone.embed_dim, backbone.bands)

    def read(self, meta: dict[str, Any], draws: Draws) -> dict[str, Any]:
        return {"samples": samples_of(self.config.image_size, RATE), "start": float(draws.uniform("start")[0])}

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        wave = batch["audio"]
        if self.config.gain:
            louder = (1 + self.config.gain) ** draws.uniform("gain", low=-1.0, high=1.0)
            wave = (wave * louder[:, None]).clamp(-1, 1)
        return {"audio": wave}

    def forward(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        frames = self.backbone.spectrogram(views["audio"])
        return {"apc": apc(self.head(self.backbone.net(frames)), frames, self.config.ahead)}

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any], draws: Draws) -> dict[str, dict[str, Tensor]]:
        """Spectrograms, and what was predicted of them: time goes to the right, pitch up."""
        n = self.config.ahead
        frames = self.backbone.spectrogram(self.views(batch, draws)["audio"])
        guess = torch.cat([frames[:, :n], self.head(self.backbone.net(frames))[:, :-n]], 1)
        low, high = frames.amin((1, 2), keepdim=True), frames.amax((1, 2), keepdim=True)
        shown = [((x - low) / (high - low)).clamp(0, 1).transpose(1, 2).flip(1)[:, None] for x in (frames, guess)]
        return {"spectrograms": {"sound": shown[0], f"{n} ahead": shown[1]}}
