"""The graph of mined pairs: mutual nearest neighbours between objects, and pairs composed along two kinds of edges.

    edges = mutual_neighbours(features, 3, groups=video)     # A ~ B across objects
    pairs = transitive_pairs(edges, other_view)              # (A, B), (A, B'), (A', B), (A', B'), then (A, A')

Pure functions of numpy arrays. Above `EXACT` objects the neighbours are searched in the leaves of random trees: the
cost then grows with n log n. One hop only: a wrong edge is not carried further.
"""

from __future__ import annotations

import numpy as np

INTER, INTRA, TRANSITIVE = 1, 2, 3
"""Kinds of pairs: two objects as they were found, two views of one object, and what follows from both."""
EXACT = 10_000
"""Up to so many objects every one is compared with every other."""
TREES, LEAF, BLOCK = 8, 128, 512


def neighbours(
    features: np.ndarray,
    k: int,
    groups: np.ndarray | None = None,
    *,
    exact: int = EXACT,
    trees: int = TREES,
    leaf: int = LEAF,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest objects of other groups by cosine.

    Args:
        features: [n, D] of any length.
        k: how many.
        groups: int64 [n]; objects of one group (views of one thing, one video) are never neighbours.
        exact: up to so many objects all are compared; above, those that share a leaf of one of `trees` random trees,
            whose leaves hold at most `leaf` objects.
        seed: of the trees.

    Returns:
        Objects int64 [n, k], the nearest first, -1 where there are no more, and their cosines float32 [n, k].
    """
    x = np.asarray(features, np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    own = np.arange(len(x)) if groups is None else np.asarray(groups)
    found, cosines = np.full((len(x), k), -1, np.int64), np.full((len(x), k), -np.inf, np.float32)
    if len(x) <= exact:
        everyone = np.arange(len(x))
        for start in range(0, len(x), BLOCK):
            _improve(x, own, everyone[start : start + BLOCK], everyone, found, cosines)
    else:
        random = np.random.default_rng(seed)
        for _ in range(trees):
            for rows in _leaves(x, leaf, random):
                _improve(x, own, rows, rows, found, cosines)
    return found, cosines


def _improve(
    x: np.ndarray, groups: np.ndarray, rows: np.ndarray, others: np.ndarray, found: np.ndarray, cosines: np.ndarray
) -> None:
    """The best k among those found so far and `others`, for `rows`; in place."""
    k = found.shape[1]
    sims = x[rows] @ x[others].T
    sims[groups[rows][:, None] == groups[others][None, :]] = -np.inf
    known = (others[None, None, :] == found[rows][:, :, None]).any(1) if (found[rows] >= 0).any() else None
    if known is not None:
        sims[known] = -np.inf  # it is among those found already
    best = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    new = np.where(np.isfinite(np.take_along_axis(sims, best, 1)), others[best], -1)
    both = np.concatenate([cosines[rows], np.take_along_axis(sims, best, 1)], 1)
    names = np.concatenate([found[rows], new], 1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    cosines[rows] = np.take_along_axis(both, order, 1)
    found[rows] = np.take_along_axis(names, order, 1)


def _leaves(x: np.ndarray, most: int, random: np.random.Generator) -> list[np.ndarray]:
    """A random tree over rows [n, D]: each node halves its objects at the median along the line through two of them."""
    leaves, open_ = [], [np.arange(len(x))]
    while open_:
        rows = open_.pop()
        if len(rows) <= most:
            leaves.append(rows)
            continue
        a, b = random.choice(rows, 2, replace=False)
        order = rows[np.argsort(x[rows] @ (x[a] - x[b]), kind="stable")]
        open_ += [order[: len(rows) // 2], order[len(rows) // 2 :]]
    return leaves


def mutual_neighbours(
    features: np.ndarray, k: int, groups: np.ndarray | None = None, *, exact: int = EXACT, seed: int = 0
) -> np.ndarray:
    """Objects that are among each other's k nearest, see `neighbours`: int64 [E, 2], each once, a < b, the most similar
    first."""
    found, cosines = neighbours(features, k, groups, exact=exact, seed=seed)
    a, b = np.repeat(np.arange(len(found)), k), found.reshape(-1)
    there = b >= 0
    a, b, near = a[there], b[there], cosines.reshape(-1)[there]
    n = len(found)
    mutual = np.isin(a * n + b, b * n + a) & (a < b)
    edges = np.stack([a[mutual], b[mutual]], 1)
    return edges[np.argsort(-near[mutual], kind="stable")]


def unique_edges(edges: np.ndarray) -> np.ndarray:
    """Edges int64 [E, 2] without links to itself and without repetition, in either direction; the first one stays."""
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    edges = edges[edges[:, 0] != edges[:, 1]]
    _, first = np.unique(np.sort(edges, 1), axis=0, return_index=True)
    return edges[np.sort(first)]


def transitive_pairs(
    edges: np.ndarray, other_view: np.ndarray, nodes: np.ndarray | None = None, *, compose: bool = True
) -> np.ndarray:
    """Pairs (u, v, kind) int64 [P, 3] that follow from both kinds of edges by one hop, each once in either direction.

    Args:
        edges: int64 [E, 2], pairs of objects A ~ B.
        other_view: int64 [n], the node A' that shows object A at another time; -1 where there is none.
        nodes: objects of which (A, A') is a pair; none takes the objects of the edges.
        compose: whether (A, B'), (A', B) and (A', B') are added; without, both kinds of edges stand side by side.

    Returns:
        For every edge (A, B), kind 1, then (A, B'), (A', B), (A', B'), kind 3; then (A, A') of `nodes`, kind 2.
    """
    edges, other_view = unique_edges(edges), np.asarray(other_view, np.int64)
    a, b = edges.T
    a2, b2 = other_view[a], other_view[b]
    ends = [(a, b, INTER), *([(a, b2, TRANSITIVE), (a2, b, TRANSITIVE), (a2, b2, TRANSITIVE)] if compose else [])]
    rows = np.stack([np.stack([u, v, np.full_like(u, kind)], 1) for u, v, kind in ends], 1).reshape(-1, 3)
    used = np.unique(edges) if nodes is None else np.asarray(nodes, np.int64)
    rows = np.concatenate([rows, np.stack([used, other_view[used], np.full_like(used, INTRA)], 1)])
    rows = rows[(rows[:, :2] >= 0).all(1) & (rows[:, 0] != rows[:, 1])]
    _, first = np.unique(np.sort(rows[:, :2], 1), axis=0, return_index=True)
    return rows[np.sort(first)]


def adjacency(edges: np.ndarray, n: int) -> np.ndarray:
    """The objects that each of n objects is linked with: int64 [n, largest number], filled up with -1."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    place = np.arange(len(both)) - np.searchsorted(both[:, 0], both[:, 0])
    table = np.full((n, max(1, int(place.max(initial=0)) + 1)), -1, np.int64)
    table[both[:, 0], place] = both[:, 1]
    return table


def edge_purity(edges: np.ndarray, labels: np.ndarray) -> float:
    """Share of the edges int64 [E, 2] whose two objects have one label, in percent; nan without edges."""
    labels = np.asarray(labels)
    return float(100 * (labels[edges[:, 0]] == labels[edges[:, 1]]).mean()) if len(edges) else float("nan")
