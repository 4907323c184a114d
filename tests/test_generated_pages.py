"""Pages that are made from the source and from records: every number in them is one of a record."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eyespot.cli import COMMANDS
from eyespot.declare import build
from eyespot.methods import catalog
from eyespot.reproduce.claim import parse_claim
from eyespot.reproduce.runner import make_record
from eyespot.runs import write_json
from eyespot.terminal import arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import choosing
import recorded
import systems

TABLE = """
claim = "Side by side."
metric = "knn.top1"
seeds = [0, 1, 2]
[data]
train = { file = "cifar10/train.parquet", rows = [0, 10000] }
test = { file = "cifar10/test.parquet" }
[common]
backbone = "resnet8"
minutes = 2
[arms.simclr]
pretrain = "simclr"
[arms.byol]
pretrain = "byol"
[arms.dino]
pretrain = "dino"
set = { out = 8 }
"""
CLAIM = TABLE.replace("metric", 'subject = "byol"\narm = "byol"\ncontrol = "simclr"\nmetric', 1)


def runs(values, floor=(30.0, 30.5, 31.0), minutes=2.0):
    return [
        {
            "metrics": {
                "minutes": minutes,
                "images_per_s": 500.0,
                "peak_memory_mb": 812.0,
                "knn.top1": value,
                "knn.floor.top1": below,
            }
        }
        for value, below in zip(values, floor, strict=True)
    ]


RESULTS = {"simclr": runs([41.0, 42.0, 43.5]), "byol": runs([44.0, 44.5, 46.0]), "dino": runs([43.9, 44.6, 45.9])}


@pytest.fixture
def folder(tmp_path):
    """Writes a claim, and its record as the runner makes it, where there are results."""
    import tomllib

    def write(name, text, results=None):
        (tmp_path / f"{name}.toml").write_text(text)
        if results is not None:
            write_json(tmp_path / f"{name}.json", make_record(parse_claim(name, tomllib.loads(text)), results))
        return tmp_path

    return write


def rows(text):
    """The cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# --- which method ----------------------------------------------------------------------------------------------------
def test_without_a_record_there_is_no_figure(folder):
    empty = folder("base", TABLE)
    assert choosing.measured(empty) == choosing.NOTHING
    assert "[base](reproductions.md#base) is not recorded yet" in choosing.tables(empty)
    cells = [cell for row in rows(choosing.missing(empty)) for cell in row[1:] if "---" not in cell]
    assert set(cells) - {"random weights", "published weights", "own run"} == {choosing.NO_FIGURE}
    assert not re.search(r"\d\.\d", choosing.measured(empty) + choosing.tables(empty))


def test_the_best_is_named_with_what_is_as_good_and_what_to_expect(folder):
    (row,) = rows(choosing.measured(folder("base", TABLE, RESULTS)))
    assert row[:2] == ["10,000 photographs of everyday things", "random weights"]
    assert row[2].startswith("2.0 minutes")
    assert row[3:5] == ["`byol`", "`dino` (out=8)"], "simclr is clearly worse, dino is not"
    assert row[5] == "kNN top-1 44.83 ± 1.04 % (floor 30.50 %; 3 seeds)"
    assert row[6] == "[base](reproductions.md#base)"


def test_what_does_not_beat_random_features_is_not_advised(folder):
    weak = {name: runs([30.1, 30.4, 31.2]) for name in RESULTS}
    (row,) = rows(choosing.measured(folder("base", TABLE, weak)))
    assert row[3] == "none: not clearly above random features"


def test_the_control_is_advised_where_nothing_is_clearly_better(folder):
    close = RESULTS | {"simclr": runs([44.1, 44.4, 45.9])}
    (row,) = rows(choosing.measured(folder("mine", CLAIM, close)))
    assert row[3].startswith("`simclr`, the control") and "`byol`" in row[4]


def test_cells_with_a_record_are_filled_and_the_others_are_not(folder):
    text = choosing.missing(folder("base", TABLE, RESULTS))
    filled = "`byol` ([base](reproductions.md#base))"
    assert rows(text)[0] == ["up to 10,000 pictures", filled, *[choosing.NO_FIGURE] * 3]
    assert f"| photographs of everyday things | {filled} | no figure | no figure |" in text
    assert text.count(filled) == 2


def test_arms_that_start_from_published_weights_are_apart(folder):
    started = TABLE.replace('pretrain = "byol"', 'pretrain = "byol"\ninit = "resnet18.a1_in1k"')
    text = choosing.missing(folder("base", started, RESULTS))
    assert re.search(r"everyday things \| `dino`[^|]* \| `byol`[^|]* \| no figure", text)


def test_a_table_stands_best_first_with_its_costs(folder):
    text = choosing.tables(folder("base", TABLE, RESULTS))
    assert [row[0] for row in rows(text)] == ["`byol`", "`dino`", "`simclr`"]
    assert rows(text)[0][1:] == [
        "44.83 ± 1.04 (30.50)",
        "2.00 ± 0.00",
        "500 ± 0",
        "812 ± 0",
    ]
    assert "cifar10/train.parquet, 10,000 pictures, resnet8, 2 minutes; 3 seeds." in text


# --- pages of systems ------------------------------------------------------------------------------------------------
def test_numbers_of_a_system_and_its_claim_however_it_came_out(folder):
    worse = RESULTS | {"byol": runs([39.0, 40.0, 41.4])}
    text = recorded.of_system("byol", folder("mine", CLAIM, worse))
    assert "**Opposite**: `byol` against `simclr`, kNN top-1 -2.03 (standard error 0.03, 3 seeds)" in text
    assert [row[0] for row in rows(text)] == ["`byol`", "`simclr`"], "its control stands beside it"
    assert "40.13 ± 1.21 (30.50)" in text
    other = recorded.of_system("dino", folder("mine", CLAIM, worse))
    assert "Opposite" not in other and "45.9" not in other and "44.80" in other


def test_a_system_without_numbers_says_so(folder):
    text = recorded.of_system("byol", folder("mine", CLAIM))
    assert "was not run yet" in text and "No accuracy and no cost of it is recorded yet." in text


def test_claims_page_has_outcome_and_command(folder):
    text = recorded.claims(folder("mine", CLAIM, RESULTS))
    assert "### mine" in text and "**Shown**" in text and "eyespot reproduce mine" in text


@pytest.fixture(scope="module")
def entries():
    return list(catalog.entries().values())


@pytest.mark.parametrize("name", list(catalog.entries()))
def test_every_system_has_a_whole_page(name, entries, tmp_path):
    entry = catalog.find(name)
    text = systems.system(entry, entries, tmp_path)
    heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    needed = {"Recorded numbers", "Evidence", "Data and plug-ins"}
    needed |= ({"Arguments"} if entry.fields else set()) | ({"Recipe"} if entry.kind != "plugin" else set())
    assert needed <= set(heads)
    assert ("What differs from the paper and its code" in heads) == (systems.DIFFERENCES in entry.doc)
    assert systems.DIFFERENCES not in text
    verb, *words = systems.example(entry, entries).split()[1:]
    given = arguments.read(verb, COMMANDS[verb].options, (), words, "")
    build(COMMANDS[verb].options, **given)
    assert given["method"] == name or name in given["with_"]


PLUGIN = '''"""Shaker: shakes (Somebody; 2026).

Adds noise.

Paper and code: the `code` shakes_twice.
"""
from eyespot.methods.method import Plugin


class Shaker(Plugin):
    adds = ("negatives",)
'''


def test_plug_ins_of_other_packages_have_a_page_too(tmp_path, monkeypatch):
    (tmp_path / "shaking.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("shaker", "shaking:Shaker", catalog.GROUP)]
    monkeypatch.setattr(catalog.importlib.metadata, "entry_points", lambda group: points)
    entries = list(catalog.entries().values())
    text = systems.system(catalog.find("shaker"), entries, tmp_path)
    assert "eyespot pretrain moco_v2 --with shaker --data photos/ --out runs/a" in text
    assert "## What differs from the paper and its code\n\nThe `code` shakes\\_twice." in text
    assert "Adds negatives; fits [moco_v2](moco_v2.md)." in text
    assert "(`--with NAME`) may add" in systems.system(catalog.find("simclr"), entries, tmp_path)
    assert "[shaker](shaker.md)" in systems.system(catalog.find("moco_v2"), entries, tmp_path)
    assert "It takes no plug-ins." in systems.system(catalog.find("mae"), entries, tmp_path)
