"""Protocols against masks: geometry, drawing, each protocol by a slow version, and from end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import eyespot
from eyespot.data.loader import Data
from eyespot.data.masks import open_masked
from eyespot.errors import UserError
from eyespot.evaluate import dense, patch_knn, pixel_linear, records, segmentation, slots
from eyespot.evaluate.dense import Drawer, Drawn, Numbering, Side, at_pixels, cell_of_pixel, count_into, predictions
from eyespot.nets.backbones import backbone, save_backbone
from eyespot.views.image import clean, clean_masks

SIZE = 16
QUICK = {"workers": 0}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer pixels and cells are drawn: these pictures are small and few."""
    monkeypatch.setattr(dense, "PIXELS", 600)
    monkeypatch.setattr(dense, "CELLS", 120)


MASKED = ("pixel_linear", "patch_knn", "segmentation")


def scene(rng, height=24, width=32):
    """A bright and a dark half of random place: value 4 where bright, 7 where dark, 255 at the border between."""
    edge = int(rng.integers(8, width - 8))
    mask = np.full((height, width), 7, np.uint8)
    mask[:, :edge] = 4
    picture = np.where(mask == 4, 200, 40)[:, :, None] + rng.normal(0, 12, (height, width, 3))
    mask[:, edge] = 255
    return picture.clip(0, 255).astype(np.uint8), mask


def write_scenes(root, count, seed):
    rng = np.random.default_rng(seed)
    for folder in ("image", "mask"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        picture, mask = scene(rng)
        Image.fromarray(picture).save(root / "image" / f"{seed}-{i}.png")
        Image.fromarray(mask).save(root / "mask" / f"{seed}-{i}.png")
    return root


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return write_scenes(root / "train", 12, 0), write_scenes(root / "test", 5, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    save_backbone(backbone("resnet8", image_size=SIZE), folder)
    (folder / "config.json").write_text(json.dumps({"method": "simclr", "kind": "method"}))
    return folder


def feature_map(net, pixels):
    return net.forward_dense(pixels)


# --- geometry -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(16, 16), (24, 32), (33, 20), (7, 9), (200, 16)])
def test_masks_follow_their_pictures(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    board = ((rows // 4 + columns // 4) % 2).astype(np.uint8)
    pixels = clean([torch.from_numpy(board * 255)[None]], SIZE, crop_ratio=1.0)[0, 0]
    mask = clean_masks([torch.from_numpy(board.astype(np.int64))], SIZE)[0]
    sure = (pixels - 0.5).abs() > 0.45
    assert sure.any() or min(shape) < SIZE
    assert torch.equal(mask[sure], (pixels[sure] > 0.5).long())


@pytest.mark.parametrize(("size", "h", "w"), [(16, 4, 4), (15, 4, 3), (8, 8, 8)])
def test_a_feature_at_a_pixel_is_that_of_bilinear_upsampling(size, h, w):
    found = torch.randn(5, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = torch.arange(size * size)
    large = F.interpolate(found[None], (size, size), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(at_pixels(found, pixels, size), large.flatten(1).T, atol=1e-12)
    cells = cell_of_pixel(size, h, w)
    near = F.interpolate(torch.arange(h * w).view(1, 1, h, w).double(), (size, size), mode="nearest-exact")
    assert torch.equal(cells, near[0, 0].long())


def test_numbers_in_order_of_values_and_new_ones_after_them():
    numbering = Numbering([9])
    first = numbering(torch.tensor([[5, 9], [2, 5]]))
    moved = numbering.sort()
    assert moved[first[first >= 0]].tolist() == [1, 0, 1] and first[0, 1] == -1
    assert numbering(torch.tensor([1, 2, 5, 9])).tolist() == [2, 0, 1, -1]
    assert numbering.names({5: "five"}) == ["2", "five", "1"]


# --- drawing --------------------------------------------------------------------------------------------------
def test_pixels_and_cells_are_drawn_by_seed_and_picture(monkeypatch):
    monkeypatch.setattr(dense, "PIXELS", 12)
    monkeypatch.setattr(dense, "CELLS", 9)
    maps = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = torch.tensor([3, 1, 255])[torch.randint(0, 3, (3, 8, 8), generator=torch.Generator().manual_seed(2))]
    masks[0][masks[0] == 1] = 3  # so that the larger value is met first when pictures come one by one

    def drawn(batches):
        drawer, numbering = Drawer(3, 1, seed=7), Numbering([255])
        for rows in batches:
            numbers = numbering(masks[rows])
            drawer.add(np.array(rows), numbers, len(numbering), [maps[rows]])
        return drawer.finish(numbering)[0]

    whole, parts = drawn([[0, 1, 2]]), drawn([[0], [1, 2]])
    assert whole.pixels.shape == (12, 4) and whole.cells.shape == (9, 4) and whole.classes == 2
    for name in ("pixels", "labels", "pictures", "cells", "shares"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    assert whole.pictures.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    large = F.interpolate(maps, (8, 8), mode="bilinear", align_corners=False)
    for feature, label, picture in zip(whole.pixels, whole.labels, whole.pictures.tolist(), strict=True):
        places = (large[picture].flatten(1).T - feature).norm(dim=1) < 1e-9  # several at the border
        assert (1, 3)[int(label)] in masks[picture].flatten()[places].tolist()
    for k, (cell, share) in enumerate(zip(whole.cells, whole.shares, strict=True)):
        place = int((maps[k // 3].flatten(1).T - cell).norm(dim=1).argmin())
        block = masks[k // 3].view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)[place]
        counts = torch.tensor([(block == 1).sum(), (block == 3).sum()]).double()
        assert torch.allclose(share, counts / counts.sum())


def test_counting_by_a_loop(monkeypatch):
    monkeypatch.setattr(dense, "BLOCK", 1)
    scores = torch.randn(3, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    predicted = predictions(scores, 6)
    whole = F.interpolate(scores, (6, 6), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(predicted, whole)
    numbers = torch.randint(-1, 4, (3, 6, 6), generator=torch.Generator().manual_seed(1))
    counts = count_into(torch.ones(2, 5, dtype=torch.int64), numbers, predicted, 4)
    expected = torch.zeros(4, 5, dtype=torch.int64)
    expected[:2] = 1
    for t, p in zip(numbers.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t >= 0:
            expected[t, p] += 1
    assert torch.equal(counts, expected)


# --- the protocols --------------------------------------------------------------------------------------------
def cloud(n=300, d=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = 3 * torch.randn(classes, d, generator=torch.Generator().manual_seed(42), dtype=torch.float64)
    x = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return Drawn(x, labels, torch.arange(n) // 10, x, F.one_hot(labels, classes).double(), classes)


@pytest.mark.golden
def test_a_linear_layer_on_a_map_as_recorded(golden):
    arrays, params = golden("dinov2_radiology__probe_pieces")
    a = {
        k: torch.from_numpy(np.asarray(arrays[k]))
        for k in ("linear_input_n1_avg0", "patch_3", "lin_w", "lin_b", "lin_out")
    }
    side = params["image"] // params["patch"]
    found = a["patch_3"].transpose(1, 2).unflatten(2, (side, side))
    scores = pixel_linear.logits(found, a["lin_w"][:, :, 0, 0], a["lin_b"])
    size = params["image"]
    large = F.interpolate(scores, (size, size), mode="bilinear", align_corners=False)
    assert torch.allclose(large, a["lin_out"], rtol=1e-4, atol=1e-5)
    assert torch.equal(predictions(scores, size), a["lin_out"].argmax(1))


def test_linear_layer_is_the_regularised_optimum():
    from sklearn.linear_model import LogisticRegression

    drawn = cloud()
    fitted = pixel_linear.fit(drawn, seed=0)
    x = drawn.pixels.T[None, :, :, None]
    scores = fitted.scores(x)[0, :, :, 0].T
    mean, std = drawn.pixels.mean(0), drawn.pixels.std(0, correction=0)
    strength = fitted.config["strength"]
    slow = LogisticRegression(C=1 / (len(drawn.labels) * strength), max_iter=5000, tol=1e-9)
    z = ((drawn.pixels - mean) / std).numpy()
    slow.fit(z, drawn.labels.numpy())
    assert torch.allclose(scores.softmax(1), torch.from_numpy(slow.predict_proba(z)), atol=2e-3)
    assert strength in pixel_linear.STRENGTHS


def test_strength_is_chosen_on_held_out_pictures():
    drawn = cloud()
    held = torch.zeros(len(drawn.labels), dtype=torch.bool)
    assert pixel_linear.choose_strength(drawn.pixels, drawn.labels, 3, held) == 0.001  # nothing to choose on
    noise = torch.randn(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(4))
    held = torch.arange(60) >= 30
    assert pixel_linear.choose_strength(noise, labels, 3, held) in pixel_linear.STRENGTHS


def test_patches_vote_with_their_shares():
    drawn = cloud(n=40)
    drawn.shares = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.randn(2, 6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scores = patch_knn.fit(drawn).scores(found)
    for b, y, x in ((0, 0, 0), (1, 2, 1), (0, 1, 1)):
        query = found[b, :, y, x]
        cosines = [float(query @ cell / query.norm() / cell.norm()) for cell in drawn.cells]
        nearest = sorted(range(40), key=lambda k: -cosines[k])[: patch_knn.K]
        weights = [np.exp(cosines[k] / patch_knn.TEMPERATURE) for k in nearest]
        expected = np.array(weights) @ drawn.shares[nearest].numpy()
        assert scores[b, :, y, x].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_clusters_find_classes_that_are_apart():
    drawn = cloud()
    drawn.cells = F.normalize(drawn.cells, dim=1) + 0.0
    fitted = segmentation.fit(drawn, seed=0)
    found = drawn.pixels.T[None, :, :, None]
    predicted = fitted.scores(found)[0, :, :, 0].argmax(0)
    counts = count_into(torch.zeros(3, 3, dtype=torch.int64), drawn.labels, predicted, 3)
    metrics, _ = fitted.outcome(counts, ["a", "b", "c"])
    assert metrics["accuracy"] > 90 and metrics["mIoU"] > 80
    unit, centres = F.normalize(drawn.pixels, dim=1), torch.randn(4, 6, dtype=torch.float64)
    slow = torch.cdist(unit, centres).argmin(1)
    assert torch.equal(segmentation.nearness(found, centres)[0, :, :, 0].argmax(0), slow)


def test_groups_are_named_one_by_one_and_by_majority():
    memberships = F.one_hot(torch.tensor([0, 0, 1, 2, 2, 4]), 5).double()
    labels = torch.tensor([1, 1, 0, 0, 0, 1])
    assert slots.majority(memberships, labels, 2).tolist() == [1, 0, 0, -1, 1]
    drawn = Drawn(memberships, labels, labels, memberships, memberships, 2)
    counts = torch.tensor([[0, 3, 4, 1, 0], [6, 0, 0, 0, 2]])
    metrics, used = slots.fit(drawn).outcome(counts, ["a", "b"])
    assert metrics["accuracy"] == pytest.approx(100 * 10 / 16)  # groups 2 and 0
    assert metrics["majority_accuracy"] == pytest.approx(100 * 15 / 16)
    assert used["groups"] == 5 and used["classes"] == 2


# --- from end to end ------------------------------------------------------------------------------------------
def test_results_against_masks(run, sides):
    results = eyespot.evaluate(run, *sides, protocol=MASKED, **QUICK)
    for name, result in zip(MASKED, results, strict=True):
        assert json.loads(json.dumps(result)) == result
        assert (result["protocol"], result["version"], result["classes"]) == (name, 1, 2)
        assert (result["n_train"], result["n_test"]) == (12, 5)
        assert set(result["floor"]) == {"mIoU", "accuracy"}
        assert result["config"]["ignore"] == [255] and set(result["config"]["iou"]) == {"4", "7"}
        assert 0 <= result["mIoU"] <= 100
    assert results[0]["mIoU"] > 80  # bright and dark halves are easy
    kept = records.read(run)
    assert sorted(r.result["protocol"] for r in kept) == sorted(MASKED)
    assert len({r.key[2] for r in kept}) == 1 and kept[0].settings == {"image_size": SIZE}
    alone = eyespot.evaluate(run, *sides, protocol="patch_knn", batch_size=3, **QUICK)
    assert alone["mIoU"] == results[1]["mIoU"]  # other batches, the same draws


def test_one_pass_for_all_protocols_and_networks(run, sides, monkeypatch):
    passes, stream = [], Side.stream

    def counted(self):
        passes.append(len(self.rows))
        return stream(self)

    monkeypatch.setattr(Side, "stream", counted)
    eyespot.evaluate(run, *sides, protocol=MASKED, floor_seeds=2, **QUICK)
    assert passes == [12, 5]


def test_numbers_are_those_of_the_parts(run, sides):
    result = eyespot.evaluate(run, *sides, protocol="pixel_linear", floor=False, **QUICK)
    net = eyespot.nets.backbones.load_backbone(run).eval()
    numbering = Numbering([255])
    train, test = (Data(open_masked(s), workers=0, cache_bytes=0) for s in sides)
    side = Side(train, np.arange(12), SIZE, 256, torch.device("cpu"))
    with torch.no_grad():
        drawn, _ = dense.draw(side, [net], feature_map, numbering, 0)
    fitted = pixel_linear.fit(drawn[0], seed=0)
    hits = total = 0
    for i in range(5):
        pixels = clean(test.batch([i])["image"], SIZE, crop_ratio=1.0)
        mask = clean_masks([open_masked(sides[1]).mask(i)], SIZE)
        with torch.no_grad():
            large = F.interpolate(fitted.scores(net.forward_dense(pixels)), (SIZE, SIZE), mode="bilinear")
        predicted = torch.tensor([4, 7])[large.argmax(1)]
        hits += int((predicted == mask)[mask != 255].sum())
        total += int((mask != 255).sum())
    assert result["accuracy"] == pytest.approx(100 * hits / total)


def test_a_fifth_of_the_pictures_is_held_out(run, sides):
    result = eyespot.evaluate(run, sides[0], protocol="patch_knn", floor=False, **QUICK)
    assert (result["n_train"], result["n_test"]) == (10, 2)
    assert "2 of 12 pictures held out" in result["config"]["split"]
    same = eyespot.evaluate(run, sides[0], sides[0], protocol="patch_knn", floor=False, **QUICK)
    assert same["config"]["warning"] == "12 of the 12 test pictures are training pictures too"


def test_ignored_values(run, sides):
    every = eyespot.evaluate(run, *sides, protocol="patch_knn", ignore="none", floor=False, **QUICK)
    assert every["classes"] == 3 and every["config"]["ignore"] == []
    default = eyespot.evaluate(run, *sides, protocol="patch_knn", floor=False, **QUICK)
    assert every["config"]["data_id"] != default["config"]["data_id"]
    with pytest.raises(UserError, match=r"fewer than two classes \(values 4; ignored 7, 255\); say with --ignore"):
        eyespot.evaluate(run, *sides, protocol="patch_knn", ignore="7,255", **QUICK)
    with pytest.raises(UserError, match=r"--ignore cannot be 'x'"):
        eyespot.evaluate(run, *sides, protocol="patch_knn", ignore="x", **QUICK)


def test_test_classes_that_no_training_mask_has_count_as_missed(run, sides, tmp_path):
    root = write_scenes(tmp_path / "more", 5, 1)
    for file in sorted((root / "mask").iterdir())[:2]:
        mask = np.array(Image.open(file))
        mask[:12] = 9
        Image.fromarray(mask).save(file)
    result = eyespot.evaluate(run, sides[0], root, protocol=MASKED, floor=False, **QUICK)
    for one in result:
        assert one["config"]["iou"]["9"] == 0 and "1 classes of the test masks" in one["config"]["new_classes"]
        assert one["classes"] == 2


def test_bad_masks_are_left_out_and_too_many_stop(run, sides, tmp_path):
    root = write_scenes(tmp_path / "bad", 5, 1)
    files = sorted((root / "mask").iterdir())
    Image.new("L", (3, 3)).save(files[0])
    with pytest.raises(UserError, match=r"1 of 5 masks of .*its mask has 3x3 pixels and the picture 32x24"):
        eyespot.evaluate(run, sides[0], root, protocol="patch_knn", **QUICK)
    result = eyespot.evaluate(run, sides[0], root, protocol="patch_knn", floor=False, max_bad=0.5, **QUICK)
    assert (result["n_test"], result["config"]["bad_files"]) == (4, 1)


def test_mistakes_are_told_in_one_sentence(run, sides, folders, tmp_path):
    with pytest.raises(UserError, match=r"has no masks to evaluate with; give a folder with image/ beside mask/"):
        eyespot.evaluate(run, folders[0], protocol="pixel_linear", **QUICK)
    with pytest.raises(UserError, match=r"Protocol slots looks at a trained method, which 'resnet8' is not"):
        eyespot.evaluate("resnet8", *sides, protocol="slots", image_size=SIZE, **QUICK)
    flat = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    with pytest.raises(UserError, match="one vector a picture and no feature map"):
        eyespot.evaluate(flat, *sides, protocol="pixel_linear", image_size=SIZE, **QUICK)


def test_slots_of_a_run(sides, tmp_path):
    common = {"backbone": "resnet8", "image_size": SIZE, "epochs": 1, "batch_size": 4, "workers": 0}
    run = eyespot.pretrain(
        "slotcon", data=sides[0], out=tmp_path / "a", set={"prototypes": 6, "hidden": 16, "out": 8}, **common
    )
    result = eyespot.evaluate(run, *sides, protocol="slots,segmentation", **QUICK)[0]
    assert set(result["floor"]) == {"mIoU", "accuracy", "majority_mIoU", "majority_accuracy"}
    assert result["majority_accuracy"] >= 30 and result["config"]["groups"] == 6
    other = eyespot.pretrain("simclr", data=sides[0], out=tmp_path / "b", **common)
    with pytest.raises(UserError, match=r"SimCLR has no maps of its own to score; use --protocol segmentation"):
        eyespot.evaluate(other, *sides, protocol="slots", **QUICK)
