"""The protocol without labels: its numbers, the same views for all networks, and what it cannot measure."""

import json
import shutil

import pytest
import torch

import eyespot
from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.evaluate import records, representation
from eyespot.evaluate.features import extract
from eyespot.metrics.representation import alignment, effective_rank, spread, uniformity
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.views.image import view
from eyespot.views.recipes import symmetric

QUICK = {"workers": 0, "protocol": "representation"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    save_backbone(backbone("resnet8", image_size=16), folder)
    (folder / "config.json").write_text(json.dumps({"method": "simclr", "kind": "method"}))
    return folder


def test_numbers_are_the_metrics_of_features_and_views(run, folders):
    result = eyespot.evaluate(run, folders[0], batch_size=7, **QUICK)
    net = load_backbone(run).eval()
    data = Data(open_source(folders[0]), workers=0)
    features, _ = extract(net, data)
    images = data.batch(range(len(data)))["image"]
    draws = Draws(0, index=range(len(data)), prefix="representation/")
    spec = symmetric(16, 0.2, 0.5)
    with torch.no_grad():
        first, second = (net(view(images, draws.scope(name), spec).pixels) for name in ("view1", "view2"))
    assert result["effective_rank"] == pytest.approx(float(effective_rank(features)), rel=1e-4)
    assert result["uniformity"] == pytest.approx(float(uniformity(features)), rel=1e-4)
    assert result["spread"] == pytest.approx(float(spread(features)), rel=1e-4)
    assert result["alignment"] == pytest.approx(float(alignment(first, second)), rel=1e-3)
    assert json.loads(json.dumps(result)) == result
    assert (result["n_train"], result["n_test"], result["classes"]) == (0, 60, 0)
    assert set(result["floor"]) == {"effective_rank", "uniformity", "alignment", "spread"}


def test_no_labels_are_needed_and_test_pictures_come_first(run, folders, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(folders[1].rglob("*.png"))):
        shutil.copy(file, flat / f"{i:02}.png")
    on_test = eyespot.evaluate(run, folders[0], flat, **QUICK)
    assert on_test["n_test"] == 24 and on_test["config"]["data"] == str(flat)
    alone = eyespot.evaluate(run, flat, **QUICK)
    assert {k: alone[k] for k in alone["floor"]} == {k: on_test[k] for k in alone["floor"]}


def test_a_constant_network_has_collapsed(folders):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 4)

    result = eyespot.evaluate(Constant(), folders[0], image_size=16, floor=False, **QUICK)
    found = {k: result[k] for k in ("effective_rank", "uniformity", "alignment", "spread")}
    assert found == pytest.approx({"effective_rank": 1, "uniformity": 0, "alignment": 0, "spread": 0}, abs=1e-5)


def test_at_most_so_many_pictures(run, folders, monkeypatch):
    monkeypatch.setattr(representation, "PICTURES", 10)
    assert eyespot.evaluate(run, folders[0], floor=False, **QUICK)["n_test"] == 10


def test_embeddings_have_no_pictures(run, folders, tmp_path):
    eyespot.embed(run, folders[0], tmp_path / "e.parquet", workers=0)
    with pytest.raises(UserError, match="no pictures to draw views of"):
        eyespot.evaluate(tmp_path / "e.parquet", **QUICK)


def test_beside_other_protocols_and_in_compare(run, folders):
    results = eyespot.evaluate(run, folders[0], folders[1], protocol="knn,representation", workers=0)
    assert [r["protocol"] for r in results] == ["knn", "representation"]
    kept = len(records.read(run))
    rows = eyespot.compare([run], data=folders[0], test_data=folders[1], protocol="representation", workers=0)
    assert len(records.read(run)) == kept  # measured already, and found again
    assert next(iter(rows[0]["results"][0]["metrics"])) == "effective_rank"
