"""Claims: their files, what they show, and a small one from end to end."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eyespot
from eyespot.errors import UserError
from eyespot.reproduce.claim import claim_names, parse_claim, read_claim
from eyespot.reproduce.evidence import update_evidence
from eyespot.reproduce.jobs import Bench
from eyespot.reproduce.outcome import compared, judged, summary
from eyespot.reproduce.plot import dot_plot

HERE = Path(__file__).parents[2] / "reproductions"

RAW = {
    "claim": "One beats the other.",
    "metric": "knn.top1",
    "arm": "one",
    "control": "two",
    "seeds": [0, 1, 2],
    "protocols": ["knn"],
    "data": {"train": "pictures", "test": "pictures"},
    "common": {"backbone": "resnet8", "image_size": 16, "epochs": 1, "batch_size": 8},
    "arms": {"one": {"pretrain": "simclr", "set": {"hidden": 16}}, "two": {"pretrain": "barlow_twins"}},
}


def without(key):
    return {k: v for k, v in RAW.items() if k != key}


@pytest.mark.parametrize("name", claim_names(HERE))
def test_every_claim_can_be_read_and_names_what_exists(name):
    from eyespot.declare import option_fields
    from eyespot.methods import catalog
    from eyespot.options import AdaptOptions, PretrainOptions
    from eyespot.settings import no_stray_settings, settings

    claim = read_claim(HERE, name)
    assert claim.claim.endswith(".") and len(claim.seeds) >= 3
    for arm in [*claim.stages.values(), *claim.arms.values()]:
        kind = "adapt" if arm.command == "adapt" else "method"
        entry = catalog.find(arm.method, kind)
        plugins = catalog.plugins(arm.plugins, entry)
        no_stray_settings(arm.settings, [p.name for p in plugins])
        for owner in (entry, *plugins):
            settings(arm.settings, owner.fields, owner.name, owner.prefix)
        known = {f.name for f in option_fields(AdaptOptions if kind == "adapt" else PretrainOptions)}
        assert set(arm.options) <= known


def test_data_of_a_claim_may_be_a_split(tmp_path):
    (tmp_path / "flowers.parquet").touch()
    files = {"train": {"file": "flowers.parquet", "split": "train"}, "test": "flowers.parquet"}
    files["made"] = {"file": "flowers.parquet", "split": "test", "make": "mosaic"}
    bench = Bench(parse_claim("x", RAW | {"data": files}), tmp_path, tmp_path / "out", lambda _: None)
    path = tmp_path / "flowers.parquet"
    assert bench.paths == {"train": f"{path}:train", "test": str(path), "made": f"mosaic:{path}:test"}
    public = [bench.public(word) for word in bench.paths.values()]
    assert public == ["DATA/flowers.parquet:train", "DATA/flowers.parquet", "mosaic:DATA/flowers.parquet:test"]


@pytest.mark.parametrize("key", ["claim", "metric", "seeds", "data", "arms"])
def test_what_a_claim_must_say(key):
    with pytest.raises(UserError, match=f"does not say '{key}'"):
        parse_claim("c", without(key))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sead": [1]}, "seeds"),
        ({"arm": "none"}, "none"),
        ({"direction": "up"}, "higher or lower"),
        ({"arms": {"one": {"set": {}}}}, "pretrain = METHOD or adapt = METHOD"),
        ({"arms": {"one": {"adapt": "core_tuning"}}}, "start = STAGE"),
        ({"arms": {"one": {"adapt": "core_tuning", "start": "base"}}, "arm": "", "control": ""}, "base"),
        ({"arms": {"one": {"pretrain": "simclr", "data": "trian"}}}, "trian"),
    ],
)
def test_mistakes_in_a_claim_are_named(change, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_claim("c", RAW | change)


# --- what is shown --------------------------------------------------------------------------------------------------
def test_summary_by_hand():
    got = summary([1.0, 2.0, 6.0])
    assert got == {"mean": 3.0, "spread": pytest.approx(np.std([1, 2, 6], ddof=1), abs=1e-4), "least": 1.0} | {
        "largest": 6.0,
        "seeds": 3,
    }


@pytest.mark.parametrize(
    ("first", "second", "direction", "outcome"),
    [
        ([50, 51, 52], [48, 49.5, 50], "higher", "shown"),
        ([50, 51, 52], [48, 49.5, 50], "lower", "opposite"),
        ([50, 51, 52], [49, 52, 51], "higher", "not shown"),
        ([50, 51], [40, 41], "higher", "not shown"),
        ([90], [10], "higher", "not shown"),
        ([50, 50, 50], [50, 50, 50], "higher", "not shown"),
    ],
)
def test_a_difference_counts_when_it_is_clear_over_the_seeds(first, second, direction, outcome):
    assert compared(first, second, direction)["outcome"] == outcome


def test_pairs_of_seeds_are_compared():
    """A difference that is the same at every seed is clear, however much the seeds differ."""
    seen = compared([10, 50, 90], [9, 49, 88.9], "higher")
    assert seen["outcome"] == "shown" and seen["difference"] == pytest.approx(1.0333, abs=1e-3)


def runs(values, floor):
    return [{"metrics": {"knn.top1": v, "knn.floor.top1": f}} for v, f in zip(values, floor, strict=True)]


def test_judged_compares_with_control_and_floor():
    claim = parse_claim("c", RAW)
    out = judged(claim, {"one": runs([50, 51, 52], [30, 30, 31]), "two": runs([31, 29, 30], [30, 30, 31])})
    assert out["comparison"]["outcome"] == "shown" and out["floor_beaten"] == {"one": True, "two": False}


def test_an_arm_may_be_compared_with_its_own_floor():
    claim = parse_claim("c", RAW | {"control": "floor"})
    out = judged(claim, {"one": runs([50, 51, 52], [30, 30, 31]), "two": runs([60, 60, 60], [30, 30, 31])})
    assert out["comparison"]["difference"] == pytest.approx(51 - 91 / 3, abs=1e-3)
    assert out["comparison"]["outcome"] == "shown"


def test_the_plot_has_a_dot_for_every_value():
    text = dot_plot("a & b", "knn.top1", {"one <": [1.0, 2.0], "two": [3.0]}, {"one <": 0.5})
    root = ElementTree.fromstring(text)
    dots = [float(e.get("cx")) for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 3 and dots[0] < dots[1] < dots[2]
    dot_plot("same", "m", {"one": [5.0, 5.0]}, {})  # no division by nothing


# --- from end to end ------------------------------------------------------------------------------------------------
@pytest.fixture
def claims(tmp_path):
    """A claim on striped pictures in two class folders."""
    random = np.random.default_rng(0)
    for label in ("across", "down"):
        (tmp_path / "data" / "pictures" / label).mkdir(parents=True)
        for i in range(16):
            wave = np.sin(np.arange(16) * (0.8 + random.random()))[:, None] * np.ones((16, 16))
            pixels = (128 + 100 * (wave if label == "across" else wave.T)).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(tmp_path / "data" / "pictures" / label / f"{i}.png")
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "stripes.toml").write_text(TOML, encoding="utf-8")
    return tmp_path


TOML = """
claim = "Contrast learns stripes."
subject = "simclr"
metric = "knn.top1"
seeds = [0]
protocols = ["knn"]
[data]
train = "pictures"
test = "pictures"
[common]
backbone = "resnet8"
image_size = 16
epochs = 1
batch_size = 8
[arms.contrast]
pretrain = "simclr"
set = {hidden = 16}
[arms.tuned]
adapt = "core_tuning"
start = "base"
epochs = 1
batch_size = 8
[arms.invented]
pretrain = "moco_v2"
with = ["mochi", "hallucinator"]
set = {hidden = 16, queue = 16, "mochi.hardest" = 4, "hallucinator.centre_box" = "none"}
[stages.base]
pretrain = "simclr"
"""


def test_a_claim_is_run_once_recorded_and_shown(claims, monkeypatch, capsys):
    from eyespot.reproduce import runner

    entered = []
    monkeypatch.setattr(runner, "update_evidence", entered.append)
    options = {"data_folder": str(claims / "data"), "out": str(claims / "runs"), "claims": str(claims / "claims")}
    said = []
    record = eyespot.reproduce("stripes", listener=said.append, **options)
    assert len(said) == 4, "a stage and three arms"
    watched = record["runs"]["invented"][0]["metrics"]
    assert 0 <= watched["train.proxy_accuracy"] <= 100 and "train.proxy_accuracy" not in record["arms"]["contrast"]
    assert json.loads((claims / "claims" / "stripes.json").read_text(encoding="utf-8")) == record
    assert (claims / "claims" / "stripes.svg").exists()
    assert record["arms"]["tuned"]["accuracy.top1"]["seeds"] == 1
    metrics = record["runs"]["contrast"][0]["metrics"]
    assert metrics["knn.top1"] >= 0 and metrics["peak_memory_mb"] > 50
    text = json.dumps(record)
    assert str(claims) not in text, "no path of this machine"
    assert "DATA/pictures" in text and "RUNS/contrast-0" in text

    again = eyespot.reproduce("stripes", listener=said.append, **options)
    assert len(said) == 4 and again["runs"] == record["runs"], "what is done is not done again"
    assert not entered, "claims of one's own are no evidence for the methods of the package"
    monkeypatch.setattr(runner, "OWN_CLAIMS", (claims / "claims").resolve())
    eyespot.reproduce("stripes", **options)
    assert entered == [claims / "claims"]

    from eyespot.cli import main

    assert main(["reproduce", "--claims", str(claims / "claims")]) == 0
    assert "Contrast learns stripes." in capsys.readouterr().out


def test_a_command_that_fails_is_told(claims):
    path = claims / "claims" / "stripes.toml"
    path.write_text(TOML.replace("batch_size = 8", "batch_size = 999", 1), encoding="utf-8")
    with pytest.raises(UserError, match="999 is larger than the data"):
        eyespot.reproduce("stripes", data_folder=str(claims / "data"), out=str(claims / "r"), claims=str(path.parent))


def test_missing_data_and_names(claims, monkeypatch):
    monkeypatch.delenv("EYESPOT_DATA", raising=False)
    place = {"claims": str(claims / "claims"), "out": str(claims / "r")}
    with pytest.raises(UserError, match="--data-folder"):
        eyespot.reproduce("stripes", **place)
    with pytest.raises(UserError, match="must hold pictures"):
        eyespot.reproduce("stripes", data_folder=str(claims), **place)
    with pytest.raises(UserError, match="stripes"):
        eyespot.reproduce("strips", **place)
    with pytest.raises(UserError, match="is no folder"):
        eyespot.reproduce("stripes", claims=str(claims / "nowhere"))


def test_rows_of_a_parquet_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from eyespot.reproduce.jobs import Bench

    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"n": list(range(10))}), tmp_path / "data" / "t.parquet")

    def bench(rows):
        data = {"train": {"file": "t.parquet", "rows": rows}, "test": "scenes:test"}
        return Bench(parse_claim("c", RAW | {"data": data}), tmp_path / "data", tmp_path / "out", print)

    made = bench([2, 5])
    assert pq.read_table(made.paths["train"])["n"].to_pylist() == [2, 3, 4] and made.paths["test"] == "scenes:test"
    with pytest.raises(UserError, match="has 10 rows"):
        bench([2, 50])


def test_the_claim_of_a_plug_in_is_its_own(tmp_path):
    """Its floor is that of the arm that has it; its host gets nothing from that arm."""
    arms = {"one": {"pretrain": "simclr", "with": ["hallucinator"]}, "two": {"pretrain": "simclr"}}
    source = parse_claim("c", RAW | {"subject": "hallucinator", "arms": arms}).source
    record = {"claim": source, "comparison": {"outcome": "shown"}, "floor_beaten": {"one": True, "two": False}}
    (tmp_path / "c.toml").write_text("", encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(record), encoding="utf-8")
    assert update_evidence(tmp_path, tmp_path / "evidence.json") == {
        "hallucinator": {"claim": "shown", "floor_beaten": True},
        "simclr": {"floor_beaten": False},
    }


def test_evidence_says_what_was_recorded(tmp_path):
    (tmp_path / "stripes.toml").write_text(TOML, encoding="utf-8")
    record = {
        "claim": parse_claim("stripes", RAW | {"subject": "simclr"}).source,
        "comparison": {"outcome": "not shown"},
        "floor_beaten": {"one": True, "two": False},
    }
    (tmp_path / "stripes.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "evidence.json").write_text('{"simclr": {"golden": true}}', encoding="utf-8")
    update_evidence(tmp_path, tmp_path / "evidence.json")
    assert json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8")) == {
        "barlow_twins": {"floor_beaten": False},
        "simclr": {"claim": "not shown", "floor_beaten": True, "golden": True},
    }
