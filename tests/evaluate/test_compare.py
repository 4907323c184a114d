"""`eyespot compare`: rows, order, and what may not be compared."""

import json

import pytest
import torch

import eyespot
from eyespot import cli
from eyespot.errors import UserError
from eyespot.evaluate import records
from eyespot.nets.backbones import backbone, save_backbone

PLAN = {"batch_size": 100}


@pytest.fixture
def make(tmp_path):
    """A run folder as a training leaves it, with results that were kept in it."""

    def made(name, *results, method="simclr", **settings):
        folder = tmp_path / name
        folder.mkdir()
        config = {"method": method, "backbone": {"name": "resnet8"}, "plan": PLAN}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "verdict.json").write_text(json.dumps({"state": "learning"}))
        log = [{"step": 1, "images_per_s": 50.0}, {"step": 4, "images_per_s": 300.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
        for result in results:
            records.keep(folder, result, settings if result["protocol"] == "finetune" else {})
        return folder

    return made


def result(protocol="knn", value=50.0, data_id="aa", version=1, metric="top1", floor=20.0, **config):
    return {
        "protocol": protocol,
        "version": version,
        metric: value,
        "floor": None if floor is None else {metric: floor},
        "n_train": 60,
        "n_test": 24,
        "classes": 3,
        "seconds": 1.0,
        "run": "x",
        "config": {"data": "/d/train", "test_data": "/d/test", "data_id": data_id, **config},
    }


def test_rows_are_sorted_by_the_first_protocol(make):
    runs = [
        make("a", result(value=40.0), result("linear", 90.0)),
        make("b", result(value=60.0), method="byol"),
        make("c", result("linear", 99.0)),
        make("d"),
    ]
    rows = eyespot.compare(runs)
    assert [r["run"].rpartition("/")[2] for r in rows] == ["b", "a", "c", "d"]
    first = rows[0]
    assert {k: first[k] for k in ("method", "backbone", "verdict")} == {
        "method": "byol",
        "backbone": "resnet8",
        "verdict": "learning",
    }
    # 100 pictures at 50 a second and 300 at 300 a second
    assert first["minutes"] == 0.05 and first["images_per_s"] == pytest.approx(400 / 3, abs=0.1)
    (one,) = first["results"]
    assert one["metrics"] == {"top1": 60.0} and one["floor"] == {"top1": 20.0} and one["comparable"]
    assert (one["data"], one["test_data"], one["name"], one["group"]) == ("/d/train", "/d/test", "test", "A")
    assert json.loads(json.dumps(rows)) == rows


def test_other_samples_versions_and_settings_are_marked(make):
    runs = [
        make("a", result(value=40.0), result("finetune", 70.0), epochs=10),
        make("b", result(value=60.0), result("finetune", 80.0), epochs=20),
        make("c", result(value=99.0, data_id="bb"), result("finetune", 75.0), epochs=10),
        make("d", result(value=99.0, version=2)),
    ]
    rows = eyespot.compare(runs)
    seen = {
        (r["run"][-1], x["protocol"]): (x["version"], x["group"], x["comparable"]) for r in rows for x in r["results"]
    }
    assert seen[("a", "knn")] == seen[("b", "knn")] == (1, "A", True)
    assert seen[("c", "knn")] == (1, "C", False) or seen[("c", "knn")][2] is False
    assert seen[("d", "knn")] == (2, "A", False)
    assert seen[("a", "finetune")] == seen[("c", "finetune")] and seen[("a", "finetune")][2]
    assert not seen[("b", "finetune")][2]
    assert [r["run"][-1] for r in rows][:2] == ["b", "a"]  # the 99s are no better: they are not comparable


def test_the_latest_of_equal_results_counts(make, monkeypatch):
    folder = make("a", result(value=40.0), result(value=45.0, image_size=64))
    files = sorted((folder / "evaluations").glob("*.json"))
    for file, date in zip(files, ("2026-01-02", "2026-01-01"), strict=True):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"date": date}))
    latest = json.loads(files[0].read_text())["result"]["top1"]
    (row,) = eyespot.compare(folder)
    assert [r["metrics"]["top1"] for r in row["results"]] == [latest]


def test_one_run_is_one_row(make):
    folder = make("a", result())
    assert len(eyespot.compare([folder, str(folder), eyespot.Run(folder)])) == 1


def test_protocols_can_be_chosen(make):
    folder = make("a", result(), result("linear", 70.0))
    (row,) = eyespot.compare([folder], protocol="linear")
    assert [r["protocol"] for r in row["results"]] == ["linear"]
    with pytest.raises(UserError, match="no results of retrieval"):
        eyespot.compare([folder], protocol=["retrieval"])


def test_mistakes_are_told_in_one_sentence(make, tmp_path):
    folder = make("a")
    cases = [
        ([folder], {}, "There are no results in"),
        ([tmp_path], {}, r"holds no run but runs \(a, ...\); give .*/\*"),
        ([tmp_path / "absent"], {}, "There is no run"),
        ([folder / "evaluations"], {}, "There is no run"),
        ([], {}, "RUNS is missing"),
        ([folder], {"test_data": "x"}, "--test-data needs --data"),
        ([folder], {"protocol": "knm"}, "no protocol 'knm'"),
    ]
    for runs, given, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            eyespot.compare(runs, **given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        eyespot.compare([tmp_path / "empty"])


def test_what_is_missing_is_measured_and_kept(make, folders):
    runs = [make(name) for name in ("a", "b")]
    for seed, folder in enumerate(runs):
        torch.manual_seed(seed)
        save_backbone(backbone("resnet8", image_size=16), folder)
    given = {"data": folders[0], "test_data": folders[1], "workers": 0}
    eyespot.evaluate(runs[0], folders[0], folders[1], "knn", floor=False, workers=0)
    rows = eyespot.compare(runs, **given)
    found = {r["run"]: {x["protocol"]: x for x in r["results"]} for r in rows}
    assert all(set(v) == {"knn", "linear"} and v["knn"]["comparable"] for v in found.values())
    assert found[str(runs[0])]["knn"]["floor"] is None  # what was there was not measured again
    assert found[str(runs[1])]["knn"]["floor"] is not None
    dates = {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").iterdir()}
    eyespot.compare(runs, **given)
    assert dates == {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").iterdir()}


# --- the command ----------------------------------------------------------------------------------------------
def test_the_table_marks_and_explains(make, capsys):
    runs = [
        make("a", result(value=40.0, floor=None)),
        make("b", result(value=60.0)),
        make("c", result(value=99.0, data_id="bb")),
        make("d"),
    ]
    assert cli.main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "knn v1 top1 [A]" in out[0] and "knn v1 top1 [B]" in out[0]
    assert str(runs[1]) in out[1] and "60.00 (20.00)" in out[1] and "133" in out[1]
    assert "40.00" in out[2] and "(" not in out[2]
    text = "\n".join(out[5:])
    assert "99.00 (20.00) *" in "\n".join(out)
    assert "[A] test: /d/train -> /d/test (60 / 24 samples)" in text
    assert "* not comparable" in text and f"no results in {runs[3]}" in text


def test_json_is_the_rows(make, capsys):
    runs = [make("a", result()), make("b", result(value=60.0))]
    assert cli.main(["compare", "--json", str(runs[0]), str(runs[1])]) == 0
    assert json.loads(capsys.readouterr().out) == eyespot.compare(runs)


def test_without_runs_the_command_says_so(capsys):
    assert cli.main(["compare"]) == 2
    assert "RUN" in capsys.readouterr().err
