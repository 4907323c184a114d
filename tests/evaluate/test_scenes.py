"""The protocol against masks of objects: hand-made decompositions, controls, and a run from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import eyespot
from eyespot.data.objects import ObjectSource
from eyespot.errors import UserError
from eyespot.evaluate import records, scenes
from eyespot.evaluate.scenes import Tally, colour_clusters

COMMON = {"image_size": 16, "epochs": 1, "batch_size": 8, "workers": 0}
SETTINGS = {"slots": 3, "decoder_width": 8, "decoder_start": 4}


def batch(n: int = 4):
    """Masks of scenes and their complete shapes."""
    source = ObjectSource(count=n)
    return torch.stack([source.mask(i) for i in range(n)]), [source.layers(i) for i in range(n)]


def perfect(true, slots: int = 4):
    return torch.nn.functional.one_hot(true, slots).permute(0, 3, 1, 2).float()


def everywhere(true):
    return torch.ones_like(true, dtype=torch.bool)


def test_a_perfect_decomposition_has_everything_right():
    true, layers = batch()
    tally = Tally(4, background=0, ordered=True)
    tally.add(true, everywhere(true), perfect(true), layers)
    found = tally.outcome()
    assert set(found) == {"ARI_O", "AMI_O", "ARI_A", "AMI_A", "OCA", "IoU", "F1", "OOA"}
    assert all(value == pytest.approx(100) for value in found.values())


def test_the_reverse_order_is_all_wrong():
    true, layers = batch(8)
    tally = Tally(4, background=0, ordered=True)
    backwards = perfect(true)[:, [0, 3, 2, 1]]
    tally.add(true, everywhere(true), backwards, layers)
    assert tally.outcome()["OOA"] == 0 and tally.outcome()["ARI_O"] == pytest.approx(100)


def test_one_part_has_nothing_right():
    true, layers = batch()
    tally = Tally(1)
    tally.add(true, everywhere(true), torch.ones(4, 1, *true.shape[1:]), layers)
    found = tally.outcome()
    assert found["ARI_O"] == found["ARI_A"] == found["OCA"] == 0 and "OOA" not in found
    areas = [[(t == k).sum() / t.numel() for k in range(1, int(t.max()) + 1)] for t in true]
    assert found["IoU"] == pytest.approx(100 * float(sum(max(a) for a in areas)) / sum(map(len, areas)), rel=1e-5)


def test_a_merged_pair_is_half_right_and_the_background_slot_never_wins_objects():
    true = torch.zeros(1, 4, 4, dtype=torch.int64)
    true[0, :2, :2], true[0, 2:, 2:] = 1, 2
    tally = Tally(3)
    tally.add(true, everywhere(true), perfect(true.clamp_max(1), 3), None)
    assert tally.outcome()["ARI_O"] == 0 and tally.outcome()["OCA"] == 0
    masks = perfect(true, 3)
    masks[:, 0] = 5.0
    known, unknown = Tally(3, background=0), Tally(3)
    for each in (known, unknown):
        each.add(true, everywhere(true), masks, None)
    assert known.outcome()["ARI_O"] == 100 and unknown.outcome()["ARI_O"] == 0


def test_ignored_pixels_do_not_count():
    true, _ = batch(2)
    wrong = perfect(true)
    wrong[:, :, :20] = 0.0
    counted = everywhere(true)
    counted[:, :20] = False
    tally = Tally(4, background=0)
    tally.add(torch.where(counted, true, 0), counted, wrong + 1e-6, None)
    assert tally.outcome()["ARI_A"] == pytest.approx(100)


def test_pictures_without_objects_are_left_out_of_their_index():
    true, _ = batch(3)
    true[1] = 0
    tally = Tally(4)
    tally.add(true, everywhere(true), perfect(true), None)
    assert tally.outcome()["ARI_O"] == pytest.approx(100)


def test_clusters_of_colours():
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[0, 0, :2], pixels[0, 1, 2:, 2:] = 1.0, 1.0
    masks = colour_clusters(pixels, 3)
    assert torch.equal(masks.sum(1), torch.ones(2, 4, 4))
    parts = masks[0].argmax(0)
    assert len({int(parts[0, 0]), int(parts[3, 3]), int(parts[3, 0])}) == 3 and len(parts[:2].unique()) == 1
    assert len(masks[1].argmax(0).unique()) == 1  # one colour is one cluster


# --- from end to end ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes as PNG files, with their masks."""
    root, source = tmp_path_factory.mktemp("objects"), ObjectSource("test", count=12)
    for name in ("image", "mask"):
        (root / name).mkdir()
    for i in range(12):
        Image.fromarray(source.load(i).permute(1, 2, 0).numpy()).save(root / "image" / f"{i:02d}.png")
        Image.fromarray(source.mask(i).numpy().astype(np.uint8)).save(root / "mask" / f"{i:02d}.png")
    return root


@pytest.mark.parametrize(("name", "net"), [("slot_attention", "slot_conv_small"), ("monet", "monet_conv")])
def test_a_run_is_measured_beside_its_floor(name, net, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PICTURES", 10)
    run = eyespot.pretrain(name, data=folder, out=tmp_path / "a", backbone=net, set=SETTINGS, **COMMON)
    assert {"views.png", "segments.png", "parts.png"} <= {p.name for p in (run.path / "pictures").iterdir()}
    result = eyespot.evaluate(run, folder, protocol="scenes", workers=0)
    assert json.loads(json.dumps(result)) == result
    metrics = {"ARI_O", "AMI_O", "ARI_A", "AMI_A", "OCA", "IoU", "F1", "MSE"}
    assert metrics == set(result["floor"]) <= set(result) and result["n_test"] == 10
    assert next(iter(records.metrics_of(result))) == "ARI_O"
    config = result["config"]
    assert config["starts"] == (5 if name == "slot_attention" else 1) and config["slots"] == 3
    assert config["controls"]["one_part"]["ARI_O"] == 0 < config["controls"]["colour_kmeans"]["ARI_O"]
    again = eyespot.evaluate(run, folder, protocol="scenes", workers=0, batch_size=3, floor=False)
    assert again["floor"] is None
    assert {k: again[k] for k in metrics} == pytest.approx({k: result[k] for k in metrics}, rel=1e-4, abs=1e-4)
    kept = records.read(run.path)
    assert len(kept) == 1 and kept[0].settings == {"image_size": 16, "ignore": [255]}
    rows = eyespot.compare([run], data=folder, protocol="scenes")
    assert rows[0]["results"][0]["metrics"]["ARI_O"] == pytest.approx(again["ARI_O"])


def test_mistakes_are_told_in_one_sentence(folder, tmp_path):
    other = eyespot.pretrain("simclr", data=folder, out=tmp_path / "b", backbone="resnet8", **COMMON)
    with pytest.raises(UserError, match="SimCLR takes no pictures apart; use a run of slot_attention or monet"):
        eyespot.evaluate(other, folder, protocol="scenes", workers=0)
    with pytest.raises(UserError, match="looks at a trained method, which 'resnet8' is not"):
        eyespot.evaluate("resnet8", folder, protocol="scenes", workers=0)
    run = eyespot.pretrain(
        "slot_attention", data=folder, out=tmp_path / "c", backbone="slot_conv_small", set=SETTINGS, **COMMON
    )
    with pytest.raises(UserError, match=r"gives pictures of 16 px, not 32; leave the size out"):
        eyespot.evaluate(run, folder, protocol="scenes", image_size=32, workers=0)
