"""The graph of mined pairs: neighbours, composition by one hop, limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyespot.data.graph import adjacency, edge_purity, mutual_neighbours, neighbours, transitive_pairs, unique_edges

edge_lists = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20)


@pytest.mark.golden
def test_pairs_agree_with_the_recorded_ones(golden):
    arrays, _ = golden("transitive_invariance__rank_loss_pairs")
    other = np.arange(arrays["inter_edges"].max() + 1) + arrays["track_offset"]
    assert np.array_equal(transitive_pairs(arrays["inter_edges"], other), arrays["pairs"])


def test_one_edge_between_two_tracks_gives_three_new_pairs():
    pairs = transitive_pairs(np.array([[0, 1]]), np.array([2, 3]))
    assert pairs.tolist() == [[0, 1, 1], [0, 3, 3], [2, 1, 3], [2, 3, 3], [0, 2, 2], [1, 3, 2]]


@given(edge_lists, st.booleans())
def test_pairs_are_unique_either_way_and_never_of_one_node(edges, compose):
    pairs = transitive_pairs(np.array(edges, int).reshape(-1, 2), np.arange(10) + 10, compose=compose)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len({frozenset(p) for p in pairs[:, :2].tolist()}) == len(pairs)
    links = {frozenset(e) for e in edges if e[0] != e[1]}
    assert (pairs[:, 2] == 1).sum() == len(links)
    assert (pairs[:, 2] == 3).sum() == (3 * len(links) if compose else 0)


def test_turned_edges_are_the_same_edges():
    edges = np.array([[0, 1], [1, 2], [1, 0], [2, 2]])
    assert unique_edges(edges).tolist() == [[0, 1], [1, 2]]
    as_sets = [
        {frozenset(p[:2]) for p in transitive_pairs(e, np.arange(3) + 3).tolist()} for e in (edges, edges[:, ::-1])
    ]
    assert as_sets[0] == as_sets[1]


def test_without_edges_only_tracks_are_left_and_without_tracks_only_edges():
    tracked, edges = np.array([4, 5, -1, 7]), np.array([[0, 1], [2, 3]])
    intra = transitive_pairs(edges[:0], tracked, np.arange(4))
    assert intra.tolist() == [[0, 4, 2], [1, 5, 2], [3, 7, 2]]
    inter = transitive_pairs(edges, np.full(4, -1), np.arange(4))
    assert inter.tolist() == [[0, 1, 1], [2, 3, 1]]


def test_an_object_without_a_track_composes_on_one_side_only():
    pairs = transitive_pairs(np.array([[0, 1]]), np.array([-1, 5]))
    assert pairs.tolist() == [[0, 1, 1], [0, 5, 3], [1, 5, 2]]


def slow_neighbours(x, k, groups):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if groups[j] != groups[i]]
        found.append(sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:k])
    return [row + [-1] * (k - len(row)) for row in found]


@pytest.mark.parametrize("groups", [np.arange(30), np.arange(30) // 3, np.arange(30) // 15])
def test_neighbours_equal_a_slow_search(groups):
    x = np.random.default_rng(0).normal(size=(30, 6))
    assert neighbours(x, 4, groups)[0].tolist() == slow_neighbours(x, 4, groups)
    # one leaf holds all
    assert neighbours(x, 4, groups, exact=0, trees=1, leaf=30)[0].tolist() == slow_neighbours(x, 4, groups)


def test_more_neighbours_than_objects_are_filled_up():
    found, cosines = neighbours(np.eye(3), 5)
    assert found.shape == (3, 5) and (found[:, 2:] == -1).all() and np.isneginf(cosines[:, 2:]).all()


def test_approximate_neighbours_find_most_and_are_repeatable():
    random = np.random.default_rng(1)
    x = random.normal(size=(400, 8)).repeat(4, 0) + 0.3 * random.normal(size=(1600, 8))
    exact, near = neighbours(x, 3)[0], neighbours(x, 3, exact=0)[0]
    assert np.mean([len(set(a) & set(b)) / 3 for a, b in zip(exact, near, strict=True)]) > 0.95
    assert np.array_equal(near, neighbours(x, 3, exact=0)[0])


def test_the_approximate_search_compares_near_linearly_many_objects(monkeypatch):
    from eyespot.data import graph

    compared, real = [], graph._improve
    monkeypatch.setattr(
        graph, "_improve", lambda x, g, r, o, *a: (compared.append(len(r) * len(o)), real(x, g, r, o, *a))
    )
    counts = []
    for n in (2000, 8000):
        compared.clear()
        neighbours(np.random.default_rng(0).normal(size=(n, 4)), 2, exact=0, trees=2)
        counts.append(sum(compared))
    assert counts[1] < 4.5 * counts[0]


def test_mutual_neighbours_are_in_each_others_lists():
    x = np.random.default_rng(2).normal(size=(60, 5))
    groups = np.arange(60) // 2
    found, edges = neighbours(x, 3, groups)[0], mutual_neighbours(x, 3, groups)
    expected = {(a, int(b)) for a in range(60) for b in found[a] if a < b and a in found[b]}
    assert {tuple(e) for e in edges.tolist()} == expected and len(edges) == len(expected)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (unit[edges[:, 0]] * unit[edges[:, 1]]).sum(1)
    assert (np.diff(cosines) <= 1e-6).all()


def test_adjacency_and_purity():
    edges = np.array([[0, 1], [0, 3]])
    assert adjacency(edges, 5).tolist() == [[1, 3], [0, -1], [-1, -1], [0, -1], [-1, -1]]
    assert adjacency(edges[:0], 2).tolist() == [[-1], [-1]]
    assert edge_purity(edges, np.array([1, 1, 0, 2])) == 50.0
    assert np.isnan(edge_purity(edges[:0], np.zeros(3)))
