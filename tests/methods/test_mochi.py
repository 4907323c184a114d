"""MoCHi: its recorded numbers, its mixtures from their parts, its limits, and what it does to a host."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.contrastive import moco
from eyespot.losses.hard_negatives import hardest, mix_negatives, mix_query
from eyespot.methods.compose import Composed
from eyespot.methods.image.mochi import Mochi, MochiConfig, proxy_accuracy, uniform
from eyespot.methods.image.moco_v2 import MoCoV2, MoCoV2Config
from eyespot.methods.image.simclr import SimCLR
from eyespot.methods.method import Info, total
from eyespot.nets.backbones import backbone

B, OUT, K = 6, 8, 24


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def host(progress=0.5):
    torch.manual_seed(0)
    method = MoCoV2(backbone("resnet8", image_size=16, width=8), MoCoV2Config(16, hidden=16, out=OUT, queue=K))
    method.progress = progress
    return method


def composed(progress=0.5, **settings):
    method = host(progress)
    return Composed(method, [Mochi(method, MochiConfig(**{"hardest": 5, "pairs": 4, "queries": 3, **settings}))])


def pixels():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(B, 3, 16, 16, generator=generator) for name in ("view1", "view2")}


@pytest.mark.golden
def test_agrees_with_the_recorded_numbers(golden):
    arrays, params = golden("mochi__hard_negative_mixing")
    x = {k: torch.from_numpy(v) for k, v in arrays.items()}
    hard = hardest(x["q"], x["queue"].T, params["N_hardest"])
    assert torch.equal(hard, x["hard_index"].long())
    members = [x["queue"][hard.gather(1, x[name].long())] for name in ("idx1", "idx2", "idx_q")]
    pairs = mix_negatives(members[0], members[1], x["alpha"])
    queries = mix_query(x["q"], members[2], x["beta"])
    torch.testing.assert_close(pairs, x["mixed1"], atol=1e-5, rtol=0)
    torch.testing.assert_close(queries, x["mixed2"], atol=1e-5, rtol=0)
    extra = torch.cat([pairs, queries], dim=1)
    t = params["temperature"]
    parts = [(x["q"] * x["k"]).sum(1, keepdim=True), x["q"] @ x["queue"].T, (extra @ x["q"][:, :, None]).squeeze(-1)]
    torch.testing.assert_close(torch.cat(parts, dim=1) / t, x["logits"], atol=1e-4, rtol=0)
    loss = moco(x["q"], x["k"], x["queue"].T, t, extra)
    torch.testing.assert_close(loss, x["loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(moco(x["q"], x["k"], x["queue"].T, t), x["loss_moco"], atol=1e-5, rtol=0)
    assert loss > x["loss_moco"]


# --- the mixtures -----------------------------------------------------------------------------------------------------
def test_two_dimensions_by_hand():
    query, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 1.0]]])
    mixed = mix_query(query, negative, torch.tensor([[0.25]]))
    torch.testing.assert_close(mixed[0, 0], torch.tensor([0.316, 0.949]), atol=1e-3, rtol=0)
    assert float(query[0] @ mixed[0, 0]) / 0.2 == pytest.approx(1.581, abs=1e-3)


def test_the_ends_are_the_parts_themselves():
    first, second, query = unit(B, 3, OUT), unit(B, 3, OUT, seed=1), unit(B, OUT, seed=2)
    whole, nothing = torch.ones(B, 3).double(), torch.zeros(B, 3).double()
    torch.testing.assert_close(mix_negatives(first, second, whole), first)
    torch.testing.assert_close(mix_negatives(first, second, nothing), second)
    torch.testing.assert_close(mix_query(query, first, nothing), first)


@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_a_mixture_with_the_query_is_never_further_from_it(seed, share):
    query, negative = unit(4, OUT, seed=seed), unit(4, 3, OUT, seed=seed + 1)
    mixed = mix_query(3 * query, negative, torch.full((4, 3), share, dtype=torch.float64))
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(4, 3).double())
    before, after = (torch.einsum("bd,bsd->bs", query, x) for x in (negative, mixed))
    assert bool((after >= before - 1e-12).all())


def test_the_hard_set_is_each_query_s_own():
    queue = torch.eye(4, dtype=torch.float64)
    query = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.9, 0.1, 0.2, 0.3]]).double()
    assert hardest(query, queue, 2).tolist() == [[1, 2], [0, 3]]
    assert sorted(hardest(query, queue, 4)[0].tolist()) == [0, 1, 2, 3]


def slow(query, key, queue, draws, c, temperature):
    """The loss row by row with numbers drawn one sample at a time."""
    losses = []
    for i in range(len(query)):
        own = draws.rows(i, i + 1)
        q = query[i] / query[i].norm()
        similar = sorted(range(queue.shape[1]), key=lambda j: -float(q.detach() @ queue[:, j]))[: c.hardest]
        column = {n: uniform(own, n, 1, c.pairs)[0].double() for n in ("first", "second", "pair_share")}
        column |= {n: uniform(own, n, 1, c.queries)[0].double() for n in ("other", "query_share")}
        negatives = [queue[:, j] for j in range(queue.shape[1])]
        for s in range(c.pairs):
            a, b = (queue[:, similar[int(column[n][s] * c.hardest)]] for n in ("first", "second"))
            mixed = column["pair_share"][s] * a + (1 - column["pair_share"][s]) * b
            negatives.append(mixed / mixed.norm())
        for s in range(c.queries):
            share = 0.5 * column["query_share"][s]
            mixed = share * q.detach() + (1 - share) * queue[:, similar[int(column["other"][s] * c.hardest)]]
            negatives.append(mixed / mixed.norm())
        positive = torch.exp(q @ key[i] / temperature)
        rest = sum(torch.exp(q @ n.detach() / temperature) for n in negatives)
        losses.append(-torch.log(positive / (positive + rest)))
    return torch.stack(losses).mean()


def test_equals_a_slow_version_with_its_gradient():
    method = composed().double()
    draws = Draws(seed=3, epoch=2, index=range(10, 10 + B))
    query, key = 2 * unit(B, OUT, seed=5), unit(B, OUT, seed=6)
    sides = []
    for fast in (True, False):
        q = query.clone().requires_grad_()
        if fast:
            loss = total(method.loss(method.plugins[0].between({"query": q, "key": key}, draws, method.host), draws))
        else:
            loss = slow(q, key, method.host.queue.columns, draws, method.plugins[0].config, 0.2)
        sides.append((loss, torch.autograd.grad(loss, q)[0]))
    torch.testing.assert_close(sides[0], sides[1])


# --- on its host ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{"pairs": 0, "queries": 0}, {"progress": 0.0}])
def test_without_mixtures_it_is_its_host_to_the_bit(settings):
    """None asked for, and none yet in the first epochs."""
    plain, method = host(), composed(**settings)
    losses = [total(m(pixels())) for m in (plain, method)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    theirs = {n.removeprefix("host."): p.grad for n, p in method.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, theirs[name]), name


def test_more_negatives_never_make_the_loss_smaller():
    plain, method = host(), composed()
    assert total(method(pixels())) > total(plain(pixels()))
    extra = method.encode(pixels())["extra_negatives"]
    assert extra.shape == (B, 7, OUT) and not extra.requires_grad
    torch.testing.assert_close(extra.norm(dim=-1), torch.ones(B, 7))


def test_mixtures_do_not_enter_the_queue_and_gradients_are_finite():
    method = composed()
    total(method(pixels())).backward()
    named = {n: p.grad for n, p in method.named_parameters() if "teacher" not in n}
    assert all(g is not None and bool(g.isfinite().all()) for g in named.values())
    keys = method.host.encode(pixels())["key"]
    method.after_step()
    assert int(method.host.queue.filled) == B
    torch.testing.assert_close(method.host.queue.columns[:, :B], keys.T)


def test_equal_pictures_give_finite_gradients():
    method = composed()
    same = torch.full((B, 3, 16, 16), 0.5)
    total(method({"view1": same, "view2": same})).backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_one_hard_key_makes_pairs_of_itself():
    for distinct in (False, True):
        method = composed(hardest=1, queries=0, distinct=distinct)
        encoded = method.encode(pixels())
        columns = method.host.queue.columns
        nearest = columns.T[hardest(encoded["query"], columns, 1)[:, 0]]
        torch.testing.assert_close(encoded["extra_negatives"], nearest[:, None].expand(-1, 4, -1))


def test_distinct_pairs_are_uniform_over_the_others():
    plugin, queue = composed(hardest=3, pairs=3000, queries=0, distinct=True).plugins[0], torch.eye(OUT)
    query = torch.tensor([[3.0, 2.0, 1.0, 0, 0, 0, 0, 0]])
    mixed = plugin._mixtures(query, queue, Draws(index=[4]))[0][0]
    parts = (mixed > 0).int()
    assert bool((parts.sum(1) == 2).all()) and bool((parts[:, 3:] == 0).all())
    shares = parts.float().mean(0)[:3]
    torch.testing.assert_close(shares, torch.full((3,), 2 / 3), atol=0.04, rtol=0)


def test_hard_keys_and_shares_are_drawn_evenly():
    values = uniform(Draws(index=range(64)), "first", 64, 500)
    counts = torch.bincount((values * 5).long().flatten(), minlength=5)
    assert len(counts) == 5 and float(counts.max() / counts.min()) < 1.1
    assert float(values.min()) >= 0 and float(values.max()) < 1


def test_a_sample_s_mixtures_do_not_depend_on_its_batch():
    method = composed().eval()
    views, encoded = pixels(), []
    for rows in (slice(0, 6), slice(2, 4)):
        draws = Draws(seed=1, index=np.arange(20, 26)[rows])
        encoded.append(method.encode({k: v[rows] for k, v in views.items()}, draws)["extra_negatives"])
    torch.testing.assert_close(encoded[0][2:4], encoded[1])


def test_rows_of_another_plug_in_draw_for_themselves():
    values = uniform(Draws(index=range(4)), "first", 8, 3)
    assert values.shape == (8, 3) and not torch.equal(values[:4], values[4:])
    assert torch.equal(values[:4], uniform(Draws(index=range(4)), "first", 4, 3))


def test_waits_for_its_epochs_but_no_more_than_a_tenth():
    method = host()
    method.info = Info(epochs=400)
    plugin = Mochi(method, MochiConfig(hardest=4, warmup_epochs=10))
    encoded = {"query": unit(2, OUT).float(), "key": unit(2, OUT).float()}
    for progress, mixes in ((0.02, False), (0.03, True)):
        method.progress = progress
        assert ("extra_negatives" in plugin.between(encoded, None, method)) == mixes
    method.info, method.progress = Info(epochs=20), 0.1
    assert "extra_negatives" in plugin.between(encoded, None, method)


def test_proxy_accuracy_counts_real_keys_only():
    queue = torch.eye(4)[:, :2]
    query = torch.tensor([[2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 1.0, 1.0, 0]])
    key = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0], [0, 0.1, 1, 0]])
    assert float(proxy_accuracy(query, key, queue)) == pytest.approx(200 / 3)
    method = composed()
    method(pixels())
    assert set(method.watch) == {"proxy_accuracy"}


def test_plateau_counts_the_mixtures():
    assert composed().plateau(99)["info_nce"] == pytest.approx(math.log(1 + K + 7))


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"hardest=25 is more than the queue of 24 keys"):
        composed(hardest=25)
    with pytest.raises(UserError, match=r"query_share=1\.5"):
        composed(query_share=1.5)
    other = host()
    other.queue = None
    with pytest.raises(UserError, match="MoCoV2 has no queue"):
        Mochi(other)
    with pytest.raises(UserError, match="SimCLR accepts"):
        Mochi(SimCLR(backbone("resnet8", image_size=16)))
