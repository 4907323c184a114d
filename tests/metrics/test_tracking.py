"""Label propagation, J and F of masks, joints: recorded numbers, slow versions, what must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eyespot.errors import UserError
from eyespot.metrics.tracking import (
    boundary,
    boundary_similarity,
    davis,
    enlarge,
    pck,
    propagate,
    propagate_step,
    read_joints,
    region_similarity,
    sequence_statistics,
)


def tensor(array):
    return torch.from_numpy(np.array(array))


def features(time=4, height=5, width=6, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(time, height, width, dim, generator=generator, dtype=torch.float64)


def labels(height=5, width=6, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return F.one_hot(torch.randint(0, classes, (height, width), generator=generator), classes).double()


# --- recorded numbers -------------------------------------------------------------------------------------------------
@pytest.mark.golden
@pytest.mark.parametrize("name", ["protocols__davis_jf", "_video_bases__jf_pose"])
def test_masks_agree_with_the_recorded_numbers(golden, name):
    arrays, p = golden(name)
    predicted, true = tensor(arrays["pred"]).bool(), tensor(arrays["gt"]).bool()
    j, f = region_similarity(predicted, true), boundary_similarity(predicted, true, p["bound_th"])
    np.testing.assert_allclose(j, arrays["J"], atol=1e-6)
    np.testing.assert_allclose(f, arrays["F"], atol=1e-6)
    if "J_stats" in arrays:
        for scores, key in ((j, "J_stats"), (f, "F_stats")):
            np.testing.assert_allclose(list(sequence_statistics(scores).values()), arrays[key], atol=1e-6)


@pytest.mark.golden
def test_joints_agree_with_the_recorded_numbers(golden):
    arrays, p = golden("_video_bases__jf_pose")
    found = read_joints(tensor(arrays["heat"])[..., 1:], p["pose_topk"])  # channel 0 is the ground
    np.testing.assert_allclose(found.T, arrays["coords"], atol=1e-4)


@pytest.mark.golden
def test_propagation_agrees_with_the_recorded_numbers(golden):
    """The recorded clip begins with copies of its first frame; only the last of them is needed here."""
    arrays, p = golden("_video_bases__label_propagation")
    clip = tensor(arrays["features"])[p["context"] - 1 :]
    given = {"context": p["context"], "top": p["topk"], "radius": p["radius"], "temperature": p["temperature"]}
    out = propagate(clip, tensor(arrays["first_labels"]), **given)
    np.testing.assert_allclose(out[1:], arrays["propagated"], atol=1e-4)


@pytest.mark.golden
def test_a_step_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("protocols__label_propagation")
    size = (p["h"], p["w"])
    context = tensor(arrays["context_feats"]).transpose(1, 2).unflatten(1, size)
    target = tensor(arrays["target_feat"]).unflatten(0, size)
    given = {"top": p["topk"], "radius": p["neighbourhood"], "temperature": p["temperature"]}
    out = propagate_step(target, context, tensor(arrays["context_segs"]), **given)
    np.testing.assert_allclose(out[None], arrays["propagated"], rtol=1e-4, atol=1e-5)
    large = enlarge(out, (size[0] * p["upsampling"], size[1] * p["upsampling"]), stretch=True)
    np.testing.assert_allclose(large, arrays["upsampled_normalised"], rtol=1e-4, atol=1e-5)
    assert np.array_equal(large.argmax(0), arrays["argmax"])


# --- propagation ------------------------------------------------------------------------------------------------------
def slow(clip, first, context, top, radius, temperature):
    """Loops over places."""
    time, height, width, _ = clip.shape
    known = [first]
    for t in range(1, time):
        out = torch.zeros_like(first)
        for r, c in np.ndindex(height, width):
            found = []
            for k, s in enumerate([0, *(max(0, t - j) for j in range(context, 0, -1))]):
                for y, x in np.ndindex(height, width):
                    if k and math.hypot(y - r, x - c) >= radius:
                        continue
                    cosine = float(F.cosine_similarity(clip[t, r, c], clip[s, y, x], dim=0))
                    found.append((cosine, known[s][y, x]))
            found = sorted(found, key=lambda pair: -pair[0])[:top]
            weights = torch.tensor([s / temperature for s, _ in found], dtype=torch.float64).softmax(0)
            out[r, c] = sum(w * label for w, (_, label) in zip(weights, found, strict=True))
        known.append(out)
    return torch.stack(known)


@pytest.mark.parametrize(("context", "top", "radius"), [(2, 4, 2.0), (3, 1, 1.5), (1, 50, 9.0)])
def test_propagation_equals_a_slow_version(context, top, radius):
    clip, first = features(4, 3, 4), labels(3, 4)
    out = propagate(clip, first, context=context, top=top, radius=radius, temperature=0.2)
    torch.testing.assert_close(out, slow(clip, first, context, top, radius, 0.2))


def test_a_still_video_keeps_its_labels():
    clip, first = features(1).expand(5, -1, -1, -1), labels()
    torch.testing.assert_close(propagate(clip, first, temperature=1e-3), first.expand(5, -1, -1, -1))
    stepped = propagate_step(clip[0], clip[:2], first.permute(2, 0, 1).expand(2, -1, -1, -1), temperature=1e-3)
    torch.testing.assert_close(stepped.permute(1, 2, 0), first)


def test_labels_follow_features_that_move():
    place = features(1)[0]
    clip = torch.stack([place.roll(t, 1) for t in range(4)])
    out = propagate(clip, labels(), temperature=1e-3, radius=3)
    for t in range(4):
        torch.testing.assert_close(out[t], labels().roll(t, 1))


def test_without_bounds_it_is_a_softmax_over_all_places():
    clip, first = features(2, 3, 4), labels(3, 4)
    out = propagate(clip, first, context=1, top=999, radius=99, temperature=0.5)[1]
    x = F.normalize(clip.flatten(1, 2), dim=-1)
    weight = (torch.cat([x[1] @ x[0].T] * 2, 1) / 0.5).softmax(1)
    torch.testing.assert_close(out.flatten(0, 1), weight @ torch.cat([first.flatten(0, 1)] * 2))


def test_labels_of_another_size_are_told():
    with pytest.raises(UserError, match="do not fit features of 5 x 6"):
        propagate(features(), labels(4, 6))


# --- masks ------------------------------------------------------------------------------------------------------------
def disk(size=40, radius=9, at=(20, 20)):
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - at[0]) ** 2 + (columns - at[1]) ** 2 <= radius**2


def slow_boundary_similarity(predicted, true, radius):
    """Loops over boundary pixels."""
    places = [list(zip(*boundary(m).numpy().nonzero(), strict=True)) for m in (predicted, true)]
    near = lambda p, others: any((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 <= radius**2 for q in others)  # noqa: E731
    if not places[0] and not places[1]:
        return 1.0
    if not places[0] or not places[1]:
        return 0.0
    precision = sum(near(p, places[1]) for p in places[0]) / len(places[0])
    recall = sum(near(p, places[0]) for p in places[1]) / len(places[1])
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_boundary_similarity_equals_a_slow_version(radius):
    generator = torch.Generator().manual_seed(radius)
    for _ in range(4):
        a, b = (torch.rand(12, 14, generator=generator) > 0.6 for _ in range(2))
        found = boundary_similarity(a, b, radius)
        assert float(found) == pytest.approx(slow_boundary_similarity(a, b, radius))


def test_equal_disjoint_and_empty_masks():
    a, b, empty = disk(), disk(at=(8, 8), radius=4), torch.zeros(40, 40, dtype=torch.bool)
    for measure in (region_similarity, boundary_similarity):
        assert float(measure(a, a)) == 1 and float(measure(empty, empty)) == 1
        assert float(measure(a, empty)) == 0 and float(measure(empty, a)) == 0
    assert float(region_similarity(a, b)) == 0
    moved = disk(at=(20, 21))
    assert 0.85 < float(region_similarity(a, moved)) < 0.95
    assert float(boundary_similarity(a, moved, 2)) == 1  # within the tolerance
    assert region_similarity(torch.stack([a, b]), torch.stack([a, a])).tolist() == [1, 0]


def test_davis_leaves_out_the_first_and_the_last_frame():
    true = torch.stack([disk(at=(20, 14 + t)).long() for t in range(5)])
    guess = true.clone()
    guess[0], guess[-1] = 0, 0
    assert davis([guess], [true]) == {"jf": 100.0, "j": 100.0, "f": 100.0}
    two = true + 2 * torch.stack([disk(at=(20, 33), radius=3).long()] * 5)
    half = davis([two * (two == 1)], [two])  # the second object is missed
    assert half["j"] == pytest.approx(50) and half["jf"] == pytest.approx((half["j"] + half["f"]) / 2)
    with pytest.raises(UserError, match="no object"):
        davis([true * 0], [true * 0])


# --- joints -----------------------------------------------------------------------------------------------------------
def test_joints_are_read_where_they_are():
    heat = torch.zeros(6, 8, 2)
    heat[2, 5, 0] = 1.0
    heat[4, 1, 1], heat[4, 2, 1] = 0.5, 0.5
    assert read_joints(heat, top=2).tolist() == [[5, 2], [1.5, 4]]


def test_pck_by_hand():
    true = torch.tensor([[[0.0, 0], [30, 40]]] * 3)  # diagonal 50, person 30
    guess = true.clone()
    guess[1, 0, 0], guess[2, 0, 0] = 2.9, 3.1
    visible = torch.ones(3, 2, dtype=torch.bool)
    assert pck(guess, true, visible, 0.1) == pytest.approx(75)
    assert pck(guess, true, visible, 0.2) == pytest.approx(100)
    guess[0] += 99  # given, so not counted
    assert pck(guess, true, visible, 0.2) == pytest.approx(100)
    visible[:, 1] = False  # one joint alone has no size: only exact ones are right
    assert pck(true, true, visible, 0.1) == 100
    with pytest.raises(UserError, match="No joint is visible"):
        pck(guess, true, visible & False)
