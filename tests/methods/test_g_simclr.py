"""G-SimCLR: the order of its batches, the autoencoder behind the pseudo labels, the views of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.contrastive import nt_xent
from eyespot.methods.image.g_simclr import (
    CIFAR_COINS,
    AutoencoderConfig,
    DenoisingAutoencoder,
    GSimCLR,
    GSimCLRConfig,
    balanced_batches,
    coin_view,
    guided_order,
    same_label_rate,
)
from eyespot.methods.method import Info, Method, total
from eyespot.nets.autoencoder import ConvAutoencoder
from eyespot.nets.backbones import backbone

clusterings = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)


def small(batch: int = 8, **config):
    torch.manual_seed(0)
    chosen = {"image_size": 16, "hidden": (16, 8), "out": 8} | config
    return GSimCLR(backbone("resnet8", image_size=16, width=8), GSimCLRConfig(**chosen), Info(batch_size=batch))


def pictures(n: int = 8, side: int = 16):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


# --- the released order ---------------------------------------------------------------------------------------------
def ranks(labels):
    return np.array([1 + sum(labels[:i] == labels[i]) for i in range(len(labels))])


@pytest.mark.golden
def test_order_agrees_with_recorded_numbers(golden):
    arrays, params = golden("g_simclr__guided_order")
    order, batch = guided_order(arrays["labels"]), params["batch_size"]
    assert np.array_equal(order, arrays["order"])
    assert np.array_equal(ranks(arrays["labels"]), arrays["rank"])
    full = order[: len(order) // batch * batch].reshape(-1, batch)
    duplicates = [batch - len(np.unique(arrays["labels"][rows])) for rows in full]
    assert np.array_equal(duplicates, arrays["duplicates_per_batch"])


@given(clusterings)
def test_order_is_a_permutation_by_rank_then_cluster(labels):
    order = guided_order(labels)
    assert sorted(order) == list(range(len(labels)))
    rank = ranks(labels)
    assert [(rank[i], labels[i]) for i in order] == sorted((rank[i], labels[i]) for i in range(len(labels)))


def test_order_of_one_cluster_or_of_a_cluster_a_picture_is_the_data_order():
    assert guided_order(np.zeros(9, int)).tolist() == list(range(9))
    assert guided_order(np.arange(9)).tolist() == list(range(9))


def test_equal_clusters_give_one_picture_of_each_in_every_batch():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 5))
    for batches in (guided_order(labels).reshape(-1, 8), balanced_batches(labels, 8, 0, 0)):
        assert all(len(np.unique(labels[rows])) == 8 for rows in batches)
        assert sorted(batches.ravel()) == list(range(40))


# --- balanced batches -----------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(clusterings, st.integers(1, 12), st.integers(0, 5))
def test_balanced_batches_are_as_even_as_can_be(labels, batch, epoch):
    batches = balanced_batches(labels, batch, seed=3, epoch=epoch)
    assert batches.shape == (len(labels) // batch, batch) and batches.dtype == np.int64
    clusters = np.unique(labels)
    for rows in batches:
        counts = [int((labels[rows] == c).sum()) for c in clusters]
        assert max(counts) - min(counts) <= 1


def test_a_small_cluster_is_repeated_only_when_it_is_used_up():
    labels = np.array([0] * 2 + [1] * 20 + [2] * 11)
    rows = balanced_batches(labels, 3, 0, 0)
    turns = [[int(i) for i in rows.ravel() if labels[i] == c] for c in range(3)]
    assert turns[0][:2] != turns[0][1:3] and turns[0] == (turns[0][:2] * 6)[:11]
    assert len(set(turns[1])) == 11 and sorted(turns[2]) == list(range(22, 33))


def test_epochs_differ_and_repeat():
    labels = np.repeat(np.arange(8), 5)
    first, second = balanced_batches(labels, 8, 0, 0), balanced_batches(labels, 8, 0, 1)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, balanced_batches(labels, 8, 0, 0))


def test_pictures_left_out_of_large_clusters_change_with_the_epoch():
    labels = np.array([0] * 30 + [1] * 10)
    seen = [set(balanced_batches(labels, 2, 0, epoch).ravel().tolist()) for epoch in range(12)]
    assert len(seen[0]) == 30 and set.union(*seen) == set(range(40))


def test_same_label_rate():
    labels = np.repeat(np.arange(10), 20)
    assert same_label_rate(balanced_batches(labels, 10, 0, 0), labels) == 0  # labels as an oracle
    assert same_label_rate(np.array([[0, 1, 20]]), labels) == pytest.approx(1 / 3)
    shuffled = np.random.default_rng(0).permutation(200).reshape(-1, 10)
    assert same_label_rate(shuffled, labels) == pytest.approx(19 / 199, abs=0.03)


# --- the autoencoder ------------------------------------------------------------------------------------------------
def test_autoencoder_is_the_paper_s():
    net = ConvAutoencoder()
    assert sum(p.numel() for p in net.down.parameters()) == 93_696
    x = torch.rand(2, 3, 32, 32)
    assert net.encode(x).shape == (2, 128, 4, 4) and net.features(x).shape == (2, 128)
    assert net(x).shape == x.shape and net(x).min() >= 0 and net(x).max() <= 1


@pytest.mark.parametrize("size", [8, 20, 33])
def test_autoencoder_takes_any_size_and_channels(size):
    net = ConvAutoencoder(channels=2, widths=(4, 8), kernel=5)
    assert net(torch.rand(2, 2, size, size)).shape == (2, 2, size, size)


def test_autoencoder_learns_to_reconstruct():
    torch.manual_seed(0)
    method = DenoisingAutoencoder(AutoencoderConfig(image_size=16, widths=(8, 16)))
    flat = torch.rand(32, 3, 1, 1).expand(32, 3, 16, 16).mul(255).to(torch.uint8)
    optimizer, history = torch.optim.Adam(method.parameters(), lr=1e-2), []
    for step in range(40):
        draws = Draws(epoch=step, index=range(32))
        loss = total(method(method.views({"image": flat}, draws), draws))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.3 * history[0]


def test_autoencoder_sees_noise_but_must_give_the_clean_picture():
    method = DenoisingAutoencoder(AutoencoderConfig(image_size=16, noise=0.5))
    seen, x = [], torch.rand(4, 3, 16, 16)
    method.net.forward = lambda noisy: seen.append(noisy) or noisy
    loss = method({"image": x}, Draws(index=range(4)))["reconstruction"]
    assert float(loss) == pytest.approx(0.25, rel=0.15)
    assert float((seen[0] - x).std()) == pytest.approx(0.5, rel=0.1)


# --- preparation ----------------------------------------------------------------------------------------------------
class FakeTools:
    """Keeps what it is asked for; embeds by the colour of a picture."""

    def __init__(self):
        self.asked = []

    def fit(self, method: Method, epochs: float, name: str) -> Method:
        self.asked.append((type(method).__name__, epochs))
        return method

    def embed(self, module, name):
        out = module(torch.rand(20, 3, 16, 16))
        self.asked.append(tuple(out.shape))
        return out.detach()

    def kmeans(self, x, clusters, seed=0):
        self.asked.append(clusters)
        return torch.arange(len(x)) % clusters


def test_preparation_clusters_the_latents_into_as_many_clusters_as_the_batch_has_pictures():
    method, tools = small(batch=5, autoencoder_epochs=2.0), FakeTools()
    method.prepared = method.prepare(range(20), tools)
    assert tools.asked == [("DenoisingAutoencoder", 2.0), (20, 128), 5]
    rows = method.batches(20, 0, Draws(seed=0))
    assert rows is not None and rows.shape == (4, 5)
    assert all(sorted(method.prepared["cluster"][r].tolist()) == [0, 1, 2, 3, 4] for r in torch.from_numpy(rows))


def test_the_paper_s_policy_is_one_fixed_order():
    method = small(batch=4, policy="paper")
    method.prepared = {"cluster": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 2])}
    first, second = (method.batches(9, epoch, Draws(epoch=epoch)) for epoch in (0, 1))
    assert first.tolist() == second.tolist() == [[0, 3, 5, 6], [1, 4, 8, 7]]


def test_no_preparation_no_own_order():
    assert small().batches(20, 0, Draws()) is None


def test_clusters_of_other_data_are_refused():
    method = small()
    method.prepared = {"cluster": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(UserError, match="5 pictures but the data has 20"):
        method.batches(20, 0, Draws())


def test_more_clusters_than_pictures_are_refused():
    with pytest.raises(UserError, match="30 clusters"):
        small(clusters=30).prepare(range(20), FakeTools())


# --- training -------------------------------------------------------------------------------------------------------
def test_loss_of_two_aligned_orthogonal_pictures():
    z = torch.eye(2, dtype=torch.float64)
    assert float(nt_xent(z, z, 0.1)) == pytest.approx(math.log(1 + 2 * math.exp(-10)))


def test_every_parameter_has_a_gradient():
    method, draws = small(), Draws(index=range(8))
    terms = method(method.views({"image": pictures()}, draws), draws)
    total(terms).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert 0 < float(terms["nt_xent"].detach()) < 3 * method.plateau(8)["nt_xent"]


def test_loss_falls_over_guided_batches():
    """Pictures of one colour a cluster, by the recipe's own optimizer."""
    method = small(batch=8, crop_min=0.5, jitter=0.0, grey=0.0)
    colours = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    noise = 0.2 * torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = ((0.8 * colours[:, :, None, None] + noise) * 255).to(torch.uint8)
    method.prepared = {"cluster": torch.arange(8).repeat(4)}
    optimizer, history = torch.optim.SGD(method.parameters(), lr=method.recipe.lr, momentum=method.recipe.momentum), []
    for epoch in range(10):
        for rows in method.batches(32, epoch, Draws(epoch=epoch)):
            draws = Draws(epoch=epoch, step=len(history), index=rows)
            loss = total(method(method.views({"image": images[rows]}, draws), draws))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(float(loss.detach()))
    assert np.mean(history[-4:]) < 0.7 * np.mean(history[:4])


def test_coins_fall_for_the_whole_batch():
    x, found = pictures().float() / 255, set()
    for step in range(40):
        coins = Draws(step=step, index=range(8)).scope("view1").step_uniform("coins", 7).tolist()
        out = coin_view(x, Draws(step=step, index=range(8)).scope("view1"), *CIFAR_COINS)
        grey = bool((out[:, 0] - out[:, 2]).abs().max() < 1e-5)
        assert grey == (coins[2] < 0.5)
        found.add(grey)
        if coins[1] >= 0.5 and not grey:
            assert torch.equal(out, x.flip(-1) if coins[0] < 0.5 else x)
        assert out.min() >= 0 and out.max() <= 1
    assert found == {True, False}


def test_the_paper_s_views_do_not_depend_on_the_split_of_the_batch():
    method = small(augmentation="paper")
    for step in range(6):
        whole = method.views({"image": pictures()}, Draws(step=step, index=range(8)))
        part = method.views({"image": pictures()[4:]}, Draws(step=step, index=range(4, 8)))
        torch.testing.assert_close(whole["view2"][4:], part["view2"])
