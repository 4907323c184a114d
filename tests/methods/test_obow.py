"""OBoW: targets, vocabulary and predictions against recorded numbers and slow loops, its queue, its views."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.visual_words import bag_divergence, bag_of_words, perplexity, word_distances
from eyespot.methods.image.obow import OBoW, OBoWConfig
from eyespot.nets.backbones import backbone
from eyespot.nets.teacher import cosine_momentum
from eyespot.views.image import clean
from eyespot.views.patches import cut, grid_starts


def build(name="resnet8", options=None, **settings):
    torch.manual_seed(0)
    net = backbone(name, image_size=32, **(options or {}))
    return OBoW(net, OBoWConfig(**{"words": 12, "crops": 2, "patches": 1, **settings}))


def views(n=6, crops=2, patches=1):
    generator = torch.Generator().manual_seed(1)
    sizes = {"full": 32, **{f"crop{i + 1}": 24 for i in range(crops)}, **{f"patch{i + 1}": 16 for i in range(patches)}}
    return {name: torch.rand(n, 3, size, size, generator=generator) for name, size in sizes.items()}


def step(method, pixels=None, draws=None):
    terms = method(pixels or views(), draws)
    sum(terms.values()).backward()
    method.after_step()
    return terms


# --- recorded numbers -----------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(golden):
    arrays, params = golden("obow__targets_vocab_loss")
    tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    return {k: v if v.is_floating_point() else v.long() for k, v in tensors.items()}, params


class Chosen(Draws):
    """Draws whose integers are given."""

    def __init__(self, values):
        super().__init__(index=range(len(values)))
        self.values = values

    def integers(self, name, high, columns=None):
        assert int(self.values.max()) < high
        return self.values


def of_recorded(a, params):
    """A method whose copy's maps are the recorded ones."""
    net = nn.Conv2d(3, a["teacher_map"].shape[1], 1)
    size = {"words": params["num_words"], "inv_delta": params["inv_delta"], "kappa": params["kappa"]}
    method = OBoW(backbone(net, image_size=8), OBoWConfig(image_size=8, crop_size=8, patches=0, **size))
    head = nn.Sequential(
        nn.Linear(a["fc1_w"].shape[1], params["hidden"], bias=False),
        nn.BatchNorm1d(params["hidden"]),
        nn.ReLU(),
        nn.Linear(params["hidden"], params["C_out"]),
    )
    head.load_state_dict({"0.weight": a["fc1_w"], "3.weight": a["fc2_w"], "3.bias": a["fc2_b"]}, strict=False)
    method.heads[0] = head
    method.vocabularies[0].columns.copy_(a["vocab_before"].T)
    method.mu.copy_(a["mu_before"])
    return method


@pytest.mark.golden
def test_a_step_agrees_with_recorded_numbers(recorded):
    a, params = recorded
    method = of_recorded(a, params)
    inner = a["teacher_map"][:, :, 1:-1, 1:-1]
    crops = params["num_crops"]
    student = a["student_feat"].unflatten(0, (-1, crops)).transpose(0, 1)  # crops of a picture stand side by side
    terms = method.loss({"map1": inner, "crops": student.requires_grad_()}, Chosen(a["loc_index"]))
    torch.testing.assert_close(terms["crops"].detach(), a["loss"], rtol=1e-4, atol=0)
    method.after_step()
    torch.testing.assert_close(method.mu, a["mu_after"], rtol=0, atol=1e-5)
    torch.testing.assert_close(method.vocabularies[0].columns.T, a["vocab_after"], rtol=0, atol=1e-5)
    watched = torch.stack([method.watch["vocabulary_perplexity"], method.watch["picture_perplexity"]])
    torch.testing.assert_close(watched, a["perplexity"], rtol=1e-4, atol=0)


@pytest.mark.golden
def test_targets_and_predictions_agree_with_recorded_numbers(recorded):
    a, params = recorded
    inner = a["teacher_map"][:, :, 1:-1, 1:-1]
    distances = word_distances(inner, a["vocab_before"])
    bags = bag_of_words(distances, params["inv_delta"] / a["mu_after"], params["pool"])
    torch.testing.assert_close(bags, a["bow_target"], rtol=0, atol=1e-5)
    head = of_recorded(a, params).heads[0]
    weights = F.normalize(head(F.normalize(a["vocab_before"], dim=1)), dim=1)
    logits = params["kappa"] * a["student_feat"] @ weights.T
    torch.testing.assert_close(logits.detach(), a["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.golden
def test_the_copys_momentum_agrees_with_recorded_numbers(recorded):
    a, params = recorded
    steps = params["alpha_steps"]
    found = [cosine_momentum(params["alpha_base"], 1.0, i / steps) for i in range(steps + 1)]
    assert found == pytest.approx(a["alpha_schedule"].tolist(), rel=1e-5)
    assert found[0] == params["alpha_base"] == OBoWConfig().momentum


# --- targets --------------------------------------------------------------------------------------------------------
def random_maps(n=3, c=4, side=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, c, side, side, dtype=torch.float64, generator=generator)
    return maps, torch.randn(7, c, dtype=torch.float64, generator=generator)


def slow_bags(maps, words, inverse, pool):
    bags = []
    for picture in maps.flatten(2):
        shares = []
        for place in picture.T.tolist():
            d = [sum((x - y) ** 2 for x, y in zip(place, word, strict=True)) for word in words.tolist()]
            e = [math.exp(-inverse * v) for v in d]
            shares.append([v / sum(e) for v in e])
        join = max if pool == "max" else lambda values: sum(values) / len(values)
        bag = [join([s[k] for s in shares]) for k in range(len(words))]
        bags.append([v / sum(bag) for v in bag])
    return torch.tensor(bags, dtype=torch.float64)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_bags_are_the_slow_loop(pool):
    maps, words = random_maps()
    bags = bag_of_words(word_distances(maps, words), 0.7, pool)
    torch.testing.assert_close(bags, slow_bags(maps, words, 0.7, pool))
    torch.testing.assert_close(bags.sum(1), torch.ones(3, dtype=torch.float64))


def test_bags_have_no_gradient():
    maps, words = (t.requires_grad_() for t in random_maps())
    assert not bag_of_words(word_distances(maps, words), 1.0).requires_grad


def test_a_large_inverse_temperature_counts_the_words_that_win():
    maps, words = random_maps()
    distances = word_distances(maps, words)
    bags = bag_of_words(distances, 1e9)
    for row, nearest in zip(bags, distances.argmin(-1), strict=True):
        won = set(nearest.tolist())
        expected = [1 / len(won) if k in won else 0.0 for k in range(7)]
        assert row.tolist() == pytest.approx(expected, abs=1e-12)


def test_with_one_place_both_pools_are_the_same():
    maps, words = random_maps(side=1)
    distances = word_distances(maps, words)
    torch.testing.assert_close(bag_of_words(distances, 2.0, "max"), bag_of_words(distances, 2.0, "mean"))


def test_the_loss_is_zero_where_the_prediction_is_the_bag():
    maps, words = random_maps()
    bags = bag_of_words(word_distances(maps, words), 0.5)
    logits = bags.log().expand(2, -1, -1)
    assert bag_divergence(logits + 3.0, bags).item() == pytest.approx(0, abs=1e-12)
    hard = bag_of_words(word_distances(maps, words), 1e9)  # words without a share cost nothing
    assert math.isfinite(bag_divergence(logits, hard).item())
    uniform = bag_divergence(torch.zeros(2, 3, 7, dtype=torch.float64), bags)
    entropy = -(bags * bags.log()).sum(1).mean()
    torch.testing.assert_close(uniform, math.log(7) - entropy)


def test_perplexity_counts_the_words_in_use():
    assert perplexity(torch.full((2, 8), 1 / 8)).tolist() == pytest.approx([8, 8], rel=1e-3)
    assert perplexity(torch.tensor([0.0, 1.0, 0.0])).item() == pytest.approx(1, rel=1e-4)


# --- the method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("head", ["dynamic", "linear"])
def test_terms_are_those_of_the_parts(name, head):
    method, pixels = build(name, head=head, kappa=3.0, inv_delta=2.0), views()
    words = method.vocabularies[0].columns.T
    maps = method.teacher.module.forward_dense(pixels["full"]).detach()
    maps = maps[:, :, 1:-1, 1:-1] if maps.shape[-1] >= 5 else maps
    distances = word_distances(maps, words)
    mu = 0.99 * 0.5 + 0.01 * distances.amin(-1).mean()
    bags = bag_of_words(distances, 2.0 / mu)
    crops = torch.stack([method.backbone(torch.cat([pixels["crop1"], pixels["crop2"]]))]).unflatten(1, (2, 6))[0]
    weights = F.normalize(method.heads[0](F.normalize(words, dim=1)), dim=1) if head == "dynamic" else None

    def logits(f):
        return method.heads[0](f) if weights is None else 3.0 * f @ weights.T

    patch = method.backbone(pixels["patch1"])[None]
    expected = {"crops": bag_divergence(logits(crops), bags), "patches": bag_divergence(logits(patch), bags)}
    torch.testing.assert_close(method(pixels), expected)


def test_permuting_the_vocabulary_changes_nothing():
    plain, method, order = build(), build(), torch.randperm(12)
    method.vocabularies[0].columns = method.vocabularies[0].columns[:, order]
    torch.testing.assert_close(method(views()), plain(views()))
    torch.testing.assert_close(method.watch, plain.watch)


def test_the_vocabulary_is_replaced_in_k_over_b_steps():
    method = build(words=12)
    before = method.vocabularies[0].columns.clone()
    step(method, draws=Draws(index=range(6)))
    half = method.vocabularies[0]
    assert int(half.oldest) == 6 and torch.equal(half.columns[:, 6:], before[:, 6:])
    step(method, draws=Draws(epoch=1, index=range(6)))
    assert int(method.vocabularies[0].oldest) == 0
    assert not bool((method.vocabularies[0].columns == before).all(0).any())


def test_words_are_places_of_the_copys_maps():
    draws = Draws(index=range(6))
    for update in ("place", "average"):
        method = build(update=update)
        maps = method.teacher.module.forward_dense(views()["full"]).detach()
        places = (maps if update == "place" else F.avg_pool2d(maps, 3, 1)).flatten(2)
        chosen = draws.integers("place1", places.shape[2])
        step(method, draws=draws)
        expected = torch.stack([places[i, :, k] for i, k in enumerate(chosen.tolist())])
        torch.testing.assert_close(method.vocabularies[0].columns[:, :6].T, expected)


def test_mu_moves_with_the_step_and_not_before():
    method = build(mu_momentum=0.9)
    distances = word_distances(method.encode(views())["map1"], method.vocabularies[0].columns.T)
    method(views())["crops"].backward()
    assert method.mu.item() == 0.5
    method.after_step()
    assert method.mu.item() == pytest.approx(0.9 * 0.5 + 0.1 * distances.amin(-1).mean().item(), rel=1e-5)


def test_nothing_is_kept_outside_training():
    method = build()
    state = {k: v.clone() for k, v in method.state_dict().items() if "vocabularies" in k or k == "mu"}
    with torch.no_grad():
        method(views())
    method.eval()(views())
    method.after_step()
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_copy_follows(momentum):
    method = build(momentum=momentum)
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    old = [p.clone() for p in method.teacher.parameters()]
    method.after_step()
    for o, s, t in zip(old, method.backbone.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(t, momentum * o + (1 - momentum) * s)


def test_the_copy_uses_the_statistics_of_its_own_batch():
    method = build()
    first = method.encode(views())["map1"]
    other = {**views(), "full": torch.cat([views()["full"][:1], torch.rand(5, 3, 32, 32)])}
    assert not torch.allclose(method.encode(other)["map1"][0], first[0])
    assert not first.requires_grad


def test_two_levels_are_the_last_two_stages():
    method, pixels = build(levels=2), views()
    encoded = method.encode(pixels)
    assert encoded["map1"].shape[1:] == (128, 4, 4) and encoded["map2"].shape[1:] == (64, 6, 6)  # 8 x 8 less a border
    torch.testing.assert_close(encoded["map1"], method.teacher.module.forward_dense(pixels["full"]).detach())
    step(method, pixels)
    assert method.mu.shape == (2,) and {"vocabulary_perplexity", "vocabulary_perplexity2"} <= set(method.watch)
    assert int(method.vocabularies[1].filled) == 6
    with pytest.raises(UserError, match="last 2 stages of vit_nano"):
        build("vit_nano", levels=2)
    timm = backbone("resnet18", image_size=32)
    assert [m.shape[1] for m in OBoW(timm, OBoWConfig(words=8, levels=2))._maps(pixels["full"])] == [512, 256]


def test_the_border_is_left_out_where_places_remain():
    large, small = build(options={"stem_stride": 1}), build()
    assert large.encode(views())["map1"].shape[2:] == (6, 6)
    assert small.encode(views())["map1"].shape[2:] == (4, 4)


def test_building_leaves_the_copy_as_the_backbone():
    method = build()
    for (name, a), b in zip(
        method.backbone.state_dict().items(), method.teacher.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_every_parameter_learns_and_only_the_student():
    method = build()
    sum(method(views()).values()).backward()
    missing = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is None}
    assert missing == {"teacher"}


def test_equal_pictures_give_finite_gradients():
    method = build()
    pixels = {name: torch.full_like(v, 0.5) for name, v in views().items()}
    step(method, pixels)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_queue_and_copy_are_part_of_the_state():
    method, other = build(), build()
    step(method)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(views()), method(views()))


# --- views ----------------------------------------------------------------------------------------------------------
def test_views_have_their_sizes():
    images = torch.randint(0, 256, (4, 3, 40, 44), dtype=torch.uint8)
    made = build(patches=3).views({"image": images}, Draws(index=range(4)))
    sizes = {"full": 32, "crop1": 24, "crop2": 24, "patch1": 16, "patch2": 16, "patch3": 16}
    assert {k: v.shape for k, v in made.items()} == {k: (4, 3, s, s) for k, s in sizes.items()}
    large = OBoW(backbone("resnet8", image_size=224), OBoWConfig(image_size=224, words=4))
    assert (large.crop_size, large.patch_source, large.patch_size, large.patch_jitter) == (160, 256, 96, 24)


def test_the_picture_of_the_copy_is_only_mirrored():
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    full = build().views({"image": images}, Draws(index=range(16)))["full"]
    plain = clean(images, 32)
    mirrored = [bool(torch.equal(f, p.flip(-1))) for f, p in zip(full, plain, strict=True)]
    assert all(m or torch.equal(f, p) for m, f, p in zip(mirrored, full, plain, strict=True))
    assert 0 < sum(mirrored) < 16


def test_patches_begin_on_the_grid():
    starts = grid_starts(Draws(index=range(200)), 256, 96, 24, 5)
    assert starts.shape == (200, 5, 2) and int(starts.max()) + 96 <= 256
    cells = starts // 68
    moved = starts - 68 * cells
    assert set(cells.flatten().tolist()) == {0, 1, 2} and set(moved.flatten().tolist()) == set(range(25))
    for picture in cells.tolist():
        assert len({tuple(cell) for cell in picture}) == 5


def test_patches_are_cut_where_they_begin():
    pixels, starts = torch.rand(3, 2, 20, 20), torch.tensor([[[0, 3], [5, 1]], [[2, 2], [9, 12]], [[12, 0], [1, 1]]])
    patches = cut(pixels, starts, 8)
    assert patches.shape == (2, 3, 2, 8, 8)
    for b in range(3):
        for i, (top, left) in enumerate(starts[b].tolist()):
            assert torch.equal(patches[i, b], pixels[b, :, top : top + 8, left : left + 8])


def test_settings_that_cannot_be_are_named():
    with pytest.raises(UserError, match="crops=0 and patches=0"):
        build(crops=0, patches=0)
    with pytest.raises(UserError, match="patches=10"):
        build(patches=10)
    with pytest.raises(UserError, match="crop_scale"):
        build(crop_scale=(0.6, 0.1))
    with pytest.raises(UserError, match="do not fit"):
        grid_starts(Draws(index=range(2)), 20, 16, 8, 2)
