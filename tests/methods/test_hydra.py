"""Hydra: gate and losses against recorded numbers and slow loops, what the gate shuts out, pairs over many steps."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.class_pairs import class_pair_contrast, gated_logits, pair_masks
from eyespot.losses.contrastive import info_nce
from eyespot.methods.image.hydra import Hydra, HydraConfig, PairGate
from eyespot.methods.method import Info
from eyespot.nets.backbones import backbone

LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])


def build(name="resnet8", classes=4, **settings):
    torch.manual_seed(0)
    sizes = {"hidden": 32, "out": 16, "gate_width": 8, "gate_hidden": 12}
    return Hydra(backbone(name, image_size=32), HydraConfig(**{**sizes, **settings}), Info(classes=classes))


def views(repeats=1, n=8):
    generator = torch.Generator().manual_seed(1)
    made = {f"view{i + 1}": torch.rand(n, 3, 32, 32, generator=generator) for i in range(repeats)}
    return {**made, "label": LABELS[:n]}


def unit_rows(n=8, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.float64, generator=generator), dim=1)


def gates(n=8, d=5):
    return torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("hydra__gated_arbitrary_pairs")
    tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    return {k: v if v.is_floating_point() else v.long() for k, v in tensors.items()}, params


@pytest.mark.golden
def test_the_gate_agrees_with_recorded_numbers(recorded):
    a, params = recorded
    width, hidden, dim = params["gate_in_dim"], params["gate_mlp_dim"], a["gate"].shape[1]
    gate = PairGate(params["num_classes"], dim, width, hidden, params["fuse"])
    state = {"embedding.weight": a["label_embedding"], "mlp.2.weight": a["w1"], "mlp.2.bias": a["b1"]}
    state |= {"mlp.5.weight": a["w2"], "mlp.5.bias": a["b2"]}
    missing, unexpected = gate.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith(("mlp.1.", "mlp.4.")) for key in missing)  # the batch norms
    torch.testing.assert_close(gate(a["y1"], a["y2"]), a["gate"], atol=1e-4, rtol=0)


@pytest.mark.golden
def test_losses_agree_with_recorded_numbers(recorded):
    a, params = recorded
    z, k, y1, y2 = F.normalize(a["z"], dim=1), F.normalize(a["k"], dim=1), a["y1"], a["y2"]

    def loss(gate, targets, **how):
        return class_pair_contrast(gated_logits(z, k, gate, params["temperature"], **how), y1, targets, y1)

    close = {"rtol": 1e-4, "atol": 0}
    torch.testing.assert_close(loss(a["gate"], y2), a["loss_gate_unrenormalised"], **close)
    torch.testing.assert_close(loss(a["gate"], y2, renormalise=True), a["loss_gate_renormalised"], **close)
    torch.testing.assert_close(loss(None, y2), a["loss_open_gate"], **close)
    torch.testing.assert_close(loss(None, y1), a["loss_open_gate_identical"], **close)


# --- the loss -------------------------------------------------------------------------------------------------------
def slow_loss(z, k, gate, y1, y2, temperature, renormalise, average="pairs"):
    costs = []
    for i, (a, g) in enumerate(zip(z.tolist(), gate.tolist(), strict=True)):
        s = []
        for b in k.tolist():
            u, v = [x * w for x, w in zip(a, g, strict=True)], [x * w for x, w in zip(b, g, strict=True)]
            dot = sum(x * y for x, y in zip(u, v, strict=True))
            if renormalise:
                dot /= math.sqrt(sum(x * x for x in u)) * math.sqrt(sum(x * x for x in v))
            s.append(dot / temperature)
        others = sum(math.exp(s[n]) for n in range(len(k)) if y1[n] not in (y1[i], y2[i]))
        row = [math.log(math.exp(s[j]) + others) - s[j] for j in range(len(k)) if y1[j] == y2[i]]
        costs.append(row)
    if average == "pairs":
        return sum(map(sum, costs)) / sum(map(len, costs))
    rows = [sum(row) / len(row) for row in costs if row]
    return sum(rows) / len(rows)


@pytest.mark.parametrize("average", ["pairs", "rows"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_is_the_slow_loop(renormalise, average):
    z, k, gate, y2 = unit_rows(), unit_rows(seed=1), gates(), LABELS[torch.tensor([5, 2, 0, 1, 4, 7, 3, 6])]
    logits = gated_logits(z, k, gate, 0.3, renormalise)
    fast = class_pair_contrast(logits, LABELS, y2, LABELS, average)
    expected = slow_loss(z, k, gate, LABELS.tolist(), y2.tolist(), 0.3, renormalise, average)
    assert fast.item() == pytest.approx(expected, rel=1e-10)


def test_open_gate_and_own_class_is_multi_positive_info_nce():
    z = unit_rows()
    same = LABELS[:, None] == LABELS
    logits = gated_logits(z, z, None, 0.2)
    expected = torch.stack([info_nce(logits, same & (c == LABELS), ~same, compete=False) for c in range(4)])
    rows = torch.bincount(LABELS).double()
    fast = class_pair_contrast(logits, LABELS, LABELS, LABELS, "rows")
    torch.testing.assert_close(fast, (expected * rows).sum() / rows.sum())


@pytest.mark.parametrize("c", [0.3, 2.0])
def test_a_constant_gate_scales_the_logits_or_does_nothing(c):
    z, gate = unit_rows(), torch.full((8, 5), c, dtype=torch.float64)
    torch.testing.assert_close(gated_logits(z, z, gate), c**2 * gated_logits(z, z))
    torch.testing.assert_close(gated_logits(z, z, gate, renormalise=True), gated_logits(z, z))


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_closed_dimension_has_no_influence_and_no_gradient(renormalise):
    z, gate, row, shut = unit_rows().requires_grad_(), gates(), 3, 2
    gate[row, shut] = 0.0
    k = unit_rows(seed=1)

    def loss(anchors, keys):
        mine = slice(row, row + 1)
        logits = gated_logits(anchors[mine], keys, gate[mine], 0.2, renormalise)
        return class_pair_contrast(logits, LABELS[mine], LABELS[:1], LABELS)

    first = loss(z, k)
    first.backward()
    assert z.grad[row, shut] == 0 and z.grad[row].abs().sum() > 0
    other, keys = z.detach().clone(), k.clone()
    other[row, shut], keys[:, shut] = 0.9, 0.1
    torch.testing.assert_close(loss(other, keys), first.detach(), atol=0, rtol=1e-12)


def test_a_gate_of_zeros_gives_finite_gradients():
    z, gate = unit_rows().requires_grad_(), torch.zeros(8, 5, dtype=torch.float64, requires_grad=True)
    for renormalise in (False, True):
        loss = class_pair_contrast(gated_logits(z, z, gate, 0.1, renormalise), LABELS, LABELS.flip(0), LABELS)
        loss.backward()
    assert torch.isfinite(z.grad).all() and torch.isfinite(gate.grad).all()


def test_two_classes_leave_no_negatives():
    z, labels = unit_rows().requires_grad_(), LABELS % 2
    loss = class_pair_contrast(gated_logits(z, z), labels, 1 - labels, labels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


def test_neither_class_is_a_negative():
    y2 = LABELS.roll(1)
    positives, negatives = pair_masks(LABELS, y2, LABELS)
    for i in range(8):
        for j in range(8):
            assert bool(positives[i, j]) == (LABELS[j] == y2[i])
            assert bool(negatives[i, j]) == (LABELS[j] != y2[i] and LABELS[j] != LABELS[i])
    # more samples of a row's two classes change its negatives in nothing
    more = torch.cat([LABELS, LABELS[:1], y2[:1]])
    assert int(pair_masks(LABELS[:1], y2[:1], more)[1].sum()) == int(negatives[0].sum())


def test_a_constant_a_row_changes_nothing():
    logits, y2 = gated_logits(unit_rows(), unit_rows(seed=1)), LABELS.roll(2)
    shifted = logits - logits.mean(1, keepdim=True)
    loss = class_pair_contrast(logits, LABELS, y2, LABELS)
    torch.testing.assert_close(class_pair_contrast(shifted, LABELS, y2, LABELS), loss)


def test_targets_without_samples_cost_nothing():
    z = unit_rows().requires_grad_()
    loss = class_pair_contrast(gated_logits(z, z), LABELS, torch.full((8,), 9), LABELS)
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


# --- the gate -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fuse", [True, False])
def test_the_gate_is_symmetric_and_between_0_and_1(fuse):
    torch.manual_seed(0)
    gate, other = PairGate(4, 6, 5, 7, fuse), LABELS.roll(3)
    first, second = gate(LABELS, other).detach(), gate(other, LABELS).detach()
    torch.testing.assert_close(first, second)
    assert first.shape == (8, 6) and float(first.min()) > 0 and float(first.max()) < 1


# --- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("settings", [{}, {"renormalise": True, "fuse": False}, {"gate": False}])
def test_is_the_loss_of_its_parts(name, settings):
    method, draws = build(name, temperature=0.2, **settings), Draws(step=3, index=range(8))
    z = F.normalize(method.projector(method.backbone(views()["view1"])), dim=1)
    targets = LABELS[draws.permutation("pairs", 8)]
    gate = None if method.gate is None else method.gate(LABELS, targets)
    logits = gated_logits(z, z, gate, 0.2, settings.get("renormalise", False))
    expected = class_pair_contrast(logits, LABELS, targets, LABELS)
    torch.testing.assert_close(method(views(), draws)["class_pairs"], expected)


@pytest.mark.parametrize("pairs", ["arbitrary", "identical", "distinct"])
def test_what_a_sample_is_paired_with(pairs):
    method, seen = build(pairs=pairs), []
    for step in range(8):
        targets = method.encode(views(), Draws(epoch=step, step=step, index=range(8)))["targets"]
        if pairs == "arbitrary":
            assert sorted(targets.tolist()) == sorted(LABELS.tolist())
        assert {"identical": torch.equal(targets, LABELS), "distinct": bool((targets != LABELS).all())}.get(pairs, True)
        seen.append(targets)
    seen = torch.stack(seen)
    assert int(seen.max()) < 4 and (pairs == "identical" or len(seen.unique(dim=0)) == 8)
    if pairs == "arbitrary":
        assert bool((seen == LABELS).any()) and bool((seen != LABELS).any())  # an identical pair is kept


def test_views_of_a_picture_are_samples_side_by_side():
    method = build(repeats=3)
    encoded = method.encode(views(3))
    assert encoded["embedding"].shape == (24, 16)
    assert torch.equal(encoded["classes"], LABELS.repeat_interleave(3))
    single = method.eval().encode({"view1": views(3)["view2"], "label": LABELS})["embedding"]
    torch.testing.assert_close(method.encode(views(3))["embedding"][1::3], single)


def test_learned_temperature_starts_at_the_given_one():
    fixed, learned = build(temperature=0.3), build(temperature=0.3, learn_temperature=True)
    loss = learned(views())["class_pairs"]
    torch.testing.assert_close(loss, fixed(views())["class_pairs"])
    loss.backward()
    assert float(learned.log_scale.grad.abs()) > 0


@pytest.mark.parametrize("pairs", ["arbitrary", "identical", "distinct"])
def test_equal_embeddings_give_the_plateau(pairs):
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    method = build(gate=False, pairs=pairs)
    draws = Draws(index=range(400))
    targets = method._targets(labels, labels, draws, 1)
    z = torch.ones(400, 16)
    loss = method.loss({"embedding": z, "classes": labels, "targets": targets})["class_pairs"]
    assert loss.item() == pytest.approx(method.plateau(400)["class_pairs"], rel=3e-3)


def test_equal_pictures_give_finite_gradients_everywhere():
    method = build(learn_temperature=True)
    method({"view1": torch.full((8, 3, 32, 32), 0.5), "label": LABELS})["class_pairs"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_views_keep_the_labels():
    images = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8)
    made = build(repeats=2).views({"image": images, "label": LABELS}, Draws(index=range(8)))
    assert list(made) == ["view1", "view2", "label"] and torch.equal(made["label"], LABELS)
    assert not torch.equal(made["view1"], made["view2"])


def test_missing_labels_are_named():
    with pytest.raises(UserError, match="two classes"):
        build(classes=1)
    with pytest.raises(UserError, match="no label"):
        build().views({"image": torch.zeros(2, 3, 32, 32), "label": torch.tensor([0, -1])}, Draws(index=range(2)))
