"""A picture of what a representation finds alike: nearest neighbours before and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.draws import epoch_permutation
from eyespot.errors import UserError
from eyespot.evaluate.features import extract_many
from eyespot.evaluate.knn import nearest
from eyespot.evaluate.models import channels_of, open_model, random_twin
from eyespot.nets.backbones import Backbone
from eyespot.runs import replacing
from eyespot.views.image import clean

SAME, OTHER, UNKNOWN = (38, 145, 74), (214, 64, 69), (150, 150, 150)
PAPER, INK = (255, 255, 255), (40, 40, 40)
GAP, FRAME, SIDE, CAPTION, HEAD = 6, 4, 64, 14, 44
TILE = SIDE + 2 * FRAME


def draw_neighbours(run: Any, data: Any, *, out: str | Path | None = None, seed: int = 0) -> Path:
    """The picture for a finished run, kept in its `pictures/neighbours.png` (or in `out`).

    Args:
        run: run, run folder, or backbone.
        data: pictures to search, whatever `pretrain` takes as data.
        seed: draws the queries and the random weights of the left side.
    """
    pictures = data if isinstance(data, Data) else Data(open_source(data), channels=channels_of(run, None))
    model = open_model(run, pictures)
    path = Path(out) if out is not None else Path(model.name) / "pictures" / "neighbours.png"
    neighbours_picture(None, model.net, pictures, path, seed=seed)
    return path


def neighbours_picture(
    before: Backbone | None,
    after: Backbone,
    data: Data,
    out: str | Path,
    *,
    queries: int = 8,
    neighbours: int = 6,
    most: int = 2000,
    image_size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    titles: Sequence[str] = ("random weights", "trained"),
    seed: int = 0,
) -> dict[str, Any]:
    """Draw the nearest neighbours of some pictures, by the features of two networks, as a PNG.

    Where labels are known a neighbour of the query's class has a green frame, another a red one, and the share of
    neighbours of the same class, over all pictures searched, stands above each side.

    Args:
        before: the network of the left side; None takes `after` with random weights.
        data: the pictures; at most `most` of them are searched, drawn by `seed`, bad ones left out.
        titles: of the left and the right side.

    Returns:
        {"out", "searched", "same_class": [before, after] in percent, or None without labels}.

    Raises:
        UserError: fewer than two readable pictures.
    """
    left = random_twin(after, seed) if before is None else before
    if left is None:
        raise UserError(f"{after.name} cannot be drawn anew; give the network as it was before training.")
    rows = np.sort(epoch_permutation(seed, 0, len(data), "neighbours")[:most])
    size = image_size or after.image_size
    features = extract_many([left, after], data, rows, image_size=size, batch_size=batch_size, device=device)
    count = min(neighbours, len(features) - 1)
    if count < 1:
        raise UserError(f"'{data.source.name}' has {len(features)} readable picture; neighbours need at least two.")
    found = [others(vectors, count) for vectors in features.vectors]
    labels = features.labels
    same = None if labels is None else [_same_class(labels, rows) for rows in found]
    asked = choose_queries(labels, len(features), queries, seed)
    shown = np.unique(np.concatenate([asked, *(side[asked].reshape(-1) for side in found)]))
    tiles = dict(zip(shown.tolist(), _tiles(data, features.index[shown], size), strict=True))
    image = _draw(asked, found, labels, tiles, features.class_names, _heads(titles, same, count))
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        image.save(part, format="PNG", compress_level=1)
    return {"out": str(path), "searched": len(features), "same_class": same}


def others(features: Tensor, k: int) -> np.ndarray:
    """The k nearest other samples of each sample by cosine, nearest first: int64 [N, k] for features [N, D]."""
    found = []
    for start in range(0, len(features), 512):
        rows = nearest(features[start : start + 512], features, k + 1)[1]
        own = torch.arange(start, start + len(rows))[:, None]
        # the sample itself is dropped; where equal samples pushed it out of the list, the last one is
        keep = rows != own
        keep[keep.all(1), k] = False
        found.append(rows[keep].view(len(rows), k))
    return torch.cat(found).numpy()


def choose_queries(labels: np.ndarray | None, n: int, count: int, seed: int) -> np.ndarray:
    """At most `count` of n samples, drawn by `seed`, from as many different classes as there are."""
    order = epoch_permutation(seed, 0, n, "queries")
    if labels is None:
        return order[:count]
    turn = np.zeros(n, np.int64)  # how many of the class came before
    for value in np.unique(labels):
        rows = order[labels[order] == value]
        turn[rows] = np.arange(len(rows)) + (n if value < 0 else 0)
    return order[np.argsort(turn[order], kind="stable")][:count]


def _same_class(labels: np.ndarray, found: np.ndarray) -> float:
    known = labels >= 0
    return 100.0 * float((labels[found] == labels[:, None])[known].mean()) if known.any() else 0.0


def _heads(titles: Sequence[str], same: list[float] | None, count: int) -> list[str]:
    shares = [""] * 2 if same is None else [f"\n{s:.1f} % of the {count} nearest share the class" for s in same]
    return [title + share for title, share in zip(titles, shares, strict=True)]


def _tiles(data: Data, rows: np.ndarray, size: int) -> list[Image.Image]:
    """Square pictures of SIDE pixels; small ones are enlarged, without smoothing where that is by a whole number."""
    batch = data.batch(rows)
    size = min(size, SIDE)
    pixels = clean(batch["image"], size)
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    how = Image.Resampling.BILINEAR if SIDE % size else Image.Resampling.NEAREST
    return [Image.fromarray(v).resize((SIDE, SIDE), how) for v in values]


def _draw(
    asked: np.ndarray,
    found: list[np.ndarray],
    labels: np.ndarray | None,
    tiles: dict[int, Image.Image],
    class_names: Sequence[str],
    heads: Sequence[str],
) -> Image.Image:
    """One row a query: the query, its neighbours on the left side, its neighbours on the right side."""
    count = found[0].shape[1]
    cell, caption = TILE + GAP, CAPTION if labels is not None else 0
    starts = [cell + 3 * GAP, cell + 3 * GAP + count * cell + 3 * GAP]
    width, height = starts[1] + count * cell + GAP, HEAD + len(asked) * (cell + caption) + GAP
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), "query", INK, font=ImageFont.load_default(14))
    for start, head in zip(starts, heads, strict=True):
        draw.multiline_text((start, GAP), head, INK, font=ImageFont.load_default(14), spacing=2)
    for line, query in enumerate(asked.tolist()):
        top = HEAD + line * (cell + caption)
        places = [(GAP, query, INK)]
        for start, side in zip(starts, found, strict=True):
            for k, other in enumerate(side[query].tolist()):
                places.append((start + k * cell, other, _colour(labels, query, other)))
        for x, sample, colour in places:
            draw.rectangle((x, top, x + TILE - 1, top + TILE - 1), fill=colour)
            image.paste(tiles[sample], (x + FRAME, top + FRAME))
            if labels is not None:
                draw.text(
                    (x, top + TILE), _caption(int(labels[sample]), class_names), INK, font=ImageFont.load_default(10)
                )
    return image


def _colour(labels: np.ndarray | None, query: int, other: int) -> tuple[int, int, int]:
    if labels is None or labels[query] < 0 or labels[other] < 0:
        return UNKNOWN
    return SAME if labels[query] == labels[other] else OTHER


def _caption(label: int, class_names: Sequence[str]) -> str:
    if label < 0:
        return "?"
    name = class_names[label] if label < len(class_names) else str(label)
    return name if len(name) <= 13 else name[:12] + "…"
