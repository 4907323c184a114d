"""OBoW: online bag-of-visual-words generation for self-supervised learning (Gidaris, Bursuc, Puy, Komodakis, Cord,
Perez; CVPR 2021; arXiv 2012.11552).

A slowly moving copy of the backbone describes the whole picture by its visual words: every place of its feature map is
assigned softly to a vocabulary, and the largest shares over all places, brought to the sum 1, are the bag. From small
crops of the picture, and small patches, the backbone must predict the bag. The vocabulary is a queue of recent local
features of the copy; the weights that predict a word are generated from that word, so that it may change.

    a_uk = softmax_k( -inv_delta |x_u - v_k|^2 / mu ),   bag_k = max_u a_uk / sum_k,   mu = moving mean of min_k |.|^2
    L = sum over crops and patches, mean over levels, of   KL( bag || softmax( kappa f G(V)^T ) )

with f the pooled features of a crop, as they are, and G(V) of unit length. The temperature uses mu of the same step;
distances and weights use the vocabulary before its update, which takes one place a picture, averaged over its
neighbours.

Paper and code: the outermost places are left out, as in the authors' code alone, where at least 3 x 3 places remain.
The queue and mu move after the optimizer's step, with those of all processes; the copy does too, with the momentum of
that step, where the authors' code moves it within the next one. There the size of the vocabulary must be a multiple of
the batch; here it may be any. The released linear classifier that watches the training is left out: the verdict does
that, and it reads the perplexity of the targets, which should neither be near 1 nor stay at the number of words.

    >>> method = OBoW(backbone("resnet18", image_size=32))
    >>> method({"full": torch.rand(8, 3, 32, 32), "crop1": torch.rand(8, 3, 24, 24)})
    {'crops': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws, ensure
from eyespot.errors import UserError
from eyespot.losses.visual_words import bag_divergence, bag_of_words, perplexity, word_distances
from eyespot.methods.common import SymmetricViews, try_size
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_pair, check_ranges
from eyespot.nets.backbones import Backbone, evaluating
from eyespot.nets.queue import Queue
from eyespot.nets.stages import stage_maps
from eyespot.nets.teacher import Teacher, cosine_momentum
from eyespot.process import all_mean, gather
from eyespot.views.image import clean, view
from eyespot.views.patches import cut, grid_starts


@dataclass(frozen=True)
class OBoWConfig(SymmetricViews):
    words: int = 512
    """Number K of visual words at each level (8192 on ImageNet)."""
    levels: int = 1
    """Depths of the copy that words are taken from: its last stage, or its last two (the paper's full version)."""
    inv_delta: float = 10.0
    """Inverse temperature of the assignment in units of mu (15 for ResNet-50)."""
    kappa: float = 5.0
    """Factor of the predictions (8 for ResNet-50)."""
    mu_momentum: float = 0.99
    """Share of mu, the mean distance to the nearest word, that a step keeps."""
    pool: Literal["max", "mean"] = "max"
    """How the assignments of all places become a bag."""
    update: Literal["average", "place"] = "average"
    """What enters the vocabulary: a place of each picture averaged over its neighbours, or that place alone."""
    head: Literal["dynamic", "linear"] = "dynamic"
    """Weights generated from the words, or learned ones that do not follow the vocabulary."""
    momentum: float = 0.99
    """Share of the copy that a step keeps at the start; a half cosine leads to 1."""
    crops: int = 2
    """Number of crops (1 in the paper's plain version)."""
    crop_size: int | None = None
    """Side of a crop in pixels; none is 5/7 of the picture's, rounded up (160 for 224, 24 for 32)."""
    crop_scale: tuple[float, float] = (0.08, 0.6)
    """Least and largest share of the area that a crop keeps."""
    patches: int = 3
    """Number of patches, of 9 in a grid (5 on ImageNet, 0 in the paper's plain version)."""
    patch_size: int | None = None
    """Side of a patch in pixels; none is 3/8 of what it is cut from, rounded up (96 of 256, 16 of 40)."""
    patch_scale: tuple[float, float] = (0.6, 1.0)
    """Least and largest share of the area that the grid of patches covers."""


class OBoW(Method):
    needs = "image"
    Config = OBoWConfig
    accepts = ("views", "terms")
    mu: Tensor
    recipe = Recipe(
        optimizer="sgd",
        lr=0.05,
        lr_batch=128,
        weight_decay=5e-4,
        batch_size=128,
        epochs=80,
        warmup_epochs=5.0,
        expected="ImageNet, ResNet-50, 200 epochs, rate 0.03 at batch 256, decay 1e-4, words=8192, levels=2, "
        "patches=5: linear top-1 73.8 (the authors' repository)",
    )

    def __init__(self, backbone: Backbone, config: OBoWConfig = OBoWConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, words=(2, None), levels=WIDTH, inv_delta=POSITIVE, kappa=POSITIVE, mu_momentum=SHARE)
        check_ranges(c, momentum=SHARE, crops=(0, None), crop_size=WIDTH, patches=(0, 9), patch_size=WIDTH)
        check_pair(c, "crop_scale")
        check_pair(c, "patch_scale")
        if c.crops + c.patches < 1:
            raise UserError("crops=0 and patches=0 leave nothing to predict from; give at least one.")
        if backbone.stride < 1:
            raise UserError(f"obow needs a feature map and {backbone.name} has none; use another backbone.")
        self._choose_sizes()
        self.teacher = Teacher(backbone)
        with evaluating(self.teacher):
            blank = backbone.mean.new_zeros(1, backbone.channels, c.image_size, c.image_size)
            widths = [m.shape[1] for m in self._maps(blank)]
        self.vocabularies = nn.ModuleList([_vocabulary(width, c.words, i) for i, width in enumerate(widths)])
        self.register_buffer("mu", torch.full((c.levels,), 0.5))
        d = backbone.embed_dim
        heads = [_generator(w, d) if c.head == "dynamic" else nn.Linear(d, c.words, bias=False) for w in widths]
        self.heads = nn.ModuleList(heads)
        self._seen: list[tuple[Tensor, list[Tensor]]] = []  # mu, and new words by level, since the last step

    def _choose_sizes(self) -> None:
        """Sides of crops, of patches and of what these are cut from, in whole patches of a transformer."""
        c, unit = self.config, getattr(self.backbone, "patch", 4)
        self.crop_size = c.crop_size or math.ceil(5 * c.image_size / (7 * unit)) * unit
        self.patch_source = math.ceil(8 * c.image_size / (7 * unit)) * unit
        self.patch_size = c.patch_size or math.ceil(3 * self.patch_source / (8 * unit)) * unit
        self.patch_jitter = min(math.ceil(self.patch_source * 24 / 256), max(0, self.patch_source - self.patch_size))
        for size, count in ((self.crop_size, c.crops), (self.patch_size, c.patches)):
            if count:
                try_size(self.backbone, size)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c, spec = self.config, self.config.view_spec()
        full = clean(batch["image"], c.image_size, device=draws.device)
        mirrored = draws.scope("full").coin("flip", c.flip)[:, None, None, None]
        made = {"full": torch.where(mirrored, full.flip(-1), full)}
        crop = replace(spec, size=self.crop_size, scale=c.crop_scale)
        for name in (f"crop{i + 1}" for i in range(c.crops)):
            made[name] = view(batch["image"], draws.scope(name), crop).pixels
        if c.patches:
            source = replace(spec, size=self.patch_source, scale=c.patch_scale, blur_p=0.0)
            own = draws.scope("patches")
            starts = grid_starts(own, self.patch_source, self.patch_size, self.patch_jitter, c.patches)
            cuts = cut(view(batch["image"], own, source).pixels, starts, self.patch_size)
            made |= {f"patch{i + 1}": pixels for i, pixels in enumerate(cuts)}
        return made

    @torch.no_grad()
    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """The copy's maps [B, C, h, w] by level, the deepest first, without their border."""
        maps = stage_maps(self.teacher.module, pixels, self.config.levels)
        return [m[..., 1:-1, 1:-1] if min(m.shape[2:]) >= 5 else m for m in maps]

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Features "crops" and "patches" [V, B, D] of the views, not normalised, where there are any; the copy's maps
        of the whole picture by level, "map1", ... [B, C, h, w], without gradient."""
        encoded = {f"map{i + 1}": m for i, m in enumerate(self._maps(views["full"]))}
        for kind, prefix in (("crops", "crop"), ("patches", "patch")):
            pixels = [views[name] for name in views if name.startswith(prefix)]
            if pixels:
                encoded[kind] = self.backbone(torch.cat(pixels)).unflatten(0, (len(pixels), -1))
        return encoded

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        maps = [encoded[f"map{i + 1}"] for i in range(c.levels)]
        distances = [word_distances(m, v.columns.T) for m, v in zip(maps, self._queues(), strict=True)]
        mu = self.mu
        if self.training and torch.is_grad_enabled():
            nearest = torch.stack([d.amin(-1).mean() for d in distances])
            mu = torch.lerp(all_mean(nearest).to(mu.dtype), mu, c.mu_momentum)
            self._seen.append((mu, self._new_words(maps, ensure(draws, len(maps[0]), maps[0].device))))
        bags = [bag_of_words(d, c.inv_delta / m.clamp_min(1e-12), c.pool) for d, m in zip(distances, mu, strict=True)]
        self._watch(bags)
        return {kind: self._divergence(encoded[kind], bags) for kind in ("crops", "patches") if kind in encoded}

    def _divergence(self, features: Tensor, bags: list[Tensor]) -> Tensor:
        """What predicting the bags from features [V, B, D] costs, the mean over levels."""
        costs = []
        for head, queue, bag in zip(self.heads, self._queues(), bags, strict=True):
            if self.config.head == "linear":
                logits = head(features)
            else:
                weights = F.normalize(head(F.normalize(queue.columns.T, dim=1)), dim=1)
                logits = self.config.kappa * features @ weights.T
            costs.append(bag_divergence(logits, bag))
        return torch.stack(costs).mean()

    def _queues(self) -> list[Queue]:
        return list(self.vocabularies)  # type: ignore[arg-type]

    @torch.no_grad()
    def _new_words(self, maps: list[Tensor], draws: Draws) -> list[Tensor]:
        """One place of each picture of the global batch, averaged over its neighbours: [global B, C] by level."""
        found = []
        for i, m in enumerate(maps):
            if self.config.update == "average":
                m = F.avg_pool2d(m, min(3, *m.shape[2:]), stride=1)
            places = m.flatten(2)
            chosen = draws.integers(f"place{i + 1}", places.shape[2])
            found.append(gather(places[torch.arange(len(places), device=m.device), :, chosen]))
        return found

    @torch.no_grad()
    def _watch(self, bags: list[Tensor]) -> None:
        """How many words the targets of the batch use together, and a picture's alone; of further levels too."""
        for i, bag in enumerate(bags):
            level = str(i + 1) if i else ""
            self.watch[f"vocabulary_perplexity{level}"] = perplexity(all_mean(bag.mean(0)))
            self.watch[f"picture_perplexity{level}"] = perplexity(bag).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        for _, words in self._seen:
            for queue, new in zip(self._queues(), words, strict=True):
                queue.push(new)
        if self._seen:
            self.mu.copy_(torch.stack([mu for mu, _ in self._seen]).mean(0))
            self._seen.clear()
        self.teacher.update(self.backbone, cosine_momentum(self.config.momentum, 1.0, self.progress))


def _generator(width: int, dim: int) -> nn.Module:
    """From words [K, width] to the weights [K, dim] that predict them; the statistics are always those of the words."""
    norm = nn.BatchNorm1d(2 * dim, track_running_stats=False)
    return nn.Sequential(nn.Linear(width, 2 * dim, bias=False), norm, nn.ReLU(), nn.Linear(2 * dim, dim))


def _vocabulary(width: int, words: int, seed: int) -> Queue:
    """A queue of words, at first max(0, normal), alike on every process."""
    queue = Queue(width, words, normalize=False)
    generator = torch.Generator().manual_seed(seed)
    queue.columns.copy_(torch.randn(width, words, generator=generator).clamp_min(0))
    return queue
