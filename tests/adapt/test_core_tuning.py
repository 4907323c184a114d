"""Core-tuning: mining, mixing and focal contrast against recorded numbers and slow versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from eyespot.adapt.core_tuning import CoreTuning, CoreTuningConfig
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.supervised_contrastive import (
    core_mixtures,
    focal_supervised_contrast,
    hard_pairs,
    label_groups,
    soft_cross_entropy,
)
from eyespot.methods.method import Info, total
from eyespot.nets.backbones import backbone


def random_features(n: int = 12, d: int = 5, seed: int = 0):
    return torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 3, 0])  # class 3 has one sample


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("core_tuning__pair_mining_focal")
    tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    return {k: v if v.is_floating_point() else v.long() for k, v in tensors.items()}, params


@pytest.mark.golden
def test_mining_and_mixing_agree_with_recorded_numbers(recorded):
    a, params = recorded
    positive, negative = hard_pairs(a["features"], a["labels"], "code")
    assert torch.equal(positive, a["hard_positive_index"]) and torch.equal(negative, a["hard_negative_index"])
    mixed, soft = core_mixtures(
        a["features"],
        a["labels"],
        params["num_classes"],
        a["order"],
        a["lam_neg"],
        a["lam_pos"],
        params["lambda_n_floor"],
        "code",
    )
    torch.testing.assert_close(mixed, a["mixed_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(soft, a["mixed_targets"], atol=1e-5, rtol=0)


@pytest.mark.golden
def test_groups_of_soft_labels_agree_with_recorded_numbers(recorded):
    a, _ = recorded
    groups, code = label_groups(a["mixed_targets"]), a["label_code"]
    assert torch.equal(groups[:, None] == groups[None], code[:, None] == code[None])


@pytest.mark.golden
def test_losses_agree_with_recorded_numbers(recorded):
    a, params = recorded
    groups, n = label_groups(a["mixed_targets"]), len(a["labels"])
    contrast = focal_supervised_contrast(a["z"], groups, params["temperature"], "code")
    close = {"rtol": 1e-4, "atol": 0}
    torch.testing.assert_close(contrast, a["contrastive_loss"], **close)
    paper = focal_supervised_contrast(a["z"], groups, params["temperature"], "paper")
    torch.testing.assert_close(paper, a["contrastive_loss_per_positive"], **close)
    plain = focal_supervised_contrast(a["z"][:n], a["labels"], params["temperature"], "code")
    torch.testing.assert_close(plain, a["contrastive_loss_plain"], **close)
    entropy = soft_cross_entropy(a["mixed_features"] @ a["classifier_w"].T, a["mixed_targets"])
    torch.testing.assert_close(entropy, a["ce_loss"], **close)
    torch.testing.assert_close(entropy + params["eta"] * contrast, a["total"], **close)


# --- mining and mixing ----------------------------------------------------------------------------------------------
def test_hard_pairs_by_the_paper():
    features = random_features()
    similarity = normalize(features, dim=1) @ normalize(features, dim=1).T
    positive, negative = hard_pairs(features, LABELS)
    for i in range(12):
        same = [j for j in range(12) if LABELS[j] == LABELS[i] and j != i] or [i]
        other = [j for j in range(12) if LABELS[j] != LABELS[i]]
        assert int(positive[i]) == min(same, key=lambda j: similarity[i, j])
        assert int(negative[i]) == max(other, key=lambda j: similarity[i, j])


def test_one_class_has_no_negative():
    positive, negative = hard_pairs(random_features(4), torch.zeros(4, dtype=torch.int64))
    assert negative.tolist() == [0, 1, 2, 3] and all(positive != negative)


def test_shares_of_one_give_the_partners():
    features, n = random_features(), 12
    order, ones = torch.randperm(n, generator=torch.Generator().manual_seed(2)), torch.ones(n)
    mixed, soft = core_mixtures(features, LABELS, 4, order, ones, ones)
    hot = one_hot(LABELS, 4).double()
    positive = hard_pairs(features, LABELS)[0]
    assert torch.equal(mixed, torch.cat([features, features[order], features[positive]]))
    assert torch.equal(soft, torch.cat([hot, hot[order], hot[positive]]))


def test_mixtures_are_convex_and_the_floor_holds():
    features, order = random_features(), torch.arange(12).roll(1)
    negative, positive = torch.rand(2, 12, generator=torch.Generator().manual_seed(3))
    mixed, soft = core_mixtures(features, LABELS, 4, order, negative, positive, floor=0.8)
    torch.testing.assert_close(soft.sum(1), torch.ones(36, dtype=torch.float64))
    assert soft.min() >= 0
    assert mixed.min() >= features.min() and mixed.max() <= features.max()
    partner = soft[12:24].gather(1, LABELS[order][:, None])[:, 0]
    assert partner.min() >= 0.8 - 1e-6 and partner.max() > 0.8
    torch.testing.assert_close(mixed[13], partner[1] * features[0] + (1 - partner[1]) * features[1])


def test_mining_does_not_depend_on_the_length_of_features():
    features = random_features()
    for mining in ("paper", "code"):
        for a, b in zip(hard_pairs(features, LABELS, mining), hard_pairs(7.5 * features, LABELS, mining), strict=True):
            assert torch.equal(a, b)


def test_a_mixture_of_one_class_counts_as_that_class():
    soft = torch.tensor([[1.0, 0.0, 0.0], [1.0 - 2.0**-24, 0.0, 0.0], [1.0, 2.0**-24, 0.0]])
    assert label_groups(soft).tolist() == [0, 0, 0]
    apart = torch.tensor([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.8, 0.0, 0.2], [0.8001, 0.1999, 0.0]])
    assert label_groups(apart).unique().numel() == 4


# --- the contrast ---------------------------------------------------------------------------------------------------
def slow_contrast(z, groups, temperature, normalisation):
    n, rows = len(z), []
    for i in range(n):
        weight = [math.exp(float(z[i] @ z[a]) / temperature) if a != i else 0.0 for a in range(n)]
        p = [w / sum(weight) for w in weight]
        positives = [j for j in range(n) if j != i and groups[j] == groups[i]]
        if positives:
            cost = sum(-(1 - p[j]) * math.log(p[j]) for j in positives)
            rows.append(cost / (len(positives) if normalisation == "paper" else n))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("normalisation", ["paper", "code"])
def test_contrast_equals_the_slow_version(normalisation):
    z = normalize(random_features() - 0.5, dim=1)
    ours = focal_supervised_contrast(z, LABELS, 0.3, normalisation)
    assert float(ours) == pytest.approx(slow_contrast(z, LABELS, 0.3, normalisation))


def test_contrast_of_three_rows_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    loss = focal_supervised_contrast(z, torch.tensor([0, 0, 1]), 0.07, "code")
    e = math.exp(1 / 0.07)
    first, second = 1 / (1 + e), 1 / 2
    assert math.log(first) == pytest.approx(-14.29, abs=0.01)
    by_hand = (-(1 - first) * math.log(first) - (1 - second) * math.log(second)) / 3 / 2
    assert float(loss) == pytest.approx(by_hand) == pytest.approx(2.439, abs=1e-3)


@pytest.mark.parametrize("rows", [1, 5])
def test_no_positives_cost_nothing(rows):
    z = normalize(random_features(rows), dim=1).requires_grad_()
    loss = focal_supervised_contrast(z, torch.arange(rows))
    loss.backward()
    assert float(loss.detach()) == 0 and z.grad is not None and not z.grad.any()


def test_gradient_passes_through_the_focal_weight():
    z = normalize(random_features() - 0.5, dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_supervised_contrast(x, LABELS, 0.5), z)


# --- the adapter ----------------------------------------------------------------------------------------------------
def small(classes: int = 4, **config):
    torch.manual_seed(0)
    chosen = {"image_size": 16, "out": 8} | config
    return CoreTuning(backbone("resnet8", image_size=16, width=8), CoreTuningConfig(**chosen), Info(classes=classes))


def batch(labels=LABELS):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(labels), 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"image": images, "label": labels, "index": torch.arange(len(labels))}


def one_step(method, given=None):
    given = given or batch()
    draws = Draws(index=given["index"])
    terms = method(method.views(given, draws), draws)
    total(terms).backward()
    return terms


def test_every_parameter_has_a_gradient():
    method = small()
    terms = one_step(method)
    assert set(terms) == {"cross_entropy", "contrast"}
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_without_weight_the_contrast_moves_nothing():
    method = small(eta=0.0)
    assert float(one_step(method)["contrast"].detach()) == 0
    assert all(not p.grad.any() for p in method.contrastor.parameters())
    assert method.classifier.weight.grad.any()


def test_unmixed_rows_alone_are_plain_cross_entropy():
    logits, labels = random_features(12, 4), LABELS
    ours = soft_cross_entropy(logits, one_hot(labels, 4).double())
    torch.testing.assert_close(ours, cross_entropy(logits, labels))


def test_without_mixtures_and_weight_it_is_fine_tuning_by_cross_entropy():
    method, given = small(mix=False, eta=0.0).eval(), batch()
    draws = Draws(index=given["index"])
    views = method.views(given, draws)
    terms = method(views, draws)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy(method.predict(views["view"]), LABELS))
    assert float(terms["contrast"].detach()) == 0
    contrast = small(mix=False, eta=1.0).eval()(views, draws)["contrast"]
    z = normalize(method.contrastor(method.backbone(views["view"])), dim=1)
    expected = focal_supervised_contrast(z, LABELS, method.config.temperature, "paper")
    torch.testing.assert_close(contrast, expected)


@pytest.mark.parametrize("labels", [[2] * 6, [0, 1, 2, 3], [1]])
def test_one_class_lonely_samples_and_a_single_sample_are_no_trouble(labels):
    method = small().eval()  # batch statistics of one sample do not exist
    terms = one_step(method, batch(torch.tensor(labels)))
    assert all(t.isfinite() for t in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("detach", [True, False])
def test_detached_originals_leave_the_backbone_alone(monkeypatch, detach):
    method = small(detach=detach)
    originals_only = lambda f, labels, classes, *rest: (f, one_hot(labels, classes).to(f))  # noqa: E731
    monkeypatch.setattr("eyespot.adapt.core_tuning.core_mixtures", originals_only)
    one_step(method)
    moved = any(p.grad is not None and bool(p.grad.any()) for p in method.backbone.parameters())
    assert moved != detach and method.classifier.weight.grad.any()


def test_contrast_does_not_depend_on_the_length_of_features_with_a_scale_free_projector():
    method, values = small().eval(), []
    method.contrastor = nn.Identity()
    x, draws = torch.rand(12, 3, 16, 16), Draws(index=range(12))
    for scale in (1.0, 4.0):
        hook = method.backbone.register_forward_hook(lambda m, i, out, scale=scale: scale * out)
        values.append(float(method({"view": x, "label": LABELS}, draws)["contrast"].detach()))
        hook.remove()
    assert values[0] == pytest.approx(values[1], rel=1e-4) and values[0] > 0


def test_predicts_scores():
    method = small().eval()
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(method.predict(x), method.embed(x) @ method.classifier.weight.T)
    assert method.classifier.bias is None


def test_views_are_light():
    method = small(rotation=0.0, flip=0.0, resize=1.0)
    given = batch()
    torch.testing.assert_close(method.views(given, Draws(index=range(12)))["view"], given["image"].float() / 255)
    moved = small().views(given, Draws(index=range(12)))["view"]
    assert moved.shape == (12, 3, 16, 16) and not torch.allclose(moved, given["image"].float() / 255, atol=0.2)


def test_missing_labels_are_a_clear_error():
    with pytest.raises(UserError, match="labels"):
        small(classes=0)
    with pytest.raises(UserError, match="no label"):
        small().views(batch(torch.tensor([0, 1, -1])), Draws(index=range(3)))


def test_training_sharpens_the_classes():
    """Pictures of one colour a class: accuracy reaches 1 and the contrast falls."""
    method, labels = small(), torch.arange(24) % 4
    colours = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))[labels]
    images = (colours[:, :, None, None] * 255).expand(-1, -1, 16, 16).to(torch.uint8)
    given = {"image": images, "label": labels, "index": torch.arange(24)}
    optimizer, history = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, nesterov=True), []
    for step in range(40):
        draws = Draws(epoch=step, step=step, index=range(24))
        terms = method(method.views(given, draws), draws)
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in terms.items()})
    for term in ("cross_entropy", "contrast"):
        assert np.mean([h[term] for h in history[-5:]]) < 0.9 * np.mean([h[term] for h in history[:5]])
    assert (method.eval().predict(images / 255).argmax(1) == labels).float().mean() > 0.9
