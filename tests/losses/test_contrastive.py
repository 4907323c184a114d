"""Contrastive losses against recorded numbers, slow loops and the values they take in known cases."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eyespot.losses.contrastive import cosines, info_nce, log_probability, moco, moco_v3, nt_xent


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def normal(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def tensors(arrays, *names):
    return [torch.from_numpy(arrays[n]) for n in names]


def slow_nt_xent(z1, z2, temperature):
    z = [v / v.norm() for v in [*z1, *z2]]
    n, total = len(z1), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        below = sum(math.exp(float(z[i] @ z[j]) / temperature) for j in range(2 * n) if j != i)
        total -= math.log(math.exp(float(z[i] @ z[partner]) / temperature) / below)
    return total / (2 * n)


def slow_info_nce(logits, positives, negatives, extra, compete):
    """Per row, the list of the losses of its positives."""
    rows = []
    for i, row in enumerate(logits.tolist()):
        terms = []
        for j, s in enumerate(row):
            if not positives[i, j]:
                continue
            below = math.exp(s) if not compete else 0.0
            for m, other in enumerate(row):
                if negatives[i, m] or (compete and positives[i, m]):
                    below += math.exp(other)
            below += sum(math.exp(e) for e in extra[i].tolist())
            terms.append(math.log(below) - s)
        rows.append(terms)
    return rows


@pytest.mark.golden
def test_nt_xent_golden(golden):
    arrays, params = golden("joint_embedding_bases__losses")
    z1, z2 = tensors(arrays, "z1", "z2")
    assert nt_xent(z1, z2, params["temperature"]).item() == pytest.approx(arrays["loss_simclr"].item(), rel=1e-4)


@pytest.mark.golden
def test_moco_golden(golden):
    arrays, params = golden("joint_embedding_bases__losses")
    z1, z2, queue = tensors(arrays, "z1", "z2", "queue")
    loss = moco(z1, z2, queue, params["temperature"])
    assert loss.item() == pytest.approx(arrays["loss_moco"].item(), rel=1e-4)


@pytest.mark.golden
def test_moco_v3_golden(golden):
    arrays, params = golden("joint_embedding_bases__losses")
    z1, z2 = tensors(arrays, "z1", "z2")
    loss = moco_v3(z1, z2, torch.arange(len(z1)), params["temperature"])
    assert loss.item() == pytest.approx(arrays["loss_mocov3_one_direction"].item(), rel=1e-4)


def test_nt_xent_is_the_slow_loop(rng):
    z1, z2 = normal(rng, 5, 4), normal(rng, 5, 4)
    assert nt_xent(z1, z2, 0.3).item() == pytest.approx(slow_nt_xent(z1, z2, 0.3), rel=1e-10)


def test_nt_xent_is_info_nce_with_masks(rng):
    z = normal(rng, 12, 4)
    itself = torch.eye(12, dtype=torch.bool)
    partner = itself.roll(6, dims=1)
    loss = info_nce(cosines(z, z, 0.2), partner, ~itself & ~partner)
    torch.testing.assert_close(loss, nt_xent(z[:6], z[6:], 0.2))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_nt_xent_of_equal_embeddings(n):
    z = torch.ones(n, 3)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)


def test_nt_xent_of_two_aligned_orthogonal_pairs():
    z = torch.eye(2, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), rel=1e-8)


def test_nt_xent_of_the_global_batch_splits_into_rows(rng):
    """The mean over all rows is the mean of what two halves of the anchors give against all keys."""
    z = normal(rng, 16, 4)
    itself, logits = torch.eye(16, dtype=torch.bool), cosines(z, z, 0.2)
    partner = itself.roll(8, dims=1)
    halves = [info_nce(logits[r], partner[r], (~itself & ~partner)[r]) for r in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, nt_xent(z[:8], z[8:], 0.2))


@pytest.mark.parametrize("compete", [True, False])
def test_info_nce_is_the_slow_loop(rng, compete):
    logits, extra = normal(rng, 6, 7), normal(rng, 6, 3)
    kind = torch.randint(0, 3, (6, 7), generator=rng)
    kind[2] = torch.where(kind[2] == 1, 0, kind[2])  # a row without a positive
    positives, negatives = kind == 1, kind == 2
    rows = slow_info_nce(logits, positives, negatives, extra, compete)
    means = [sum(r) / len(r) for r in rows if r]
    flat = [x for r in rows for x in r]

    def loss(reduction):
        return info_nce(logits, positives, negatives, extra=extra, compete=compete, reduction=reduction)

    assert loss("rows").item() == pytest.approx(sum(means) / len(means), rel=1e-10)
    assert loss("pairs").item() == pytest.approx(sum(flat) / len(flat), rel=1e-10)
    assert loss("sum").item() == pytest.approx(sum(flat), rel=1e-10)
    assert loss("none").tolist() == pytest.approx([sum(r) / max(len(r), 1) for r in rows], rel=1e-10)


def test_log_probabilities_of_a_row_sum_to_one(rng):
    logits = normal(rng, 4, 6)
    everything = torch.ones(4, 6, dtype=torch.bool)
    torch.testing.assert_close(log_probability(logits, everything).exp().sum(1), torch.ones(4).double())


def test_info_nce_without_positives_is_zero_and_differentiable(rng):
    logits = normal(rng, 4, 5).requires_grad_()
    none = torch.zeros(4, 5, dtype=torch.bool)
    for negatives in (None, none):
        for compete in (True, False):
            loss = info_nce(logits, none, negatives, compete=compete)
            (grad,) = torch.autograd.grad(loss, logits)
            assert loss.item() == 0 and torch.equal(grad, torch.zeros_like(grad))


def test_a_positive_alone_costs_nothing(rng):
    """Two classes, their pair as the positive: no negative is left and every term is 0."""
    logits = normal(rng, 3, 3)
    every = torch.ones(3, 3, dtype=torch.bool)
    assert info_nce(logits, every, ~every, compete=False).item() == 0
    assert info_nce(logits, torch.eye(3, dtype=torch.bool), ~every).item() == pytest.approx(0, abs=1e-12)


def test_ignored_entries_enter_nothing(rng):
    logits = normal(rng, 3, 5)
    positives = torch.tensor([1, 0, 0, 0, 0], dtype=torch.bool).expand(3, 5)
    negatives = torch.tensor([0, 1, 1, 0, 0], dtype=torch.bool).expand(3, 5)
    other = logits.clone()
    other[:, 3:] = 50
    torch.testing.assert_close(info_nce(logits, positives, negatives), info_nce(other, positives, negatives))


def test_moco_of_equal_query_and_key_with_orthogonal_queue():
    for queue in (torch.zeros(4, 9), torch.eye(4)[:, 1:].repeat(1, 3)):
        q = torch.tensor([[2.0, 0, 0, 0], [1.0, 0, 0, 0]])
        expected = -math.log(math.exp(5) / (math.exp(5) + 9))
        assert moco(q, q, queue, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_moco_is_the_slow_loop(rng):
    q, k, queue, extra = normal(rng, 3, 4), normal(rng, 3, 4), normal(rng, 4, 6), normal(rng, 3, 2, 4)
    total = 0.0
    for i in range(3):
        a, b = q[i] / q[i].norm(), k[i] / k[i].norm()
        others = [float(a @ queue[:, j]) for j in range(6)] + [float(a @ extra[i, j]) for j in range(2)]
        below = math.exp(float(a @ b) / 0.2) + sum(math.exp(s / 0.2) for s in others)
        total -= math.log(math.exp(float(a @ b) / 0.2) / below)
    assert moco(q, k, queue, 0.2, extra).item() == pytest.approx(total / 3, rel=1e-10)


@pytest.mark.golden
def test_moco_with_synthetic_negatives_golden(golden):
    arrays, params = golden("mochi__hard_negative_mixing")
    q, k, queue = tensors(arrays, "q", "k", "queue")
    extra = torch.from_numpy(np.concatenate([arrays["mixed1"], arrays["mixed2"]], axis=1))
    loss = moco(q, k, queue.T, params["temperature"], extra)
    assert loss.item() == pytest.approx(arrays["loss"].item(), rel=1e-4)


@pytest.mark.golden
def test_doubled_rows_golden(golden):
    """Extra positives are further query rows with the same keys: both losses take them without a special case."""
    arrays, params = golden("hallucinator__generator_losses")
    rows, key, queue = tensors(arrays, "augmented_q", "k_raw", "queue")
    keys = torch.cat([key, key])
    loss = moco(rows, keys, queue, params["temperature_moco"])
    assert loss.item() == pytest.approx(arrays["moco_loss"].item(), rel=1e-4)


@pytest.mark.golden
def test_positives_that_do_not_compete_golden(golden):
    arrays, params = golden("hydra__gated_arbitrary_pairs")
    z, k, gate, y1, y2 = tensors(arrays, "z", "k", "gate", "y1", "y2")
    positives = y1[None] == y2[:, None]
    negatives = ~positives & (y1[None] != y1[:, None])
    logits = (F.normalize(z, dim=1) * gate**2) @ F.normalize(k, dim=1).T / params["temperature"]
    loss = info_nce(logits, positives, negatives, compete=False, reduction="pairs")
    assert loss.item() == pytest.approx(arrays["loss_gate_unrenormalised"].item(), rel=1e-4)


@pytest.mark.parametrize("same", [True, False])
def test_gradients_are_finite_with_equal_rows(rng, same):
    z = (torch.ones(6, 4) if same else torch.zeros(6, 4)).requires_grad_()
    key, queue = torch.ones(6, 4, requires_grad=True), torch.full((4, 8), 0.5, requires_grad=True)
    (nt_xent(z, z, 0.1) + moco(z, key, queue, 0.1)).backward()
    assert torch.isfinite(z.grad).all()
    assert key.grad is None and queue.grad is None  # targets get no gradient


def test_moco_of_the_global_batch_is_the_mean_of_two_halves(rng):
    q, k, queue = normal(rng, 6, 4), normal(rng, 6, 4), normal(rng, 4, 5)
    halves = [moco(q[r], k[r], queue) for r in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, moco(q, k, queue))


def test_moco_v3_is_the_slow_loop(rng):
    query, keys, positives, total = normal(rng, 3, 4), normal(rng, 5, 4), [4, 0, 2], 0.0
    for q, j in zip(query, positives, strict=True):
        cosine = [float(q @ k / q.norm() / k.norm()) for k in keys]
        total -= math.log(math.exp(cosine[j] / 0.3) / sum(math.exp(c / 0.3) for c in cosine))
    loss = moco_v3(query, keys, torch.tensor(positives), 0.3)
    assert loss.item() == pytest.approx(2 * 0.3 * total / 3, rel=1e-10)


def test_moco_v3_is_in_batch_info_nce_times_twice_the_temperature(rng):
    z1, z2 = normal(rng, 6, 4), normal(rng, 6, 4)
    loss = 2 * 0.2 * info_nce(cosines(z1, z2, 0.2), torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(moco_v3(z1, z2, torch.arange(6), 0.2), loss)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_moco_v3_limits(temperature):
    rows, z = torch.arange(4), torch.eye(6, dtype=torch.float64)[:4]
    aligned = 2 * temperature * math.log(1 + 3 * math.exp(-1 / temperature))
    assert moco_v3(z, 3 * z, rows, temperature).item() == pytest.approx(aligned, rel=1e-10)
    same = torch.ones(4, 6)
    assert moco_v3(same, same, rows, temperature).item() == pytest.approx(2 * temperature * math.log(4), rel=1e-5)


def test_moco_v3_of_the_global_batch_is_the_mean_of_two_halves(rng):
    q, k = normal(rng, 6, 4), normal(rng, 6, 4)
    halves = [moco_v3(q[r], k, torch.arange(6)[r]) for r in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, moco_v3(q, k, torch.arange(6)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_moco_v3_gives_the_query_alone_a_finite_gradient(value):
    q, k = torch.full((4, 3), value, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    moco_v3(q, k, torch.arange(4)).backward()
    assert torch.isfinite(q.grad).all() and k.grad is None
