"""SwAV: unsupervised learning of visual features by contrasting cluster assignments (Caron, Misra, Mairal, Goyal,
Bojanowski, Joulin; NeurIPS 2020; arXiv 2006.09882).

Each view of a picture predicts to which prototypes another view of it was assigned. The assignments, the codes, are
made for the large views of the whole batch at once by Sinkhorn's algorithm, which shares the pictures out evenly over
the prototypes and so keeps the constant solution away. Small views predict, and get no code.

    L = mean over pairs (large view g, other view v) of H( q_g, softmax(s_v / T) ),  s = z C      (eq. 2 and 6)
    q = Sinkhorn(exp(s / eps)), without gradient                                                  (eq. 3 to 5)

Embeddings z and prototypes C have unit length; prototypes are brought back to it after every step. A queue of older
embeddings may take part in the assignment where the batch is small beside the prototypes.

Paper and code: codes are balanced over the global batch, prototypes first and samples last in each of the 3 scalings,
in logarithms so that nothing overflows. The queue holds embeddings, which the prototypes of the moment score. For small
nets and pictures some defaults differ: eps 0.03 in place of 0.05, 256 prototypes in place of 3000, no small views up to
64 px, prototypes that rest for one epoch but at most a tenth of the training, AdamW in place of LARS.

    >>> method = SwAV(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'swapped': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.losses.assignment import sinkhorn, swapped_prediction
from eyespot.methods.common import SymmetricViews, prototypes_rest, small_view_size
from eyespot.methods.method import Info, Method, Recipe
from eyespot.methods.ranges import POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone
from eyespot.nets.heads import mlp
from eyespot.nets.queue import Queue
from eyespot.process import gather, rank
from eyespot.views.image import multi_crop

LARGE = ("view1", "view2")


@dataclass(frozen=True)
class SwAVConfig(SymmetricViews):
    prototypes: int = 256
    """Number K of prototypes (3000 in the paper)."""
    temperature: float = 0.1
    """T, of the prediction's softmax."""
    epsilon: float = 0.03
    """Entropy of the codes; the smaller, the harder, and the sooner a small net leaves log K (0.05 in the paper)."""
    iterations: int = 3
    """Scalings of Sinkhorn's algorithm."""
    queue: int = 0
    """Older embeddings of each large view that are assigned along with the batch (3840 at batch 256); 0 is none."""
    queue_start: float = 0.1
    """Share of the training after which the queue takes part."""
    freeze_epochs: float = 1.0
    """Epochs in which the prototypes stay as they are; never more than a tenth of the training."""
    hidden: int = 512
    """Width of the projector's hidden layer (2048 in the paper)."""
    out: int = 128
    """Width of the embedding that the prototypes see."""
    crop_min: float = 0.2
    """Least share of the picture's area that a large view keeps (0.14 in the paper)."""
    local_crops: int | None = None
    """Number of small views, which predict and get no code; none is 6 above 64 px and 0 on smaller pictures."""
    local_size: int | None = None
    """Side of a small view in pixels; none is 3/7 of the large one, rounded up to whole patches (96 for 224)."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Least and largest share of the area that a small view keeps (0.05 to 0.14 in the paper)."""


class SwAV(Method):
    needs = "image"
    Config = SwAVConfig
    accepts = ("views", "terms")
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        batch_size=256,
        warmup_epochs=10,
        expected="ImageNet, ResNet-50, 800 epochs, 2 x 224 + 6 x 96 px, LARS 4.8 at batch 4096, decay 1e-6: linear "
        "top-1 75.3 % (paper). CIFAR-10, ResNet-18, 1000 epochs, two views, LARS 0.6 x batch / 256, decay 1e-6: linear "
        "top-1 89.2 % (solo-learn)",
    )

    def __init__(self, backbone: Backbone, config: SwAVConfig = SwAVConfig(), info: Info | None = None):
        super().__init__(backbone, config, info)
        c = config
        check_ranges(c, prototypes=(2, None), temperature=POSITIVE, epsilon=POSITIVE, iterations=(1, None))
        check_ranges(c, queue=(0, None), queue_start=SHARE, hidden=WIDTH, out=WIDTH, freeze_epochs=(0, None))
        usual = 6 if c.image_size > 64 else 0  # on small pictures they cost more than they bring in a short run
        self.local_crops = usual if c.local_crops is None else c.local_crops
        self.local_size = small_view_size(backbone, c, self.local_crops)
        self.projector = mlp(backbone.embed_dim, c.hidden, c.out, norm="batch")
        self.prototypes = nn.Linear(c.out, c.prototypes, bias=False)
        self._renormalise()
        self.queues = nn.ModuleList([Queue(c.out, c.queue, seed=i) for i in range(len(LARGE))] if c.queue else [])
        self._new: list[list[Tensor]] = []

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        c = self.config
        large = c.view_spec()
        small = replace(large, size=self.local_size, scale=c.local_scale)
        made = multi_crop(batch["image"], draws, [large] * len(LARGE), small, self.local_crops)
        names = [*LARGE, *(f"local{i + 1}" for i in range(self.local_crops))]
        return {name: v.pixels for name, v in zip(names, made, strict=True)}

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """Unit "embedding" [V, B, out] of all views, the large ones first, and their "scores" [V, B, K]."""
        sizes = [list(LARGE), [name for name in views if name.startswith("local")]]
        features = [self.backbone(torch.cat([views[name] for name in names])) for names in sizes if names]
        z = F.normalize(self.projector(torch.cat(features)), dim=1).unflatten(0, (-1, len(views[LARGE[0]])))
        return {"embedding": z, "scores": self.prototypes(z)}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        large = encoded["embedding"][: len(LARGE)].detach()
        rows, batch = large.shape[1], [gather(z) for z in large]
        if self.queues and self.training and torch.is_grad_enabled():
            self._new.append(batch)  # pushed after the step, however many parts the batch has
        mine = slice(rank() * rows, (rank() + 1) * rows)
        codes = torch.stack([self._codes(z, i)[mine] for i, z in enumerate(batch)])
        return {"swapped": swapped_prediction(encoded["scores"], codes, self.config.temperature)}

    @torch.no_grad()
    def _codes(self, z: Tensor, view: int) -> Tensor:
        """Codes [N, K] of the global batch [N, out] of one large view, assigned along with its queue if full."""
        c, n = self.config, len(z)
        if self.queues and self.progress >= c.queue_start:
            queue: Any = self.queues[view]
            if int(queue.filled) == len(queue):
                z = torch.cat([z, queue.columns.T.to(z.dtype)])
        return sinkhorn(self.prototypes(z), c.epsilon, c.iterations)[:n]

    @torch.no_grad()
    def _renormalise(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def before_step(self) -> None:
        if prototypes_rest(self, self.config.freeze_epochs):
            self.prototypes.weight.grad = None

    def after_step(self) -> None:
        self._renormalise()
        for batch in self._new:
            for queue, z in zip(self.queues, batch, strict=True):
                queue.push(z)  # pyright: ignore[reportCallIssue]
        self._new.clear()

    def plateau(self, batch: int) -> dict[str, float]:
        return {"swapped": math.log(self.config.prototypes)}
