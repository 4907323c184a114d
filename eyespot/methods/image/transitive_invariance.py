"""Transitive invariance for self-supervised visual representation learning (Wang, He, Gupta; ICCV 2017; arXiv
1708.02901).

Tracking an object A gives another view A' of it; nearest neighbours in the features of a context task link A to another
object B seen alike. Both kinds of edges stand in one graph, and one hop composes them: (A, B'), (A', B) and (A', B')
are pairs that differ in pose and in instance at once. A pair (x, x+) is trained against hard negatives of the batch:

    max(0, m + x.x- - x.x+) + max(0, m + x+.x- - x.x+)      (see eyespot.losses.ranking)

Before training a small network learns to tell where one patch lies from another (`features="context"`); objects that
are among each other's nearest neighbours by its features are linked. Rows that the graph links are never negatives of
one another. `tracks="warp"` takes each picture as an object and a strong change of pose and light as its other view;
`tracks="folders"` reads what `eyespot tracks` mined from video: one folder an object.

Paper and code: no code of this paper is public; the loss is that of its predecessor (caffe-video_triplet), whose margin
is 1 where the paper has 0.5, and which has no graph. The paper groups objects by k-means and links inside a cluster;
here they are mutual nearest neighbours, because wrong edges multiply when they are composed. The paper starts the
network from the context task; give `--init` for that. Negatives are random at first and half of them hard later, as
in the predecessor: with the hardest from the start the training collapses.

    >>> method = TransitiveInvariance(backbone("resnet18", image_size=32))
    >>> method({"view1": torch.rand(8, 3, 32, 32), "view2": torch.rand(8, 3, 32, 32)})
    {'rank': tensor(...)}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eyespot.data.batches import REPEAT
from eyespot.data.graph import INTER, INTRA, adjacency, edge_purity, mutual_neighbours, transitive_pairs
from eyespot.draws import Draws, ensure, epoch_permutation
from eyespot.errors import UserError
from eyespot.losses.ranking import choose_negatives, rank_hinge
from eyespot.methods.method import Info, Method, MethodConfig, Recipe, Tools
from eyespot.methods.ranges import CROP, JITTER, POSITIVE, SHARE, WIDTH, check_ranges
from eyespot.nets.backbones import Backbone, backbone
from eyespot.nets.heads import mlp
from eyespot.process import gather
from eyespot.views.image import ViewSpec, clean, view
from eyespot.views.patches import GRID, cut
from eyespot.views.warp import homographies, warp


@dataclass(frozen=True)
class PatchPositionConfig(MethodConfig):
    width: int = 32
    """Channels of the first stage of the small network."""


class PatchPosition(Method):
    """Tells where one patch of a picture lies from the one in its middle (Doersch, Gupta, Efros; ICCV 2015): one of 8
    places of a 3 x 3 grid; each patch is moved in its cell, so that borders do not tell."""

    Config = PatchPositionConfig
    recipe = Recipe(
        optimizer="adam", lr=1e-3, lr_rule="none", weight_decay=0.0, batch_size=128, warmup_epochs=0.0, image_size=32
    )

    def __init__(self, config: PatchPositionConfig = PatchPositionConfig(), info: Info | None = None):
        super().__init__(None, config, info)
        net = backbone("resnet8", channels=self.info.channels, image_size=config.image_size, width=config.width)
        self.backbone, self.head = net, mlp(2 * net.embed_dim, 128, 8)

    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """ "middle" and "other" [B, C, p, p], and "place" int64 [B] in 0..7: row by row, without the middle."""
        cell = math.ceil(self.config.image_size / 2)
        patch = max(1, cell - max(2, cell // 5))
        place = draws.integers("place", 8)
        cells = torch.stack([torch.full_like(place, 4), place + (place >= 4)], 1)
        corners = cell * torch.stack([cells // GRID, cells % GRID], -1)
        starts = corners + draws.integers("moved", cell - patch + 1, 4).view(-1, 2, 2)
        middle, other = cut(clean(batch["image"], GRID * cell, device=draws.device), starts, patch)
        return {"middle": middle, "other": other, "place": place}

    def forward(self, views: dict[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        found = self.backbone(torch.cat([views["middle"], views["other"]])).chunk(2)
        return {"place": F.cross_entropy(self.head(torch.cat(found, 1)), views["place"])}


@dataclass(frozen=True)
class TransitiveInvarianceConfig(MethodConfig):
    out: int = 64
    """Width of the embedding that is compared (1024 in the paper)."""
    hidden: int = 128
    """Width of the head's hidden layer."""
    margin: float = 0.5
    """By how much a pair must be more alike than a negative, in units of cosine."""
    negatives: int = 4
    """Negatives of each pair."""
    hard: float = 0.5
    """Share of the negatives drawn from the most similar ones after the first phase; the others are random."""
    random_until: float = 0.25
    """Share of the training in which all negatives are random."""
    pairs: Literal["transitive", "both", "intra", "inter"] = "transitive"
    """Which pairs are trained on: all; both kinds of edges without composing them; one kind alone."""
    tracks: Literal["warp", "folders"] = "warp"
    """Where other views of an object come from: a warped picture, or the first and last picture of each folder (of
    each label); folders VIDEO#NUMBER of one video are never linked with each other."""
    features: Literal["context", "pixels", "labels"] = "context"
    """What neighbours are found by: a network trained on the context task, the pixels, or the classes (an oracle)."""
    neighbours: int = 3
    """Objects are linked when each is among so many nearest neighbours of the other."""
    context_epochs: float = 10.0
    """Epochs of the context task."""
    crop_min: float = 0.7
    """Least share of the area that a view keeps."""
    flip: float = 0.5
    """Probability that a view is mirrored left to right."""
    rotation: float = 40.0
    """Largest turn of a warped view in degrees."""
    perspective: float = 0.3
    """Largest share by which one border of a warped view is farther away than its middle."""
    warp_crop_min: float = 0.5
    """Least share of the area that a warped view keeps."""
    light: float = 0.4
    """Strength of the changes of brightness and contrast of a warped view."""


class TransitiveInvariance(Method):
    needs = "image"
    Config = TransitiveInvarianceConfig
    accepts = ("views", "terms")
    recipe = Recipe(
        optimizer="adam",
        lr=1e-3,
        lr_rule="none",
        weight_decay=5e-4,
        batch_size=256,
        epochs=50,
        warmup_epochs=0.0,
        schedule="constant",
        image_size=32,
        expected="VGG16 on millions of mined pairs: VOC 2007 detection 63.2 mAP (supervised: 67.3)",
    )

    def __init__(
        self,
        backbone: Backbone,
        config: TransitiveInvarianceConfig = TransitiveInvarianceConfig(),
        info: Info | None = None,
    ):
        super().__init__(backbone, config, info)
        check_ranges(config, out=WIDTH, hidden=WIDTH, margin=(0.0, 2.0), negatives=WIDTH, hard=SHARE, neighbours=WIDTH)
        check_ranges(config, random_until=SHARE, context_epochs=POSITIVE, crop_min=CROP, warp_crop_min=CROP, flip=SHARE)
        check_ranges(config, rotation=(0.0, 180.0), perspective=(0.0, 0.9), light=JITTER)
        self.head = mlp(backbone.embed_dim, config.hidden, config.out)

    # --- before training: the graph ------------------------------------------------------------------------------
    def prepare(self, data: Any, tools: Tools) -> dict[str, Tensor]:
        """The graph. A node below n is a picture of the data as it is, node n + i the warped view of picture i.

        Returns:
            "pairs" int64 [P, 3] (node, node, kind), "object" int64 [n], the object of each picture, "edges" int64
            [E, 2] of objects, "adjacent" the same by object, see `eyespot.data.graph.adjacency`, and "purity" [1], the
            share of edges within one class in percent, nan without classes.
        """
        c, n = self.config, len(data)
        if c.tracks == "folders":
            thing, first, last = _tracks(data)
        else:
            thing, first, last = np.arange(n), np.arange(n), n + np.arange(n)
        groups = _videos(self.info.class_names, thing[first]) if c.tracks == "folders" else None
        labels = data.labels if c.tracks == "warp" else None
        edges = np.empty((0, 2), np.int64)
        if c.pairs != "intra":
            edges = self._edges(data, tools, first, groups, labels)
            if not len(edges):
                raise UserError(f"No two of {len(first)} objects are neighbours; raise neighbours={c.neighbours}.")
        other = np.full(n, -1, np.int64)
        if c.pairs != "inter":
            other[first] = last
        nodes = first[:0] if c.pairs == "inter" else first
        pairs = transitive_pairs(first[edges], other, nodes, compose=c.pairs == "transitive")
        purity = float("nan") if labels is None else edge_purity(edges, labels)
        return {
            "pairs": torch.from_numpy(pairs),
            "object": torch.from_numpy(thing),
            "edges": torch.from_numpy(edges),
            "adjacent": torch.from_numpy(adjacency(edges, len(first))),
            "purity": torch.tensor([purity]),
        }

    def _edges(
        self, data: Any, tools: Tools, first: np.ndarray, groups: np.ndarray | None, labels: np.ndarray | None
    ) -> np.ndarray:
        c = self.config
        if c.features == "labels":
            if labels is None:
                raise UserError("features=labels links pictures of one class but there are none; use features=context.")
            vectors = np.random.default_rng(0).normal(size=(int(labels.max()) + 2, 64))[labels]
            vectors = vectors + 0.1 * np.random.default_rng(1).normal(size=vectors.shape)
        elif c.features == "pixels":
            vectors = tools.embed(lambda x: F.adaptive_avg_pool2d(x, 16).flatten(1), "pixels").numpy()[first]
            vectors = vectors - vectors.mean(0)
        else:
            net = PatchPosition(PatchPositionConfig(image_size=c.image_size), self.info)
            tools.fit(net, c.context_epochs, "context")
            net.eval()
            vectors = tools.embed(net.embed, "context").numpy()[first]
            # pooled features share a large mean, and a few channels hold most of the spread
            vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
        return mutual_neighbours(vectors, c.neighbours, groups)

    def batches(self, n: int, epoch: int, draws: Draws) -> np.ndarray | None:
        """Rows 2i and 2i + 1 are a pair of the graph; an epoch shows as many pictures as there are."""
        if "pairs" not in self.prepared:
            return None
        batch = self.info.batch_size
        if batch % 2:
            raise UserError(f"Pairs fill a batch of even size, not {batch}; set batch_size={batch + 1}.")
        if len(self.prepared["object"]) != n:
            raise UserError(
                f"The graph is of {len(self.prepared['object'])} pictures but the data has {n}; start a new run."
            )
        nodes = self.prepared["pairs"][:, :2].cpu().numpy() % n
        steps, size = max(1, n // batch), batch // 2
        # as many passes over the pairs as an epoch takes, and the next epoch goes on where this one ends
        start = epoch * steps * size
        place = np.arange(start, start + steps * size)
        turns = {t: epoch_permutation(draws.seed, int(t), len(nodes), "pairs") for t in np.unique(place // len(nodes))}
        order = np.array([turns[p // len(nodes)][p % len(nodes)] for p in place])
        return nodes[order].reshape(steps, batch)

    # --- training ------------------------------------------------------------------------------------------------
    def views(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """ "view1" and "view2" [P, C, S, S], the two sides of each pair, and "object1", "object2" int64 [P].

        A batch of pairs of the graph has rows 2i, 2i + 1. Of any other batch each picture is a pair of its own: as it
        is, and warped.
        """
        pictures = torch.from_numpy(draws.index % REPEAT)
        if not self._paired(pictures):
            thing = self._object_of(pictures).to(draws.device)
            views = {f"view{i + 1}": self._view(batch["image"], draws, bool(i)) for i in range(2)}
            return {**views, "object1": thing, "object2": thing.clone()}
        c, same = self.config, pictures[0::2] == pictures[1::2]
        moved = draws.scope("side").coin("warped", 0.5).cpu()
        # each of (A, B), (A, B'), (A', B), (A', B') is as likely; without composition both stay as they are
        moved = moved & (c.pairs == "transitive" and c.tracks == "warp")
        moved[0::2], moved[1::2] = moved[0::2] & ~same, moved[1::2] | same
        pixels = torch.where(
            moved.to(draws.device)[:, None, None, None],
            self._view(batch["image"], draws, True),
            self._view(batch["image"], draws, False),
        )
        thing = self._object_of(pictures).to(draws.device)
        return {"view1": pixels[0::2], "view2": pixels[1::2], "object1": thing[0::2], "object2": thing[1::2]}

    def _view(self, images: Any, draws: Draws, warped: bool) -> Tensor:
        c = self.config
        if not warped:
            plain = ViewSpec(c.image_size, (c.crop_min, 1.0), flip=c.flip, jitter=None, grey_p=0.0)
            return view(images, draws.scope("plain"), plain).pixels
        scale, strength = (c.warp_crop_min, 1.0), (c.light, c.light, 0.0, 0.0)
        own = draws.scope("warped")
        pixels = view(
            images, own, ViewSpec(c.image_size, scale, flip=c.flip, jitter=strength, jitter_p=1.0, grey_p=0.0)
        )
        return warp(pixels.pixels, homographies(own, c.rotation, c.perspective))

    def _object_of(self, pictures: Tensor) -> Tensor:
        """Objects int64 [B] of pictures; without a graph each picture is its own."""
        return self._kept("object", pictures.device)[pictures] if "object" in self.prepared else pictures

    def _paired(self, pictures: Tensor) -> bool:
        """Whether rows 2i and 2i + 1 are pairs of the graph: of one object, or of two that an edge links."""
        if "pairs" not in self.prepared or len(pictures) % 2:
            return False
        things = self._object_of(pictures)
        return bool(self._linked(things[0::2], things[1::2]).all())

    def _linked(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether objects a and b, int64 of one shape, are one or linked by an edge: bool of that shape."""
        if "adjacent" not in self.prepared:
            return a == b
        return (a == b) | (self._kept("adjacent", a.device)[a] == b.unsqueeze(-1)).any(-1)

    def _kept(self, name: str, device: torch.device) -> Tensor:
        """A prepared tensor, moved to where it is used once."""
        if self.prepared[name].device != device:
            self.prepared[name] = self.prepared[name].to(device)
        return self.prepared[name]

    def encode(self, views: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """ "query" and "key" [P, out], unit rows of the two sides of each pair, and their objects."""
        pixels = torch.cat([views["view1"], views["view2"]])
        query, key = F.normalize(self.head(self.backbone(pixels)), dim=1).chunk(2)
        own = torch.arange(len(query), device=query.device)
        things = {f"object{i}": views.get(f"object{i}", own) for i in (1, 2)}
        return {"query": query, "key": key, **things}

    def loss(self, encoded: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        c = self.config
        rows = _interleave(gather(encoded["query"]), gather(encoded["key"]))
        things = _interleave(gather(encoded["object1"]), gather(encoded["object2"]))
        related = self._linked(things[:, None].expand(-1, len(things)), things[None, :].expand(len(things), -1))
        hard = 0.0 if self.progress < c.random_until else c.hard
        pairs = len(rows) // 2
        noise = ensure(draws, pairs, rows.device).step_uniform("negatives", pairs * len(rows)).view(pairs, -1)
        chosen = choose_negatives(rows.detach(), related, c.negatives, c.margin, hard, 1.0 - hard, noise)
        self._watch(chosen)
        return {"rank": rank_hinge(rows, chosen, c.margin)}

    @torch.no_grad()
    def _watch(self, chosen: Tensor) -> None:
        """Share of the negatives that were found, and of the graph's edges within one class, in percent."""
        self.watch["negatives_found"] = (chosen >= 0).float().mean()
        purity = self.prepared.get("purity")
        if purity is not None and bool(purity.isfinite().all()):
            self.watch["edge_purity"] = purity[0]

    # --- to look at ------------------------------------------------------------------------------------------------
    def mined(self, data: Any, count: int) -> dict[str, Tensor]:
        """Evenly spaced mined edges, the most alike first: A, its other view A', B and B', [count, C, S, S] each."""
        edges = self.prepared.get("edges", torch.empty(0, 2))
        if not len(edges):
            return {}
        pairs = self.prepared["pairs"].cpu()
        inter = pairs[pairs[:, 2] == INTER][:, :2]
        inter = inter[torch.linspace(0, len(inter) - 1, min(count, len(inter))).long()]
        intra = pairs[pairs[:, 2] == INTRA]
        other = dict(zip(intra[:, 0].tolist(), intra[:, 1].tolist(), strict=True))
        shown: dict[str, Tensor] = {}
        for name, nodes in zip(("A", "B"), inter.T, strict=True):
            shown[name] = self._shown(data, nodes)
            shown[f"{name}'"] = self._shown(data, torch.tensor([other.get(int(i), int(i)) for i in nodes]))
        return shown

    def _shown(self, data: Any, nodes: Tensor) -> Tensor:
        """Nodes as pictures, the warped ones as in the first epoch."""
        images = data.batch(nodes.numpy() % len(data))["image"]
        plain = clean(images, self.config.image_size)
        if int(nodes.max()) < len(data):
            return plain
        return self._view(images, Draws(index=nodes.numpy() % len(data)), True)

    def plateau(self, batch: int) -> dict[str, float]:
        return {"rank": self.config.margin}


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """Rows 2i of `first` and 2i + 1 of `second`."""
    return torch.stack([first, second], 1).flatten(0, 1)


def _tracks(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object of each picture, int64 [n], by its label, and each object's first and last picture, int64 [m]."""
    labels = data.labels
    if labels is None or (labels < 0).any():
        raise UserError("tracks=folders needs a folder an object; use what eyespot tracks wrote, or tracks=warp.")
    _, first, thing = np.unique(labels, return_index=True, return_inverse=True)
    last = len(labels) - 1 - np.unique(labels[::-1], return_index=True)[1]
    if (first == last).all():
        raise UserError("tracks=folders needs two pictures in a folder, but each has one; use tracks=warp.")
    return thing.astype(np.int64), first, np.where(first == last, -1, last)


def _videos(names: tuple[str, ...], labels: np.ndarray) -> np.ndarray:
    """The video of each object, int64: what stands before the last # of its folder's name."""
    films = [names[i].rpartition("#")[0] or names[i] if i < len(names) else str(i) for i in labels]
    return np.unique(films, return_inverse=True)[1].astype(np.int64)
