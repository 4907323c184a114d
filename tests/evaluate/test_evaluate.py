"""`eyespot.evaluate` from end to end on small pictures."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import eyespot
from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.errors import UserError
from eyespot.evaluate import knn, samples
from eyespot.evaluate.features import extract
from eyespot.evaluate.models import random_twin
from eyespot.nets.backbones import backbone, save_backbone

KEYS = ["protocol", "version", "top1", "top5", "floor", "n_train", "n_test", "classes", "seconds", "run", "config"]
QUICK = {"workers": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a saved backbone, as a run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    save_backbone(backbone("resnet8", image_size=16), folder)
    return folder


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_result_of_a_run(run, folders, protocol):
    result = eyespot.evaluate(run, folders[0], folders[1], protocol, **QUICK)
    assert list(result) == KEYS
    assert json.loads(json.dumps(result)) == result
    assert (result["protocol"], result["version"]) == (protocol, 1)
    assert (result["n_train"], result["n_test"], result["classes"]) == (60, 24, 3)
    assert 0 <= result["top1"] <= result["top5"] == 100
    assert set(result["floor"]) == {"top1", "top5"}
    assert result["run"] == str(run) and result["config"]["weights"] == "trained"
    assert result["seconds"] > 0


def test_numbers_are_the_protocol_on_the_features(run, folders):
    result = eyespot.evaluate(str(run), folders[0], folders[1], **QUICK)
    net = eyespot.nets.backbones.load_backbone(run)
    train, test = (Data(open_source(f), workers=0) for f in folders)
    for name, weights in (("model", net), ("floor", random_twin(net, 0))):
        (x, y), (tx, ty) = extract(weights, train), extract(weights, test)
        expected = knn.run(x, torch.from_numpy(y), tx, torch.from_numpy(ty), 3)[0]
        assert {k: (result if name == "model" else result["floor"])[k] for k in expected} == expected


def test_a_named_backbone_is_its_own_floor(folders):
    result = eyespot.evaluate("resnet8", folders[0], folders[1], image_size=16, **QUICK)
    assert result["floor"] == {k: result[k] for k in ("top1", "top5")}
    assert result["config"]["floor"] == {"weights": "the model's own", "seeds": [0]}
    again = eyespot.evaluate("resnet8", folders[0], folders[1], image_size=16, **QUICK)
    assert again["top1"] == result["top1"]
    several = eyespot.evaluate("resnet8", folders[0], folders[1], image_size=16, floor_seeds=3, **QUICK)
    assert several["config"]["floor"]["seeds"] == [0, 1, 2]
    alone = eyespot.evaluate("resnet8", folders[0], folders[1], image_size=16, floor=False, **QUICK)
    assert alone["floor"] is None and alone["top1"] == result["top1"]


def test_models_of_every_kind(run, folders):
    results = []
    holder = type("Run", (), {"path": run})()
    net = eyespot.nets.backbones.load_backbone(run)
    method = torch.nn.Module()
    method.backbone = net
    for model in (run, str(run), holder, net, method):
        results.append(eyespot.evaluate(model, folders[0], folders[1], floor=False, **QUICK)["top1"])
    assert len(set(results)) == 1


def test_size_of_a_named_backbone_follows_the_pictures(folders):
    result = eyespot.evaluate("resnet8", folders[0], floor=False, **QUICK)
    assert result["config"]["image_size"] == 16


def test_a_fifth_of_every_class_is_held_out(run, folders):
    result = eyespot.evaluate(run, folders[0], **QUICK)
    assert (result["n_train"], result["n_test"]) == (48, 12)
    assert "12 of 60" in result["config"]["split"] and result["config"]["test_data"] is None


def test_classes_are_matched_by_name(tmp_path, run, folders, write):
    part = write(tmp_path / "part", 6, seed=3, classes=("checks", "down"))
    whole = write(tmp_path / "whole", 6, seed=4)
    shutil.copytree(part, tmp_path / "same", dirs_exist_ok=True)
    shutil.copytree(whole / "across", tmp_path / "same" / "across")
    one = eyespot.evaluate(run, folders[0], part, floor=False, **QUICK)
    data = Data(open_source(part), workers=0)
    train = Data(open_source(folders[0]), workers=0)
    net = eyespot.nets.backbones.load_backbone(run)
    x, y = extract(net, train)
    tx, ty = extract(net, data)
    by_name = torch.from_numpy(ty) + 1  # checks is 1 and down is 2 among the training classes
    assert one["top1"] == knn.run(x, torch.from_numpy(y), tx, by_name, 3)[0]["top1"]


def test_classes_that_were_not_trained(tmp_path, run, folders, write):
    two = write(tmp_path / "two", 6, classes=("checks", "down"))
    with pytest.raises(UserError, match=r"1 class that .* has no samples of \('across'\)"):
        eyespot.evaluate(run, two, folders[1], **QUICK)
    source = open_source(two)
    source.labels = np.zeros(len(source), np.int64)
    with pytest.raises(UserError, match=r"one class only \(checks\)"):
        eyespot.evaluate(run, Data(source, workers=0))


def test_mistakes_are_told_in_one_sentence(tmp_path, run, folders, write):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(folders[0].rglob("*.png"))[:6]):
        shutil.copy(file, flat / f"{i}.png")
    cases = [
        ({"data": flat}, "no labels to evaluate with"),
        ({"data": folders[0], "test_data": flat}, "no labels to evaluate with"),
        ({"data": folders[0], "protocol": "knm"}, "no protocol 'knm'.*knn"),
        ({"data": folders[0], "channels": 1}, "takes 3 channels, not 1"),
        ({"data": folders[0], "floor_seeds": 0}, "floor_seeds"),
        ({"data": tmp_path / "absent"}, "no path"),
    ]
    for given, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            eyespot.evaluate(run, **given, **QUICK)
    for model, sentence in [
        ("resnet9999", "no backbone"),
        (str(tmp_path / "no" / "run"), "no run"),
        (str(flat), "no run has been finished"),
        (3.5, "cannot be a float"),
    ]:
        with pytest.raises(UserError, match=sentence):
            eyespot.evaluate(model, folders[0], image_size=16, **QUICK)


def test_features_that_are_not_finite(folders):
    net = backbone("resnet8", image_size=16)
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        eyespot.evaluate(net, folders[0], **QUICK)


def test_samples_on_both_sides_are_told(run, folders):
    result = eyespot.evaluate(run, folders[0], folders[0], floor=False, **QUICK)
    assert "60 of the 60 test samples are training samples" in result["config"]["warning"]
    assert "warning" not in eyespot.evaluate(run, *folders, floor=False, **QUICK)["config"]


# --- several protocols ----------------------------------------------------------------------------------------
class Counted(torch.nn.Module):
    """Counts the pictures that pass through it."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 5, 3)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.conv(x).mean((2, 3))


def test_protocols_share_one_pass_of_the_model_and_of_its_floor(folders, monkeypatch):
    net, twins = backbone(Counted(), image_size=16), []
    made = samples.random_twin
    monkeypatch.setattr(samples, "random_twin", lambda *a: twins.append(made(*a)) or twins[-1])
    net.net.seen = 0
    results = eyespot.evaluate(net, *folders, "knn,linear,low_shot,retrieval", **QUICK)
    assert [r["protocol"] for r in results] == ["knn", "linear", "low_shot", "retrieval"]
    assert net.net.seen == 60 + 24
    assert [t.net.seen for t in twins] == [60 + 24]


def test_several_protocols_are_a_list_of_what_one_gives(run, folders):
    several = eyespot.evaluate(run, *folders, ["knn, linear", "retrieval", "knn"], **QUICK)
    assert [r["protocol"] for r in several] == ["knn", "linear", "retrieval"]
    for result in several:
        one = eyespot.evaluate(run, *folders, result["protocol"], **QUICK)
        assert isinstance(one, dict)
        assert one | {"seconds": 0} == result | {"seconds": 0}
    assert isinstance(eyespot.evaluate(run, *folders, ["knn"], floor=False, **QUICK), dict)
    assert list(several[2]) == [
        *("protocol", "version", "mAP", "R@1", "R@5", "R@10", "floor"),
        *("n_train", "n_test", "classes", "seconds", "run", "config"),
    ]
    assert set(several[2]["floor"]) == {"mAP", "R@1", "R@5", "R@10"}


def test_features_and_fine_tuning_in_one_call(run, folders):
    results = eyespot.evaluate(run, *folders, "low-shot,finetune", epochs=0.4, floor=False, **QUICK)
    assert [r["protocol"] for r in results] == ["low_shot", "finetune"]
    assert results[0]["config"]["features"] != results[1]["config"]["features"]
    alone = eyespot.evaluate(run, *folders, "finetune", epochs=0.4, floor=False, **QUICK)
    assert alone | {"seconds": 0} == results[1] | {"seconds": 0}


@pytest.mark.parametrize("protocol", ["knn", "linear", "low_shot", "retrieval", "finetune"])
def test_one_class_and_one_sample_are_told(run, write, tmp_path, protocol):
    single = write(tmp_path / "single", 1)
    source = open_source(write(tmp_path / "one", 4))
    for count in (12, 1):
        source.labels = np.array([2] * count + [-1] * (12 - count))
        expected = r"one class only \(down\)" if count > 1 else "No class of .* has two samples"
        with pytest.raises(UserError, match=expected):
            eyespot.evaluate(run, Data(source, workers=0), protocol=protocol)
    with pytest.raises(UserError, match=r"No class of .* has two samples"):
        eyespot.evaluate(run, single, protocol=protocol, **QUICK)


@pytest.mark.parametrize("given", ["knn,knm", ["linear", "knm"], ""])
def test_unknown_protocols(run, folders, given):
    with pytest.raises(UserError, match=r"no protocol 'knm'; did you mean 'knn'|names none"):
        eyespot.evaluate(run, *folders, given, **QUICK)


# --- names of the data ----------------------------------------------------------------------------------------
def test_samples_are_told_apart_whatever_their_folder_is_called(run, folders, write, tmp_path):
    def known(*given, **options):
        return eyespot.evaluate(run, *given, floor=False, **options, **QUICK)["config"]["data_id"]

    moved = [shutil.copytree(f, tmp_path / f"moved{i}") for i, f in enumerate(folders)]
    whole = known(*folders)
    assert known(*moved) == whole
    assert known(folders[1], folders[0]) != whole
    assert known(folders[0]) == known(moved[0]) != whole
    assert known(folders[0], seed=1) != known(folders[0])
    assert known(*folders, seed=1) == whole
    assert known(write(tmp_path / "fewer", 19), folders[1]) != whole


# --- saved embeddings -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def files(run, folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("embeddings")
    for name, folder in zip(("train", "test"), folders, strict=True):
        eyespot.embed(run, folder, root / f"{name}.parquet", **QUICK)
    return root / "train.parquet", root / "test.parquet"


def test_saved_embeddings_give_the_same_numbers(run, folders, files):
    expected = eyespot.evaluate(run, *folders, floor=False, **QUICK)
    for data in (None, files[0]):
        result = eyespot.evaluate(files[0], data, files[1])
        assert list(result) == KEYS and result["floor"] is None and "saved" in result["config"]["floor"]["weights"]
        assert result["top1"] == expected["top1"] and result["n_test"] == 24
    by_path = eyespot.evaluate(files[0], folders[0], files[1])
    assert by_path["top1"] == expected["top1"]
    half = eyespot.evaluate(files[0])
    assert half["n_test"] == 12 and "split" in half["config"]


def test_mistakes_with_saved_embeddings(run, folders, files, tmp_path):
    with pytest.raises(UserError, match="two files of embeddings"):
        eyespot.evaluate(files[0], files[1])
    with pytest.raises(UserError, match=r"24 of the 24 samples .* are not in the embeddings"):
        eyespot.evaluate(files[0], folders[0], folders[1])
    with pytest.raises(UserError, match="holds embeddings, not pictures"):
        eyespot.evaluate(run, files[0], **QUICK)
    table = pq.read_table(files[0])
    pq.write_table(table.drop_columns(["label"]), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match="has no labels"):
        eyespot.evaluate(tmp_path / "bare.parquet")
    joined = eyespot.evaluate(tmp_path / "bare.parquet", folders[0])
    assert joined["classes"] == 3


def test_linear_on_real_pictures(shared_data):
    source = open_source(shared_data("cifar10") / "train.parquet")
    source.rows, source.labels = source.rows[:300], source.labels[:300]
    result = eyespot.evaluate("resnet8", Data(source, workers=0), protocol="linear", image_size=32)
    assert result["n_train"] + result["n_test"] == 300 and result["classes"] == 10
    assert result["top1"] > 10 and np.isfinite(result["top5"])
