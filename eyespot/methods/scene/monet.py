"""MONet: unsupervised scene decomposition and representation (Burgess, Matthey, Watters, Kabra, Higgins, Botvinick,
Lerchner; 2019; arXiv 1901.11390), as benchmarked in the survey of Yuan et al. (TPAMI 2023; arXiv 2202.07135).

A recurrent attention network, a U-Net, takes a picture apart: part after part it says which pixels of what is left the
next one takes. A variational autoencoder looks at the picture through each mask, describes the part by a few numbers
and decodes its colours and its mask again. Masks that are easily described are those of objects.

    log m_k = log s_{k-1} + log a_k      log s_k = log s_{k-1} + log (1 - a_k)      the last part takes the rest
    L = -log sum_k m_k N(x; x_k, sigma_k)  +  beta KL(q(z) || N(0, 1))  +  gamma KL(m || decoded masks)      (eq. 3)

Part 0 is the background, by its smaller sigma.

Paper and code: all terms are divided by the number of values in a picture, which changes the size of the gradient and
not its direction. Adam in place of RMSProp at 1e-4. The encoder sees the logarithm of a mask from -11.5 on (1e-5). The
decoder doubles a small grid by transposed convolutions in place of convolutions over the whole picture with a margin,
which cost twenty times as much. The backbone is the encoder of the parts, and its features of a picture those of one
part that is the whole picture.

    >>> method = MONet(backbone("monet_conv", image_size=32))
    >>> method({"image": torch.rand(8, 3, 32, 32)})
    {'pixels': tensor(...), 'latent': tensor(...), 'mask': tensor(...)}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.scene import gaussian_kl, mask_kl, mixture_nll
from eyespot.methods.method import Info, MethodConfig, Recipe
from eyespot.methods.parts import PartsMethod
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.monet import AttentionUNet, ComponentBackbone, attend
from eyespot.nets.spatial_broadcast import SpatialBroadcast


@dataclass(frozen=True)
class MONetConfig(MethodConfig):
    slots: int = 5
    """Number of parts K, the background among them (7 on dSprites, 8 on CLEVR)."""
    latent: int = 16
    """Numbers that describe a part."""
    hidden: int = 128
    """Width of the MLPs of attention and encoder (128 and 256 in the paper)."""
    unet: tuple[int, ...] = (16, 32, 64, 64)
    """Channels of the attention's blocks, each at half the resolution of the one before."""
    decoder_width: int = 32
    """Channels of the decoder."""
    decoder_start: int = 8
    """Side of the grid that a part's description is copied to."""
    sigma_background: float = 0.09
    """Deviation of the pixels of part 0."""
    sigma: float = 0.11
    """Deviation of the pixels of the other parts."""
    beta: float = 0.5
    """Weight of the divergence of the descriptions from the normal distribution."""
    gamma: float = 0.5
    """Weight of the divergence of the attention's masks from the decoded ones."""


class MONet(PartsMethod):
    needs = "image"
    Config = MONetConfig
    background = 0
    ordered = True
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=0.0,
        batch_size=16,
        warmup_epochs=1.0,
        min_lr=0.1,
        clip=5.0,
        epochs=10,
        backbone="monet_conv",
        image_size=32,
        expected="CLEVR, 1,000,000 steps of 64, RMSProp 1e-4; no figure in the paper, the survey gives ARI",
    )

    def __init__(self, backbone: Backbone, config: MONetConfig = MONetConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, slots=(2, None), latent=WIDTH, hidden=WIDTH, decoder_width=WIDTH, decoder_start=WIDTH)
        check_ranges(c, sigma=POSITIVE, sigma_background=POSITIVE, beta=(0.0, None), gamma=(0.0, None))
        if not isinstance(backbone, ComponentBackbone):
            raise UserError(
                f"MONet's encoder sees a mask beside the picture, which {getattr(backbone, 'name', backbone)} does "
                "not take; use --backbone monet_conv."
            )
        self.unet = AttentionUNet(backbone.channels, c.image_size, c.unet, c.hidden)
        with torch.no_grad():
            cells = backbone.features(torch.zeros(1, backbone.channels, c.image_size, c.image_size)).numel()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(cells, c.hidden), nn.ReLU(), nn.Linear(c.hidden, 2 * c.latent)
        )
        out = backbone.channels + 1
        self.decoder = SpatialBroadcast(c.latent, out, c.image_size, c.decoder_start, c.decoder_width)

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        c, x = self.config, views["image"]
        noise = ensure(draws, len(x), x.device).noise("latent", c.slots, c.latent, normal=True)
        found = self.rebuild(x, noise.to(x.dtype))
        sigma = x.new_full((c.slots,), c.sigma)
        sigma[self.background] = c.sigma_background
        terms = {
            "pixels": mixture_nll(x, found["parts"], found["log_masks"], sigma),
            "latent": c.beta * gaussian_kl(found["mean"], found["log_var"]),
            "mask": c.gamma * mask_kl(found["log_masks"], found["log_decoded"]),
        }
        return {name: term.mean() / x[0].numel() for name, term in terms.items()}

    def rebuild(self, x: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """What the parts make of pictures [B, C, H, W], with latents moved by noise [B, K, latent].

        Returns:
            {"picture": [B, C, H, W], "parts": [B, K, C, H, W], "masks", "log_masks", "log_decoded": [B, K, 1, H, W],
            "mean", "log_var": [B, K, latent]}.
        """
        c, net = self.config, self.backbone
        log_masks = attend(self.unet, net.normalize(x), c.slots)
        again = x.repeat_interleave(c.slots, 0)
        described = self.encoder(net.features(again, log_masks.flatten(0, 1)))
        mean, log_var = described.unflatten(0, (len(x), c.slots)).chunk(2, 2)
        z = mean if noise is None else mean + (log_var / 2).exp() * noise
        decoded = self.decoder(z.flatten(0, 1)).unflatten(0, (len(x), c.slots))
        parts, masks = decoded[:, :, :-1], log_masks.exp()
        found = {"picture": (masks * parts).sum(1), "parts": parts, "masks": masks, "log_masks": log_masks}
        return found | {"log_decoded": log_softmax(decoded[:, :, -1:], 1), "mean": mean, "log_var": log_var}

    @torch.no_grad()
    def decompose(self, inputs: Tensor, run: int = 0) -> dict[str, Tensor]:
        """`rebuild` of clean pictures [B, C, S, S] in [0, 1] without noise; `run` changes nothing."""
        return self.rebuild(inputs)
