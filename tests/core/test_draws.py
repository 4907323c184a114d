"""Draws: the same bits in numpy and torch, whatever the order, the split or the call before."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyespot.draws import (
    GOLDEN,
    Draws,
    bits_numpy,
    bits_torch,
    epoch_permutation,
    mix,
    mix_numpy,
)

seeds = st.integers(0, 2**63 - 1)
indices = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


def test_splitmix64_published_sequence():
    # first outputs of the reference generator for seed 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix((i + 1) * GOLDEN) for i in range(3)] == expected
    state = np.array([(i + 1) * GOLDEN % 2**64 for i in range(3)], dtype=np.uint64)
    assert mix_numpy(state).tolist() == expected


@given(seeds, st.integers(0, 10**6), indices, st.integers(1, 6))
def test_numpy_and_torch_give_the_same_bits(seed, epoch, index, columns):
    rows = np.array(index, dtype=np.int64)
    a = bits_numpy(seed, "crop", epoch, rows, columns)
    b = bits_torch(seed, "crop", epoch, torch.from_numpy(rows), columns)
    assert np.array_equal(a.view(np.int64), b.numpy())


@given(seeds, indices, st.data())
def test_a_draw_does_not_depend_on_its_neighbours(seed, index, data):
    whole = Draws(seed, 2, 7, index)
    cut = data.draw(st.integers(0, len(index) - 1))
    alone = Draws(seed, 2, 99, [index[cut]])
    for kind in ("uniform", "normal"):
        assert torch.equal(getattr(whole, kind)("x", 3)[cut], getattr(alone, kind)("x", 3)[0])
    assert torch.equal(whole.noise("n", 2, 5)[cut], alone.noise("n", 2, 5)[0])
    assert torch.equal(whole.beta("b", 0.5, 2.0)[cut], alone.beta("b", 0.5, 2.0)[0])


def test_names_epochs_seeds_and_scopes_differ():
    base = Draws(1, 1, 1, range(100))
    others = [
        Draws(2, 1, 1, range(100)).uniform("a"),
        Draws(1, 2, 1, range(100)).uniform("a"),
        base.uniform("b"),
        base.scope("view1").uniform("a"),
        base.scope("view2").uniform("a"),
    ]
    seen = [base.uniform("a"), *others]
    for i in range(len(seen)):
        for j in range(i):
            assert abs(float(torch.corrcoef(torch.stack([seen[i], seen[j]]))[0, 1])) < 0.3


def test_step_draws_are_shared_by_the_global_batch():
    left, right = Draws(5, 0, 3, [0, 1]), Draws(5, 0, 3, [2, 3])
    assert torch.equal(left.step_uniform("coin", 4), right.step_uniform("coin", 4))
    assert torch.equal(left.permutation("p", 9), right.permutation("p", 9))
    assert sorted(left.permutation("p", 9).tolist()) == list(range(9))
    assert not torch.equal(left.permutation("p", 50), Draws(5, 0, 4, [0]).permutation("p", 50))


def test_distributions():
    draws = Draws(0, 0, 0, range(20_000))
    u, n, b = draws.uniform("u"), draws.normal("n"), draws.beta("b", 2.0, 5.0)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003
    assert abs(float(n.mean())) < 0.03 and abs(float(n.std()) - 1) < 0.02
    assert abs(float(b.mean()) - 2 / 7) < 0.01
    counts = torch.bincount(draws.integers("i", 7), minlength=7)
    assert counts.min() > 20_000 / 7 * 0.9 and len(counts) == 7
    assert abs(float(draws.coin("c", 0.3).float().mean()) - 0.3) < 0.02
    field = draws.rows(0, 500).noise("z", 40, normal=True)
    assert abs(float(field.std()) - 1) < 0.03


@given(seeds, st.integers(0, 100), st.integers(1, 300))
def test_epoch_order_is_a_permutation(seed, epoch, n):
    order = epoch_permutation(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_are_shuffled_anew():
    assert not np.array_equal(epoch_permutation(0, 0, 100), epoch_permutation(0, 1, 100))


def test_normal_numbers_are_finite_for_the_extreme_bits(monkeypatch):
    for bits in (0, 2**64 - 1):
        words = np.full((1, 2), bits, dtype=np.uint64)
        monkeypatch.setattr("eyespot.draws.bits_numpy", lambda *a, words=words: words)
        monkeypatch.setattr("eyespot.draws.bits_torch", lambda *a, words=words: torch.from_numpy(words.view(np.int64)))
        for drawn in (Draws().normal("n", 2), Draws().noise("n", 2, normal=True)):
            assert drawn.isfinite().all() and 5 < float(drawn.abs().min()) < 9
