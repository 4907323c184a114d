"""Taking pictures apart into objects, by a method's own parts, version 1.

A method that rebuilds pictures from parts has `decompose(pixels [B, C, S, S], run) -> {"picture", "masks" [B, K, 1, S,
S]}`. Its masks are compared with masks that number the objects of each picture, 0 where the background is. No label is
used, and nothing is trained; where the parts start from random numbers, the metrics are means over 5 such starts. The
floor is the same method with random weights. The definitions are those of Yuan et al. (TPAMI 2023; arXiv 2202.07135):

    ARI_O, AMI_O    adjusted Rand index and adjusted mutual information on the pixels of objects, by the TRUE masks;
                    the part that wins a pixel, the background's left out where the method says which one it is
    ARI_A, AMI_A    the same on all pixels, where the background is one more part; all parts may win
    OCA             share of the pictures with the right number of objects: parts that win a pixel, less the background
    IoU, F1         of visible objects and the parts matched to them, mean over all objects of the set. The survey asks
                    for complete shapes, also where they are hidden, which methods without shapes do not give
    OOA             for methods whose parts are in an order, and data with complete shapes: how much of the overlaps of
                    two objects lies in pairs whose parts are in the right order
    MSE             mean squared error of the rebuilt pictures, pixels in [0, 1]; the only one that is no percentage

`config.controls` has the same of one part for the whole picture, and of k-means on the colours of each picture with as
many clusters as the method has parts. At most 400 test pictures, drawn by the seed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from eyespot.data.loader import Data
from eyespot.data.masks import open_masked
from eyespot.draws import epoch_permutation
from eyespot.errors import UserError
from eyespot.evaluate.dense import Side, still
from eyespot.evaluate.measured import Measured, Outcome
from eyespot.evaluate.models import channels_of, run_folder, seeded
from eyespot.evaluate.representation import data_id
from eyespot.metrics import scenes as metrics
from eyespot.options import EvaluateOptions
from eyespot.views.image import clean_masks

NAME = "scenes"
VERSION = 1
SETTINGS = ("image_size", "ignore")
PICTURES = 400
"""Most pictures that are measured."""
RUNS = 5
"""Starts over which a method with random slots is averaged."""
MOST_OBJECTS = 64


@dataclass
class Tally:
    """What was found of one decomposition so far; `outcome` makes metrics of it.

    Args:
        slots: number of parts.
        background: the part that is always the background, or None.
        ordered: whether the parts are in an order, the front first.
    """

    slots: int
    background: int | None = None
    ordered: bool = False
    each: dict[str, list[Tensor]] = field(default_factory=dict)
    pairs: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, true: Tensor, counted: Tensor, masks: Tensor, layers: Sequence[Tensor] | None) -> None:
        """Count a batch.

        Args:
            true: int64 [B, S, S], 0 where the background is seen.
            counted: bool [B, S, S], false for pixels that are ignored.
            masks: [B, K, S, S] of the parts.
            layers: complete shapes of the objects bool [k, S, S] of each picture, the front first, where known.
        """
        objects = [k for k in range(self.slots) if k != self.background]
        for name, pixels, parts in (("O", counted & (true > 0), masks[:, objects]), ("A", counted, masks)):
            rand, information = metrics.partition_scores(true, parts.argmax(1), pixels)
            self._keep(**{f"ARI_{name}": rand, f"AMI_{name}": information})
        found = metrics.winning_slots(masks.argmax(1), self.slots, self.background)
        self._keep(OCA=100.0 * (found == metrics.true_objects(true * counted, 0)).double())
        for b in range(len(true)):
            self._match(true[b], counted[b], masks[b : b + 1, objects], None if layers is None else layers[b])

    def _match(self, true: Tensor, counted: Tensor, masks: Tensor, layers: Tensor | None) -> None:
        """Objects against the parts matched to them, of one picture."""
        numbers = torch.arange(1, len(layers) + 1) if layers is not None else true[counted & (true > 0)].unique()
        if not len(numbers):
            return
        seen = (true[None] == numbers[:, None, None])[None] & counted
        shown = masks * counted
        order = metrics.match_slots(seen, shown)
        iou, f1 = metrics.shape_overlaps(seen, shown, order)
        self._keep(IoU=100 * iou, F1=100 * f1)
        if self.ordered and layers is not None:
            right, whole = metrics.ordered_pairs(layers[None], order)
            self.pairs = [self.pairs[0] + right, self.pairs[1] + whole]

    def _keep(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.each.setdefault(name, []).append(value)

    def outcome(self) -> dict[str, float]:
        """The metrics, in percent; of pictures without objects ARI_O and AMI_O are not defined and left out."""
        means = {name: float(torch.cat(values).nanmean()) for name, values in self.each.items()}
        if self.ordered and self.pairs[1]:
            means["OOA"] = 100 * self.pairs[0] / self.pairs[1]
        return means


def measure(o: EvaluateOptions, floor_seeds: int, device: torch.device) -> Measured:
    """The protocol on the method of a run and on the same with random weights.

    Raises:
        UserError: the model is no run, its method takes nothing apart, or there are no masks.
    """
    methods = _methods(o, floor_seeds)
    given, split = (o.data, o.split) if o.test_data is None else (o.test_data, None)
    source = open_masked(given, split=split, image_column=o.image_column, mask_column=o.mask_column)
    channels = channels_of(o.model, o.channels, o.pretrained)
    data = Data(source, channels=channels, workers=o.workers, max_bad=o.max_bad, cache_bytes=0)
    rows = np.sort(epoch_permutation(o.seed, 0, len(data), NAME)[:PICTURES])
    host = _host(methods[0])
    size = int(host.config.image_size)
    if o.image_size not in (None, size):
        raise UserError(f"The decoder of the run gives pictures of {size} px, not {o.image_size}; leave the size out.")
    side = Side(data, rows, size, o.batch_size, device)
    started = time.perf_counter()
    outcomes, controls, read = _measured(methods, side, o)
    if not read:
        raise UserError(f"No picture of '{source.name}' has a mask that can be used; mend the masks.")
    config = {
        "run": str(getattr(o.model, "path", o.model)),
        "backbone": host.backbone.name,
        "weights": "trained",
        "image_size": size,
        "channels": host.backbone.channels,
        "data": source.name,
        "test_data": source.name,
        "data_id": data_id(source.pictures, o.seed),
        "ignore": list(o.ignored),
        "slots": host.groups,
        "starts": _starts(host),
        "controls": controls,
        "floor": {"weights": "random, as initialised", "seeds": [o.seed + k for k in range(len(methods) - 1)]},
    }
    config |= {} if o.name is None else {"name": o.name}
    return Measured(
        protocol=NAME,
        version=VERSION,
        outcomes=outcomes,
        config=config,
        n_train=0,
        n_test=read,
        classes=0,
        seconds=time.perf_counter() - started,
        bad=len(side.bad),
        seed=o.seed,
    )


def _host(method: Any) -> Any:
    return getattr(method, "host", method)


def _starts(method: Any) -> int:
    return RUNS if method.random_slots else 1


def _methods(o: EvaluateOptions, floor_seeds: int) -> list[nn.Module]:
    """The method of the run, and the same with random weights."""
    from eyespot.train.build import fresh_method, load_method

    folder = run_folder(o.model) if not isinstance(o.model, nn.Module) else None
    if folder is None:
        raise UserError(f"Protocol scenes looks at a trained method, which '{o.model}' is not; give a run.")
    method = load_method(folder)
    if not callable(getattr(_host(method), "decompose", None)):
        raise UserError(
            f"{type(_host(method)).__name__} takes no pictures apart; use a run of slot_attention or monet."
        )
    twins = floor_seeds if o.floor else 0
    return [method, *(seeded(o.seed + k, partial(fresh_method, folder)) for k in range(twins))]


@torch.no_grad()
def _measured(
    methods: Sequence[nn.Module], side: Side, o: EvaluateOptions
) -> tuple[list[Outcome], dict[str, Mapping[str, float]], int]:
    """What each method gives, what the controls give, and how many pictures were read."""
    host = _host(methods[0])
    runs, slots = _starts(host), host.groups
    tallies = [[Tally(slots, host.background, host.ordered) for _ in range(runs)] for _ in methods]
    errors: list[list[list[Tensor]]] = [[[] for _ in range(runs)] for _ in methods]
    controls = {"one_part": Tally(1), "colour_kmeans": Tally(slots)}
    complete = getattr(side.source.pictures, "layers", None)
    read = 0
    with still(methods, side.device):
        for rows, pixels, values in side.stream():
            read += len(rows)
            counted = ~torch.isin(values, torch.tensor([*o.ignored], dtype=values.dtype))
            true = torch.where(counted, values, 0)
            _check_numbers(true, side)
            layers = None if complete is None else [_layers(complete(int(i)), side.size) for i in rows]
            for k, method in enumerate(methods):
                weight = next(method.parameters())
                for run in range(runs):
                    found = _host(method).decompose(pixels.to(weight.dtype), run)
                    tallies[k][run].add(true, counted, found["masks"][:, :, 0].float().cpu(), layers)
                    errors[k][run].append((found["picture"] - pixels).square().mean((1, 2, 3)).double().cpu())
            controls["one_part"].add(true, counted, torch.ones(len(rows), 1, *true.shape[1:]), layers)
            controls["colour_kmeans"].add(true, counted, colour_clusters(pixels, slots, o.seed), layers)
    outcomes = [_outcome(own, wrong) for own, wrong in zip(tallies, errors, strict=True)] if read else []
    return outcomes, {name: _rounded(tally.outcome()) for name, tally in controls.items()}, read


def _outcome(tallies: Sequence[Tally], errors: Sequence[Sequence[Tensor]]) -> Outcome:
    """Means over the starts, and their deviation."""
    each = [t.outcome() | {"MSE": float(torch.cat(list(e)).mean())} for t, e in zip(tallies, errors, strict=True)]
    means = {name: float(np.mean([found[name] for found in each])) for name in each[0]}
    spread = {name: float(np.std([found[name] for found in each])) for name in each[0]}
    return means, ({"std_over_starts": _rounded(spread)} if len(each) > 1 else {})


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _layers(layers: Tensor, size: int) -> Tensor:
    """Complete shapes bool [k, H, W] at the size of the network."""
    return clean_masks([layer.long() for layer in layers], size).bool()


def _check_numbers(true: Tensor, side: Side) -> None:
    most = max(len(t.unique()) for t in true)
    if most > MOST_OBJECTS:
        raise UserError(
            f"A mask of '{side.source.name}' holds {most} different numbers, so it seems to hold colours; give masks "
            "that number the objects of a picture, 0 where the background is."
        )


def colour_clusters(pixels: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """The control: masks [B, K, S, S] of 0 and 1, k-means on the colours of each picture [B, C, S, S] by itself."""
    masks = torch.zeros(len(pixels), clusters, *pixels.shape[2:])
    for picture, mask in zip(pixels.cpu(), masks, strict=True):
        colours = picture.flatten(1).T.double().numpy()
        few = min(clusters, len(np.unique(colours, axis=0)))
        found = KMeans(few, n_init="auto", random_state=seed).fit_predict(colours)
        mask.view(clusters, -1)[torch.from_numpy(found).long(), torch.arange(len(found))] = 1.0
    return masks
