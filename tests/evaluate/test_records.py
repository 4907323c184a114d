"""Results kept in a run: what is written, when, and how it is read back."""

import json
import os

import pytest
import torch

import eyespot
from eyespot import cli
from eyespot.errors import UserError
from eyespot.evaluate import records
from eyespot.nets.backbones import backbone, save_backbone
from eyespot.runs import Run

QUICK = {"workers": 0}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    torch.manual_seed(5)
    save_backbone(backbone("resnet8", image_size=16), folder)
    (folder / "config.json").write_text(json.dumps({"method": "simclr"}))
    return folder


def names(folder):
    return sorted(p.name for p in (folder / "evaluations").glob("*"))


def test_results_are_kept_in_the_run_as_they_are_returned(run, folders):
    results = eyespot.evaluate(Run(run), *folders, "knn,retrieval", **QUICK)
    kept = records.read(run)
    assert sorted([r.result for r in kept], key=lambda r: r["protocol"]) == results
    assert [n.rpartition("-")[0] for n in names(run)] == ["knn-v1-test", "retrieval-v2-test"]
    stored = json.loads((run / "evaluations" / names(run)[0]).read_text())
    assert list(stored) == ["version", "date", "eyespot", "settings", "result"]
    assert stored["version"] == 1 and stored["date"].endswith("+00:00") and stored["settings"] == {}


def test_the_same_again_replaces_and_anything_else_stands_beside(run, folders, write, tmp_path):
    for _ in range(2):
        eyespot.evaluate(run, *folders, floor=False, **QUICK)
    assert len(names(run)) == 1
    eyespot.evaluate(run, *folders, floor=False, image_size=24, **QUICK)
    eyespot.evaluate(run, folders[0], floor=False, **QUICK)
    eyespot.evaluate(run, *folders, floor=False, name="my birds!", **QUICK)
    assert len(names(run)) == 4 and any(n.startswith("knn-v1-my-birds-") for n in names(run))
    for epochs in (0.2, 0.4):
        eyespot.evaluate(run, *folders, "finetune", epochs=epochs, floor=False, **QUICK)
    tuned = [r for r in records.read(run) if r.result["protocol"] == "finetune"]
    assert sorted(r.settings["epochs"] for r in tuned) == [0.2, 0.4] and tuned[0].key != tuned[1].key


def test_only_runs_keep_results(run, folders, tmp_path):
    eyespot.evaluate(eyespot.nets.backbones.load_backbone(run), *folders, floor=False, **QUICK)
    eyespot.embed(run, folders[0], run / "e.parquet", **QUICK)
    eyespot.evaluate(run / "e.parquet")
    (run / "config.json").unlink()
    eyespot.evaluate(run, *folders, floor=False, **QUICK)
    assert not (run / "evaluations").exists()
    assert records.read(run) == []


def test_a_run_that_cannot_be_written_does_not_lose_the_result(run, folders):
    (run / "evaluations").write_text("a file where the folder should be")
    result = eyespot.evaluate(run, *folders, floor=False, **QUICK)
    assert "cannot be written" in result["config"]["not_kept"] and result["top1"] >= 0


def test_writing_is_atomic(run, folders, monkeypatch):
    eyespot.evaluate(run, *folders, floor=False, **QUICK)
    before = (run / "evaluations" / names(run)[0]).read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = eyespot.evaluate(run, *folders, floor=False, **QUICK)
    assert "No space left" in result["config"]["not_kept"]
    assert len(names(run)) == 1 and (run / "evaluations" / names(run)[0]).read_text() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", "is no result of eyespot evaluate"),
        ('{"version": 99, "date": "", "settings": {}, "result": {}}', "newer eyespot"),
    ],
)
def test_damaged_and_newer_files_are_told(run, text, sentence):
    (run / "evaluations").mkdir()
    (run / "evaluations" / "knn-v1-x-0.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        records.read(run)


def test_the_command_prints_one_object_or_a_list_and_keeps_both(run, folders, capsys):
    words = ["evaluate", str(run), "--data", str(folders[0]), "--test-data", str(folders[1]), "--workers", "0"]
    assert cli.main([*words, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert cli.main([*words, "--json", "--protocol", "knn,retrieval", "--protocol", "low_shot"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert one | {"seconds": 0} == several[0] | {"seconds": 0}
    assert [r["protocol"] for r in several] == ["knn", "retrieval", "low_shot"] and len(names(run)) == 3
    assert cli.main([*words, "--protocol", "low_shot"]) == 0
    table = capsys.readouterr().out
    assert f"{several[2]['5_per_class']:.2f} ± {several[2]['5_per_class_std']:.2f} %" in table and "_std" not in table
