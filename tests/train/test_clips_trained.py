"""From a folder of clips to features, by the public functions: train, resume, evaluate, embed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clips import encode, frames, write_folder

import eyespot
from eyespot import modality
from eyespot.errors import UserError
from eyespot.modality import Reading
from eyespot.train.build import load_method

SETTINGS = {
    "cvrl": {"frames": 4, "hidden": 16, "out": 8},
    "motion_appearance_statistics": {"frames": 6, "hidden": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clips"), each=6)


def start(name, folder, out, **changes):
    options = {"data": folder, "out": out, "image_size": 16, "epochs": 2, "batch_size": 4, "workers": 0, "log_every": 1}
    return eyespot.pretrain(name, **(options | {"set_": SETTINGS[name], "pictures": False} | changes))


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, folder, tmp_path_factory):
    return request.param, start(request.param, folder, tmp_path_factory.mktemp("run") / "run", pictures=True)


def test_a_run_is_complete_and_comes_back(run):
    name, done = run
    assert [r["step"] for r in done.metrics] == list(range(1, 7))
    assert done.verdict["state"] in ("learning", "stalled", "collapsed", "unstable")
    pictures = {p.name for p in (done.path / "pictures").iterdir()}
    assert pictures == {"views.png" if name == "cvrl" else "statistics.png"}
    config = json.loads((done.path / "config.json").read_text())
    assert config["backbone"]["name"] == ("r3d_10" if name == "cvrl" else "c3d_light")
    method, clips = load_method(done.path).eval(), torch.rand(2, 8, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(done.backbone(clips), method.backbone(clips))


def test_it_is_evaluated_and_embedded(run, folder, tmp_path):
    _, done = run
    sides = {"data": f"{folder}:rest1/2", "test_data": f"{folder}:fold1/2"}
    results = eyespot.evaluate(done, **sides, protocol=["knn"], workers=0)
    found = results[0] if isinstance(results, list) else results
    assert {"top1"} <= set(found) and 0 <= found["floor"]["top1"] <= 100
    eyespot.embed(done, data=folder, out=tmp_path / "clips.parquet", workers=0)
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "clips.parquet")
    assert table.num_rows == 12 and len(table["vector"][0].as_py()) == done.backbone.embed_dim


def test_pictures_need_no_clips_and_clips_no_pictures(folder, tmp_path):
    with pytest.raises(UserError, match="resnet8 takes pictures, but cvrl learns from clips"):
        start("cvrl", folder, tmp_path / "a", backbone="resnet8")
    with pytest.raises(UserError, match="holds no clip"):
        (tmp_path / "words").mkdir()
        (tmp_path / "words" / "a.txt").write_text("words")
        start("cvrl", tmp_path / "words", tmp_path / "b")


def test_the_modality(folder, tmp_path):
    kind = modality.of_needs(("video",), "cvrl")
    data = kind.open_data(folder, Reading(workers=0))
    assert (kind.UNIT, kind.TOWER, kind.usual_size(data), data.channels) == ("clips", "video", 32, 3)
    assert kind.open_data(data, Reading()) is data
    inputs = kind.clean(data.batch([0, 1, 2]), 24)
    assert inputs.shape == (3, 16, 3, 24, 24) and inputs.dtype == torch.float32
    grey = kind.open_data(folder, Reading(workers=0, channels=1))
    assert grey.channels == 1 and grey.batch([0])["video"].shape == (1, 16, 1, 32, 48)
    (tmp_path / "big.mp4").write_bytes(encode(frames(steps=2, size=(256, 320))))
    big = kind.open_data(tmp_path, Reading(workers=0))
    assert kind.usual_size(big) == 256 and big.batch([0])["video"].shape[-2:] == (128, 160)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.mp4").write_bytes(b"")
    assert kind.usual_size(kind.open_data(broken, Reading(workers=0))) == 0


def test_real_clips_are_learned_from(shared_data, tmp_path):
    """A few steps on surveillance clips: the loss falls and the features spread."""
    tar = shared_data("video_clips") / "fight_detection.tar"
    settings = {"frames": 4, "hidden": 32, "out": 16}
    run = eyespot.pretrain(
        "cvrl",
        data=f"{tar}:fold1/10",
        out=tmp_path / "run",
        image_size=32,
        epochs=8,
        batch_size=15,
        workers=0,
        log_every=1,
        pictures=False,
        set_=settings,
    )
    losses = [r["loss"] for r in run.metrics]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
