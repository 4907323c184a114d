"""Networks of sound. A backbone of sound takes waveforms and makes its own spectrogram, normalised by its own mean and
deviation, so that training, saved weights and evaluation cannot disagree about it.

    gru_micro, gru_base     causal GRUs over the frames of a log-mel spectrogram: 2 layers of 128, 3 of 512 (APC's)
    log_mel                 nothing learned: mean and deviation of every band over time; what features must beat
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eyespot.errors import UserError, nearest
from eyespot.nets.backbones import Backbone
from eyespot.views.spectrogram import log_mel, samples_of

MODALITY = "audio"
RATE = 16000
"""Samples a second that these networks take."""
MELS = 80
MEAN, STD = -4.2677393, 4.5689974
"""Of log-mel values over AudioSet (Gong et al. 2021, AST)."""


class ResidualGRU(nn.Module):
    """Layers of GRUs, each but the first added to what it was given; nothing looks ahead.

    Args:
        bands: width of the input.
        width: of every layer.
        layers: how many.
    """

    def __init__(self, bands: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(width if k else bands, width, batch_first=True) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] of [B, T, bands]."""
        state = self.layers[0](x)[0]
        for layer in list(self.layers)[1:]:
            state = state + layer(state)[0]
        return state


class BandStatistics(nn.Module):
    """Every band's mean and deviation over time, at every frame of it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 2 bands] of [B, T, bands], the same at all T."""
        std, mean = torch.std_mean(x, dim=1, keepdim=True, correction=0)
        return torch.cat([mean, std], 2).expand(-1, x.shape[1], -1)


NETS: dict[str, dict[str, Any]] = {
    "gru_micro": {"width": 128, "layers": 2},
    "gru_base": {"width": 512, "layers": 3},
    "log_mel": {},
}


class AudioBackbone(Backbone):
    """An encoder of waveforms [B, S] in [-1, 1] at `RATE`: `net` maps log-mel frames [B, T, bands] to [B, T, D].

    `image_size` counts frames, `channels` the channels of a waveform.
    """

    modality = "audio"

    def __init__(self, net: nn.Module, *, bands: int = MELS, mean: Sequence[float] | None = None, **common: Any):
        self.bands = bands
        super().__init__(net, mean=mean or (MEAN,), **common)

    def spectrogram(self, x: Tensor) -> Tensor:
        """Normalised log-mel frames [B, T, bands] of waveforms [B, S]."""
        if x.dim() != 2 or not x.is_floating_point():
            raise UserError(f"Waveforms are floats [B, S], not {x.dtype} of shape {tuple(x.shape)}.")
        frames = log_mel(x if x.dtype == torch.float64 else x.float(), RATE, self.bands)
        return ((frames - self.mean.view(1, 1, 1)) / self.std.view(1, 1, 1)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """[B, T, D] of waveforms."""
        return self.net(self.spectrogram(x))

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(1)

    def feature_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, D, T, 1]."""
        return features.transpose(1, 2)[..., None]

    def forward_dense(self, x: Tensor) -> Tensor:
        """[B, D, T, 1] of waveforms [B, S]."""
        return self.feature_map(self.features(x), (x.shape[1], 1))

    def _probe(self) -> tuple[int, int]:
        like = next((p for p in self.net.parameters()), self.mean)
        self.to(like.device)
        with torch.no_grad():
            wave = torch.zeros(1, samples_of(max(1, self.image_size), RATE), dtype=like.dtype, device=like.device)
            return self.pool(self.features(wave)).shape[1], 1


def build(name: str, pretrained: bool, options: dict[str, Any], common: dict[str, Any]) -> Backbone:
    """One of `NETS`; `options` change its defaults, and `bands` the number of mel filters."""
    if pretrained:
        raise UserError(f"There are no pretrained weights of '{name}'; train it.")
    if common["channels"] != 1:
        raise UserError(f"'{name}' takes sound of one channel, not {common['channels']}; leave the channels out.")
    valid = [*NETS[name], "bands"]
    for option in options:
        if option not in valid:
            raise UserError(f"'{name}' has no option '{option}'; {nearest(option, valid)}")
    own = {**NETS[name], **options}
    bands = own.pop("bands", MELS)
    net = BandStatistics() if name == "log_mel" else ResidualGRU(bands, **own)
    std = common.pop("std", None) or (STD,)
    return AudioBackbone(net, bands=bands, name=name, options=options, std=std, **common)
