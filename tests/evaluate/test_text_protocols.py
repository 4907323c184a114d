"""Protocols that compare pictures with words: their numbers, their floors, and what they cannot measure."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "methods"))
from captioned import SIDE, Lines, said, write_folder

import eyespot
from eyespot.data.pairs import open_pairs
from eyespot.data.records import RecordData
from eyespot.errors import UserError
from eyespot.evaluate import image_text, sts, zero_shot
from eyespot.methods.method import Method
from eyespot.metrics.image_text import spearman
from eyespot.options import EvaluateOptions
from eyespot.train.build import fresh_method, load_method
from eyespot.views.image import clean

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    small = {"out": 16, "text_width": 16, "text_layers": 1, "text_heads": 2, "vocab": 600}
    given = {"backbone": "resnet8", "image_size": SIDE, "epochs": 1, "batch_size": 12, "workers": 0}
    return eyespot.pretrain("clip", data=folder, out=tmp_path_factory.mktemp("run") / "a", set_=small, **given).path


class Oracle(Method):
    """Reads the colour of a picture, and the colours that a text names."""

    unit = True

    def __init__(self):
        super().__init__(nn.Identity())
        self.backbone.image_size, self.backbone.channels, self.backbone.name = SIDE, 3, "oracle"
        self.weight = nn.Parameter(torch.zeros(1))

    def image_features(self, pixels):
        light = pixels.mean((2, 3))
        there = light > 0.6 * light.amax(1, keepdim=True)
        return torch.cat([there, ~there], 1).float()

    def text_features(self, texts):
        named = [("red" in t or "yellow" in t, "green" in t or "yellow" in t, "blue" in t) for t in texts]
        return torch.tensor([[*n, *(not v for v in n)] for n in named]).float()

    def match(self, image, text):
        return image @ text.T


def options(model, data, **changes):
    return EvaluateOptions(model, data=data, **({"workers": 0} | changes))


def test_the_runs_files_hold_a_picture_of_pairs(run):
    assert (run / "pictures" / "captions.png").stat().st_size > 1000


def test_all_three_by_the_usual_function_with_floors(run, folder):
    found = eyespot.evaluate(run, folder, protocol="image_text,zero_shot,sts", workers=0, floor_seeds=2)
    assert [r["protocol"] for r in found] == ["image_text", "zero_shot", "sts"]
    assert json.loads(json.dumps(found)) == found
    for result in found:
        assert result["n_train"] == 0 and result["n_test"] >= 36 and result["config"]["floor"]["seeds"] == [0, 1]
        metrics = set(result["floor"])
        assert metrics and all(np.isfinite(result[k]) for k in metrics)
        assert any(result[k] != result["floor"][k] for k in metrics)
    assert found[1]["classes"] == 12 and found[1]["config"]["descriptions"] == 12 * len(zero_shot.TEMPLATES)
    assert found[0]["config"]["captions"] == 108


def test_retrieval_is_that_of_the_features(run, folder):
    result = eyespot.evaluate(run, folder, protocol="image_text", workers=0, floor=False)
    method, source = load_method(run).eval(), open_pairs(folder)
    captions = [source.captions(i) for i in range(len(source))]
    flat = [c for texts in captions for c in texts]
    with torch.no_grad():
        image = method.image_features(clean([source.record(i)["image"] for i in range(len(source))], SIDE))
        scores = method.match(image, method.text_features(flat))
    hits = []
    for i, row in enumerate(scores):
        best = row.argsort(descending=True)[:5].tolist()
        hits.append(any(flat[j] in captions[i] for j in best))
    # rounding may turn captions that are almost alike
    assert result["image_to_text_R@5"] == pytest.approx(100 * np.mean(hits), abs=3)
    assert result["floor"] is None


def test_blocks_do_not_change_the_numbers(folder, monkeypatch):
    whole = image_text.measure(options(Oracle(), folder), 1, CPU).result()
    monkeypatch.setattr(image_text, "BLOCK", 1)
    assert {k: whole[k] for k in ("rsum", "image_to_text_R@1", "text_to_image_median_rank")} == {
        k: v
        for k, v in image_text.measure(options(Oracle(), folder), 1, CPU).result().items()
        if k in ("rsum", "image_to_text_R@1", "text_to_image_median_rank")
    }


def test_what_a_method_knows_counts_and_captions_that_are_equal_too(tmp_path):
    """Colours are known and patterns are not: the nearest caption is of the colour, one of three patterns."""
    folder = write_folder(tmp_path / "lines", n=48)
    (folder / "captions.tsv").write_text(
        "\n".join(f"{p.relative_to(folder)}\t{p.parent.name.split('_')[0]}" for p in sorted(folder.rglob("*.png")))
    )
    found = image_text.measure(options(Oracle(), folder), 1, CPU).result()
    assert found["image_to_text_R@1"] == found["text_to_image_R@1"] == 100 and found["rsum"] == 600


def test_words_make_classes(folder, tmp_path):
    prompts = {name: [f"it is {name.split()[0]}"] for name in Lines.classes}
    found = zero_shot.measure(options(Oracle(), folder), 1, CPU, prompts).result()
    assert found["top1"] == pytest.approx(100 / 3, abs=0.1)  # three patterns of each colour look alike to it
    assert found["top5"] == 100
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(prompts))
    again = zero_shot.measure(options(Oracle(), folder), 1, CPU, str(path)).result()
    assert again["top1"] == found["top1"] and again["config"]["prompts"] == "prompts.json"


def test_prompts_of_every_form(tmp_path):
    names = ("tennis_court", "SkiArea")
    assert zero_shot.descriptions(names, None, "x")[1][0] == "a photo of a ski area."
    (tmp_path / "t.txt").write_text("one {}\n\ntwo {}\n")
    assert zero_shot.descriptions(names, tmp_path / "t.txt", "x")[0] == ["one tennis court", "two tennis court"]
    lines = [{"dataset": d, "class": c, "prompts": [f"{d} {c}"]} for d in "ab" for c in ("Tennis Court", "ski area")]
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert zero_shot.descriptions(names, f"{packed}:b", "x") == [["b Tennis Court"], ["b ski area"]]
    assert len(zero_shot.descriptions(names, packed, "x")[0]) == 2
    with pytest.raises(UserError, match="no prompts for 1 of the 3 classes of 'x', such as 'barn'"):
        zero_shot.descriptions((*names, "barn"), packed, "x")
    with pytest.raises(UserError, match="only numbered"):
        zero_shot.descriptions(("0", "1"), None, "x")
    (tmp_path / "bad.txt").write_text("no place\n")
    (tmp_path / "bad.json").write_text("[1]")
    for file in ("bad.txt", "bad.json", "none.json"):
        with pytest.raises(UserError, match=file):
            zero_shot.descriptions(names, tmp_path / file, "x")


def table(path, rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_sentences_follow_what_people_say(tmp_path):
    rows = [
        {"sentence1": a, "sentence2": b, "score": s, "lang": lang, "split": "test"}
        for lang in ("en", "de")
        for a, b, s in (
            ("red", "red barn", 5.0),
            ("red", "blue", 0.5),
            ("green", "yellow", 3.0),
            ("red", "yellow", 2.0),
        )
    ]
    path = table(tmp_path / "s.jsonl.gz", rows)
    found = sts.measure(options(Oracle(), f"{path}:en:test"), 1, CPU).result()
    with torch.no_grad():
        a, b = (Oracle().text_features([r[c] for r in rows[:4]]) for c in ("sentence1", "sentence2"))
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double())
    assert found["spearman"] == pytest.approx(100 * spearman(cosine, torch.tensor([5.0, 0.5, 3, 2])))
    assert found["n_test"] == 4 and found["spearman"] > 50
    both = sts.measure(options(Oracle(), path), 1, CPU).result()
    assert both["n_test"] == 8 and {"spearman_de", "pearson_en"} <= set(both)
    assert both["spearman"] == pytest.approx((both["spearman_de"] + both["spearman_en"]) / 2)
    (tmp_path / "s.csv").write_text("sentence1,sentence2,score\nred,red,5\nred,blue,0\nblue,green,1\n")
    assert sts.measure(options(Oracle(), tmp_path / "s.csv"), 1, CPU).result()["n_test"] == 3
    with pytest.raises(UserError, match=r"No pair of .* is of 'fr'; valid: de, en, test"):
        sts.read_pairs(f"{path}:fr")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column sentence1"):
        sts.read_pairs(tmp_path / "t.csv")
    with pytest.raises(UserError, match="There is no path nothing; give a table of pairs"):
        sts.read_pairs("nothing")


def test_captions_of_one_class_and_of_two(folder):
    rows = sts.caption_pairs(folder)
    assert rows == sts.caption_pairs(RecordData(open_pairs(folder), workers=0)) != sts.caption_pairs(folder, seed=1)
    kind = {c: k for k in range(16) for c in said(k)}
    assert {r["score"] for r in rows} == {0, 1} and len(rows) > 50
    for row in rows:
        a, b = row["sentence1"], row["sentence2"]
        assert a != b and (kind[a] == kind[b]) == bool(row["score"])


def test_a_twin_has_the_words_of_the_run(run):
    trained, twin = load_method(run), fresh_method(run)
    assert trained.tokenizer.encode("red lines") == twin.tokenizer.encode("red lines")
    assert not torch.equal(trained.text.embedding.weight, twin.text.embedding.weight)


def test_what_knows_no_text_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="a network alone; give a run of clip"):
        eyespot.evaluate("resnet8", folder, protocol="zero_shot", workers=0)
    given = {"backbone": "resnet8", "image_size": SIDE, "epochs": 0.5, "batch_size": 12, "workers": 0}
    simclr = eyespot.pretrain("simclr", data=folder, out=tmp_path / "run", pictures=False, **given)
    with pytest.raises(UserError, match="SimCLR does not know"):
        eyespot.evaluate(simclr, folder, protocol="image_text", workers=0)
