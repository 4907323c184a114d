"""Align-Uniform: Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere
(Wang, Isola; ICML 2020; arXiv 2005.10242).

Two views of a picture should have nearly the same features (alignment), and the features of all pictures should spread
evenly over the unit sphere (uniformity). With features z1, z2 of norm 1, Section 4.1 defines

    align   = mean of |z1 - z2|^2
    uniform = log of the mean over pairs of pictures of exp(-t |z_i - z_j|^2)

and the loss is their weighted sum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eyespot.methods.method import Method, MethodConfig, Recipe
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import ViewSpec, two_views


@dataclass(frozen=True)
class AlignUniformConfig(MethodConfig):
    hidden: int = 512
    """Width of the hidden layer of the projector."""
    out: int = 128
    """Dimensions of the sphere's space."""
    weight: float = 0.5
    """Weight of uniformity beside alignment."""
    t: float = 2.0
    """Sharpness of the Gaussian potential."""


class AlignUniform(Method):
    needs = "image"
    Config = AlignUniformConfig
    recipe = Recipe(optimizer="adamw", lr=1e-3, weight_decay=1e-4, batch_size=256)

    def __init__(self, backbone, config=AlignUniformConfig(), info=None):
        super().__init__(backbone, config, info)
        self.projector = mlp(backbone.embed_dim, config.hidden, config.out, norm="batch")

    def views(self, batch, draws):
        return two_views(batch["image"], draws, ViewSpec(size=self.config.image_size))

    def forward(self, views, draws=None):
        z1, z2 = (gather(normalize(self.projector(self.backbone(views[v])))) for v in ("view1", "view2"))
        spread = (uniformity(z1, self.config.t) + uniformity(z2, self.config.t)) / 2
        return {"align": (z1 - z2).square().sum(1).mean(), "uniform": self.config.weight * spread}


def uniformity(z: Tensor, t: float) -> Tensor:
    """Log of the mean Gaussian potential of all pairs of rows of z [B, D], which have norm 1."""
    squares = 2 - 2 * z @ z.T
    pairs = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return squares[pairs].mul(-t).exp().mean().log()
