"""G-SimCLR: contrast with guided projection by pseudo labels (Chakraborty et al.; ICDMW 2020; arXiv 2009.12007).

In SimCLR two pictures of one class push each other apart whenever they share a batch. Before training, a denoising
autoencoder is trained without labels and its latents are clustered by k-means into as many clusters as a batch has
pictures; a batch then takes one picture of every cluster. The rest is SimCLR (NT-Xent over two views).

Paper and code: the released order is the same in every epoch while its baseline is shuffled, and once the small
clusters are used up its late batches hold mostly a few large clusters, which is worse than random: `policy="paper"`
repeats it. The default, "balanced", takes one picture of every cluster in every batch, reshuffles inside the clusters
each epoch, repeats pictures of small clusters and leaves out some of the large ones. The released sort is not stable;
ours is. Views are SimCLR's; `augmentation="paper"` has no crop and one coin for a whole batch, and its grey works (in
the CIFAR-10 notebooks the grey picture is thrown away). The autoencoder trains for 5 epochs in place of about 23 with
early stopping. The paper chose the epoch of its linear probe by the test loss; here test pictures are used once.

    >>> method = GSimCLR(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'nt_xent': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torchvision.transforms.v2.functional import adjust_hue, adjust_saturation, rgb_to_grayscale

from eyespot.draws import Draws, ensure, epoch_permutation
from eyespot.errors import UserError
from eyespot.losses.contrastive import nt_xent
from eyespot.methods.common import SymmetricViews, paired_views
from eyespot.methods.method import Info, Method, MethodConfig, Recipe, Tools
from eyespot.methods.ranges import POSITIVE, WIDTH, check_ranges
from eyespot.nets.autoencoder import ConvAutoencoder
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import clean


def guided_order(labels: np.ndarray) -> np.ndarray:
    """The released order: the first picture of every cluster, then the second of every cluster, ...: int64 [n].

    Sorted by (rank of the picture in its cluster, cluster), stable. Batches are consecutive blocks of it.
    """
    labels = np.asarray(labels)
    by_cluster = np.argsort(labels, kind="stable")
    grouped = labels[by_cluster]
    first = np.searchsorted(grouped, grouped, side="left")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_cluster] = np.arange(len(labels)) - first
    return np.lexsort((labels, rank))


def balanced_batches(labels: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Batches in which the clusters are as even as can be: int64 [n // batch, batch].

    With as many clusters as the batch has pictures, each batch has one of every cluster; with more clusters, no
    cluster twice. The order inside a cluster is another one each epoch; a cluster that is used up starts again.
    """
    n = len(labels)
    shuffled = epoch_permutation(seed, epoch, n, "g_simclr/order")
    order = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    _, start, size = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    clusters = epoch_permutation(seed, epoch, len(size), "g_simclr/clusters")
    place = np.arange(n // batch * batch)
    cluster, turn = clusters[place % len(size)], place // len(size)
    return order[start[cluster] + turn % size[cluster]].reshape(-1, batch)


def same_label_rate(batches: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pairs within a batch whose labels are equal: what guided batches are meant to lower."""
    pairs = same = 0
    for rows in batches:
        counts = np.unique(np.asarray(labels)[rows], return_counts=True)[1]
        same += int((counts * (counts - 1)).sum())
        pairs += len(rows) * (len(rows) - 1)
    return same / max(pairs, 1)


@dataclass(frozen=True)
class AutoencoderConfig(MethodConfig):
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the encoder's blocks."""
    kernel: int = 3
    """Side of the convolutions."""
    noise: float = 0.01
    """Standard deviation of the noise added to pixels in [0, 1]."""


class DenoisingAutoencoder(Method):
    """Reconstructs a picture from a noisy copy; its pooled latents are what G-SimCLR clusters."""

    Config = AutoencoderConfig
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=0.0,
        batch_size=64,
        epochs=23,
        warmup_epochs=0.0,
        schedule="constant",
        image_size=32,
    )

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig(), info: Info | None = None):
        super().__init__(None, config, info)
        self.net = ConvAutoencoder(self.info.channels, config.widths, config.kernel)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        return {"image": clean(batch["image"], self.config.image_size, device=draws.device)}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        x = views["image"]
        noise = ensure(draws, len(x), x.device).noise("noise", *x.shape[1:], normal=True)
        return {"reconstruction": mse_loss(self.net(x + self.config.noise * noise.to(x)), x)}

    def embed(self, inputs: Tensor) -> Tensor:
        return self.net.features(inputs)


@dataclass(frozen=True)
class GSimCLRConfig(SymmetricViews):
    temperature: float = 0.1
    """Temperature of NT-Xent."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the projector's hidden layers."""
    out: int = 50
    """Width of the embedding that is compared."""
    policy: Literal["balanced", "paper"] = "balanced"
    """Order of the batches: one picture a cluster reshuffled every epoch, or the released fixed order."""
    clusters: int = 0
    """Number of k-means clusters; 0 takes the global batch size, as the paper does."""
    autoencoder_epochs: float = 5.0
    """Epochs of the autoencoder (the paper stops early, after about 23)."""
    autoencoder_widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the autoencoder's blocks (the paper's deep one for ImageNet: 64 to 1024 with kernel 5)."""
    autoencoder_kernel: int = 3
    """Side of the autoencoder's convolutions."""
    augmentation: Literal["simclr", "paper"] = "simclr"
    """SimCLR's views, or the paper's: flip, jitter and grey by one coin for the whole batch, no crop."""


class GSimCLR(Method):
    """Between `encode` and `loss` a plug-in may append rows to "query" and as many to "key"."""

    needs = "image"
    Config = GSimCLRConfig
    accepts = ("views", "view_pair", "positives", "terms")
    recipe = Recipe(
        optimizer="sgd",
        lr=0.1,
        lr_rule="none",
        momentum=0.0,
        weight_decay=0.0,
        batch_size=64,
        epochs=15,
        warmup_epochs=0.0,
        schedule="restarts",
        image_size=32,
        expected="CIFAR-10, linear: 40.5 against SimCLR's 39.9 (table 2)",
    )

    def __init__(self, backbone: Backbone, config: GSimCLRConfig = GSimCLRConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        check_ranges(config, temperature=POSITIVE, out=WIDTH, clusters=(0, None), autoencoder_epochs=POSITIVE)
        self.projector = mlp(backbone.embed_dim, *config.hidden, config.out, norm=None)

    # --- before training: pseudo labels --------------------------------------------------------------------------
    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        c, clusters = self.config, self.config.clusters or self.info.batch_size
        if clusters > len(data):
            raise UserError(f"G-SimCLR wants {clusters} clusters but there are {len(data)} pictures; lower clusters.")
        settings = AutoencoderConfig(image_size=c.image_size, widths=c.autoencoder_widths, kernel=c.autoencoder_kernel)
        net = DenoisingAutoencoder(settings, self.info)
        tools.fit(net, c.autoencoder_epochs, "autoencoder")
        latents = tools.embed(net.embed, "latents")
        return {"cluster": tools.kmeans(latents, clusters)}

    def batches(self, n: int, epoch: int, draws: Draws) -> np.ndarray | None:
        if "cluster" not in self.prepared:
            return None
        labels, batch = self.prepared["cluster"].cpu().numpy(), self.info.batch_size
        if len(labels) != n:
            raise UserError(f"The clusters are of {len(labels)} pictures but the data has {n}; start a new run.")
        if self.config.policy == "paper":
            return guided_order(labels)[: n // batch * batch].reshape(-1, batch)
        return balanced_batches(labels, batch, draws.seed, epoch)

    # --- training: SimCLR ----------------------------------------------------------------------------------------
    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        if c.augmentation == "simclr":
            return paired_views(self, batch, draws)
        if self.view_hooks:
            raise UserError("augmentation=paper has no crops that a plug-in could move; use augmentation=simclr.")
        images = clean(batch["image"], c.image_size, crop_ratio=1.0, device=draws.device)
        settings = CIFAR_COINS if c.image_size <= 64 else IMAGENET_COINS
        return {name: coin_view(images, draws.scope(name), *settings) for name in ("view1", "view2")}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """ "query" and "key", [B, out] each: the embeddings of view 1 and view 2, not normalised."""
        query, key = self.projector(self.backbone(torch.cat([views["view1"], views["view2"]]))).chunk(2)
        return {"query": query, "key": key}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        return {"nt_xent": nt_xent(gather(encoded["query"]), gather(encoded["key"]), self.config.temperature)}

    def plateau(self, batch: int) -> dict[str, float]:
        return {"nt_xent": math.log(2 * batch - 1)}


CIFAR_COINS, IMAGENET_COINS = (0.2, 0.5, 0.5), (1.0, 0.8, 0.2)
"""The paper's strength of the jitter, probability of the jitter and of grey, for 32 and for 224 px."""


def coin_view(images: Tensor, draws: Draws, strength: float, jitter_p: float, grey_p: float) -> Tensor:
    """The paper's view: one coin each for flip (1/2), jitter and grey decides for the whole batch.

    Brightness moves by up to 0.8 s, contrast and saturation scale by 1 +- 0.8 s, hue turns by up to 0.2 s of the
    circle, by the same amount for all pictures of the batch. Grey works here; in the released CIFAR-10 notebook its
    result is thrown away. Pixels [B, C, S, S] in [0, 1].
    """
    flip, jitter, grey, bright, contrast, saturation, hue = draws.step_uniform("coins", 7).tolist()
    x = images.flip(-1) if flip < 0.5 else images
    if jitter < jitter_p:
        wide = 0.8 * strength
        x = x + wide * (2 * bright - 1)
        middle = x.mean((2, 3), keepdim=True)
        x = middle + (x - middle) * (1 + wide * (2 * contrast - 1))
        x = x.clamp(0, 1)
        if x.shape[1] == 3:
            x = adjust_saturation(x, 1 + wide * (2 * saturation - 1))
            x = adjust_hue(x, 0.2 * strength * (2 * hue - 1))
    if grey < grey_p and x.shape[1] == 3:
        x = rgb_to_grayscale(x, num_output_channels=3)
    return x
