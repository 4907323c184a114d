"""Transitive invariance: the graph it mines, the batches of pairs, their views, the loss against its parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from eyespot.data.batches import occurrence_keys
from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.ranking import choose_negatives, rank_hinge, same_label
from eyespot.methods.image.transitive_invariance import (
    PatchPosition,
    PatchPositionConfig,
    TransitiveInvariance,
    TransitiveInvarianceConfig,
)
from eyespot.methods.method import Info, total
from eyespot.nets.backbones import backbone
from eyespot.train.plan import Plan
from eyespot.train.tools import RunTools

N, SIDE, BATCH = 48, 16, 8


class Toys(torch.utils.data.Dataset):
    """Gratings of four directions."""

    classes = ("a", "b", "c", "d")
    targets = tuple(int(i) for i in np.arange(N) % 4)

    def __len__(self):
        return N

    def __getitem__(self, i):
        y, x = np.mgrid[:SIDE, :SIDE]
        angle = np.pi * (i % 4) / 4
        wave = np.sin(0.9 * (np.cos(angle) * x + np.sin(angle) * y) + 0.02 * i)
        return Image.fromarray((127 + 90 * wave).astype(np.uint8)), i % 4


@pytest.fixture(scope="module")
def data():
    return Data(open_source(Toys()), channels=3, workers=0)


def make(names=(), batch=BATCH, **config):
    torch.manual_seed(0)
    net = backbone("resnet8", image_size=SIDE, width=8)
    settings = TransitiveInvarianceConfig(
        **{"image_size": SIDE, "out": 8, "hidden": 16, "features": "pixels", **config}
    )
    return TransitiveInvariance(net, settings, Info(samples=N, batch_size=batch, class_names=names))


def tools(data):
    return RunTools(data, Plan(TransitiveInvariance.recipe, 1e-3, BATCH, 1, 1, 1.0), SIDE)


def prepared(data, names=(), **config):
    method = make(names, **config)
    method.prepared = method.prepare(data, tools(data))
    return method


def batch_of(method, data, step=0, epoch=0):
    rows = method.batches(len(data), epoch, Draws(0))[step]
    keys = occurrence_keys(rows)
    return data.batch(rows, keys), Draws(0, epoch, step, keys)


# --- the graph --------------------------------------------------------------------------------------------------------
def test_every_edge_is_composed_and_every_picture_has_its_track(data):
    p = prepared(data).prepared
    kinds = torch.bincount(p["pairs"][:, 2], minlength=4).tolist()
    assert len(p["edges"]) > N // 2
    assert kinds == [0, len(p["edges"]), N, 3 * len(p["edges"])]
    pairs = p["pairs"][:, :2].tolist()
    for a, b in p["edges"].tolist():
        for pair in ([a, b], [a, b + N], [a + N, b], [a + N, b + N]):
            assert pair in pairs
    assert float(p["purity"]) > 80  # the directions are easy to tell by their pixels


def test_the_other_arms_have_the_pairs_of_their_edges_alone(data):
    kinds = {}
    for arm in ("both", "intra", "inter"):
        p = prepared(data, pairs=arm).prepared
        kinds[arm] = torch.bincount(p["pairs"][:, 2], minlength=4).tolist()
    edges = kinds["both"][1]
    assert kinds == {"both": [0, edges, N, 0], "intra": [0, 0, N, 0], "inter": [0, edges, 0, 0]} and edges > 0


def test_an_oracle_links_one_class_alone(data):
    assert float(prepared(data, features="labels").prepared["purity"]) == 100.0


def test_the_context_task_gives_features_for_the_graph(data):
    method = prepared(data, features="context", context_epochs=1.0)
    assert len(method.prepared["edges"]) > 0
    assert torch.equal(
        method.prepared["edges"], prepared(data, features="context", context_epochs=1.0).prepared["edges"]
    )


def test_patches_lie_in_their_cells(data):
    net = PatchPosition(PatchPositionConfig(image_size=SIDE, width=8))
    views = net.views(data.batch(np.arange(N)), Draws(index=range(N)))
    assert set(views["place"].tolist()) == set(range(8))
    assert views["middle"].shape == views["other"].shape and views["middle"].shape[-1] < SIDE // 2
    loss = total(net(views))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.log(8), abs=0.7)
    # a picture whose brightness says where each place is
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    ramp = ((y // 8 * 3 + x // 8) * 20).to(torch.uint8).expand(N, 3, 24, 24)
    views = net.views({"image": ramp}, Draws(index=range(N)))
    place = views["place"] + (views["place"] >= 4)
    assert torch.allclose(views["middle"].mean((1, 2, 3)), torch.tensor(80 / 255), atol=0.01)
    assert torch.allclose(views["other"].mean((1, 2, 3)), place * 20 / 255, atol=0.01)


# --- tracks as folders ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Two films of four tracks; the third picture of a track is its end, the one between is not used."""
    root, toys = tmp_path_factory.mktemp("tracks"), Toys()
    for i in range(8):
        place = root / f"film{i // 4}#{i % 4:03d}"
        place.mkdir()
        for k in range(1 if i == 7 else 3):
            toys[i + 8 * k][0].save(place / f"{k}.png")
    return Data(open_source(root), channels=3, workers=0)


def test_folders_are_tracks_and_one_film_is_never_linked_with_itself(tracks):
    method = prepared(tracks, names=tracks.class_names, tracks="folders")
    p = method.prepared
    assert p["object"].tolist() == [i for i in range(7) for _ in range(3)] + [7]
    intra = p["pairs"][p["pairs"][:, 2] == 2][:, :2].tolist()
    assert intra == [[3 * i, 3 * i + 2] for i in range(7)]  # the last object has one picture
    assert len(p["edges"]) > 0 and all(a // 4 != b // 4 for a, b in p["edges"].tolist())
    batch, draws = batch_of(method, tracks)
    views = method.views(batch, draws)
    assert bool(method._linked(views["object1"], views["object2"]).all())


def test_tracks_need_two_pictures_of_an_object(data, tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        Toys()[i][0].save(tmp_path / str(i) / "0.png")
    single = Data(open_source(tmp_path), channels=3, workers=0)
    with pytest.raises(UserError, match="two pictures"):
        prepared(single, tracks="folders")


# --- batches and views ------------------------------------------------------------------------------------------------
def test_batches_are_pairs_of_the_graph_and_epochs_go_on(data):
    method = prepared(data)
    pairs = method.prepared["pairs"][:, :2] % N
    seen = []
    for epoch in range(3 * len(pairs) // (N // 2)):
        rows = method.batches(N, epoch, Draws(0))
        assert rows.shape == (N // BATCH, BATCH)
        seen += rows.reshape(-1, 2).tolist()
    first = sorted(map(tuple, seen[: len(pairs)]))
    assert first == sorted(map(tuple, pairs.tolist()))  # each once before any comes again
    assert seen[: len(pairs)] != seen[len(pairs) : 2 * len(pairs)]


def test_batches_refuse_an_odd_size_and_other_data(data):
    method = prepared(data)
    with pytest.raises(UserError, match="start a new run"):
        method.batches(N + 1, 0, Draws(0))
    method.info = dataclasses.replace(method.info, batch_size=7)
    with pytest.raises(UserError, match="even"):
        method.batches(N, 0, Draws(0))


def sides(method, data, epochs):
    """How each side of the pairs of linked objects, and of one object, was shown: lists of (warped, warped)."""
    linked, same = [], []
    for epoch in range(epochs):
        for step in range(N // BATCH):
            batch, draws = batch_of(method, data, step, epoch)
            views = method.views(batch, draws)
            warped = method._view(batch["image"], draws, True)
            moved = [torch.isclose(views[f"view{k + 1}"], warped[k::2]).flatten(1).all(1) for k in range(2)]
            alike = views["object1"] == views["object2"]
            for i in range(BATCH // 2):
                (same if alike[i] else linked).append((bool(moved[0][i]), bool(moved[1][i])))
    return linked, same


def test_composed_pairs_show_all_four_sides_and_tracks_the_picture_and_its_warp(data):
    linked, same = sides(prepared(data), data, 8)
    shares = [linked.count(kind) / len(linked) for kind in ((False, False), (False, True), (True, False), (True, True))]
    assert min(shares) > 0.15 and set(same) == {(False, True)}
    linked, same = sides(prepared(data, pairs="both"), data, 4)
    assert set(linked) == {(False, False)} and set(same) == {(False, True)}


def test_pictures_in_any_order_are_pairs_of_their_own(data):
    method = prepared(data)
    rows = np.array([0, 1, 2, 3])  # of four classes
    views = method.views(data.batch(rows), Draws(index=rows))
    assert views["view1"].shape == (4, 3, SIDE, SIDE) and views["object1"].tolist() == rows.tolist()
    assert not torch.allclose(views["view1"], views["view2"])


# --- the loss ---------------------------------------------------------------------------------------------------------
def test_the_loss_is_that_of_its_parts_and_linked_rows_are_no_negatives(data):
    method = prepared(data, margin=1.9, negatives=5).double()
    method.progress = 1.0
    batch, draws = batch_of(method, data)
    views = {k: v.double() if v.is_floating_point() else v for k, v in method.views(batch, draws).items()}
    encoded = method.encode(views, draws)
    loss = method.loss(encoded, draws)["rank"]
    rows = torch.stack([encoded["query"], encoded["key"]], 1).flatten(0, 1)
    things = torch.stack([views["object1"], views["object2"]], 1).flatten().tolist()
    links = {tuple(e) for e in method.prepared["edges"].tolist()}
    related = torch.tensor([[a == b or (a, b) in links or (b, a) in links for b in things] for a in things])
    noise = draws.step_uniform("negatives", len(rows) * len(rows) // 2).view(-1, len(rows))
    expected = rank_hinge(rows, choose_negatives(rows, related, 5, 1.9, 0.5, 0.5, noise), 1.9)
    assert loss.dtype == torch.float64 and float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert not torch.equal(related, same_label(torch.tensor(things)))


def test_negatives_are_random_first_and_half_of_them_hard_later(monkeypatch):
    from eyespot.methods.image import transitive_invariance as module

    shares = []
    real = module.choose_negatives
    monkeypatch.setattr(module, "choose_negatives", lambda *a: (shares.append(a[4:6]), real(*a))[1])
    method = make()
    x = torch.rand(4, 3, SIDE, SIDE)
    for method.progress in (0.0, 0.24, 0.25, 1.0):
        method({"view1": x, "view2": x.flip(-1)})
    assert shares == [(0.0, 1.0)] * 2 + [(0.5, 0.5)] * 2


def test_five_lines_without_an_engine_give_finite_gradients():
    method = make()
    terms = method({"view1": torch.rand(6, 3, SIDE, SIDE), "view2": torch.rand(6, 3, SIDE, SIDE)})
    total(terms).backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters())
    assert 0 < float(terms["rank"].detach()) < 2


def test_what_was_mined_can_be_looked_at(data, tracks):
    shown = prepared(data).mined(data, 6)
    assert list(shown) == ["A", "A'", "B", "B'"] and all(v.shape == (6, 3, SIDE, SIDE) for v in shown.values())
    assert not torch.allclose(shown["A"], shown["A'"])
    assert prepared(tracks, names=tracks.class_names, tracks="folders").mined(tracks, 4)["B'"].shape[1:] == (
        3,
        SIDE,
        SIDE,
    )
    assert prepared(data, pairs="intra").mined(data, 6) == {}


def test_arguments_out_of_range_are_named():
    with pytest.raises(UserError, match="margin=3"):
        make(margin=3.0)
    with pytest.raises(UserError, match="perspective"):
        make(perspective=1.0)
