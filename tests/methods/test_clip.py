"""CLIP: its loss, its text, and that words make classifiers."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from captioned import SIDE, Lines, lines, make, views_of, write_folder
from processes import run_processes

import eyespot
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.evaluate import zero_shot
from eyespot.methods.language.clip import CLIP
from eyespot.methods.method import total
from eyespot.methods.pairs import drawn_captions, text_keys
from eyespot.nets.backbones import backbone
from eyespot.train.build import load_method
from eyespot.train.fit import fit
from eyespot.train.plan import Plan
from eyespot.views.image import clean

OBJECTIVES = ("contrast", "sigmoid", "words")


@pytest.fixture(scope="module")
def data():
    return lines()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_parameter_has_a_finite_gradient(data, objective):
    method = make("clip", data, objective=objective).train()
    terms = method(views_of(method, data))
    assert list(terms) == [objective] and terms[objective].dim() == 0
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert float(method.backbone.net.conv.weight.grad.abs().sum()) > 0


def test_runs_as_its_docstring_says():
    method = CLIP(backbone("resnet8", image_size=64))
    batch = {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "text": ["a red barn", "two boats"]}
    terms = method(method.views(batch, Draws(index=range(2))))
    assert bool(terms["contrast"].isfinite())


def test_is_the_papers_loss_when_no_captions_are_equal():
    method = make("clip").double()
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(5, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    logits = F.normalize(f, dim=1) @ F.normalize(g, dim=1).T / 0.07
    own = torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    for caption in ({}, {"caption": own}):
        found = method.loss({"image": f, "text": g, **caption})["contrast"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    scaled = method.loss({"image": 3 * f, "text": 0.1 * g})["contrast"]
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-6)


def test_equal_captions_are_pairs_or_negatives():
    f = torch.eye(3)[[0, 0, 1]]
    encoded = {"image": f, "text": f, "caption": torch.tensor([7, 7, 8])}
    pairs, negatives = (float(make("clip", equal=e).loss(encoded)["contrast"].detach()) for e in ("pairs", "negatives"))
    assert negatives == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert pairs == pytest.approx(negatives, abs=1e-4)  # a caption shared by two is log 2 away from certain, either way
    wrong = {**encoded, "text": f[[0, 2, 1]]}
    assert float(make("clip", equal="pairs").loss(wrong)["contrast"].detach()) > pairs


def test_reads_log_batch_when_nothing_is_learned(data):
    for objective in ("contrast", "words"):
        method = make("clip", data, objective=objective)
        views = views_of(method, data)
        with torch.no_grad():
            for part in (method.words,) if objective == "words" else (method.image_projection, method.text_projection):
                part.weight.zero_()
            if objective == "words":
                method.words.bias.zero_()
            term = float(method({**views, "caption": torch.arange(8)})[objective])
        assert term == pytest.approx(method.plateau(8)[objective], rel=1e-5)


def test_the_scale_starts_at_its_value_and_stays_in_its_range():
    for objective, start in (("contrast", 0.07), ("sigmoid", 0.1)):
        method = make("clip", objective=objective)
        assert float(method.log_scale.detach().exp()) == pytest.approx(1 / start)
        for value, kept in ((9.0, 100.0), (-3.0, 1.0)):
            with torch.no_grad():
                method.log_scale.fill_(value)
            method.after_step()
            assert float(method.log_scale.detach().exp()) == pytest.approx(kept)


def test_views_depend_on_the_sample_alone_and_captions_on_the_epoch(data):
    method = make("clip", data)
    whole, part = views_of(method, data), views_of(method, data, [5, 2])
    for key, value in part.items():
        torch.testing.assert_close(value[0], whole[key][5])
        torch.testing.assert_close(value[1], whole[key][2])
    batch = data.batch(np.arange(8))
    seen = [drawn_captions(batch, Draws(0, e, 0, batch["key"])) for e in range(30)]
    for i, captions in enumerate(batch["captions"]):
        counted = [sum(texts[i] == c for texts in seen) for c in captions]
        assert sum(counted) == 30 and min(counted) >= 2
    assert len(text_keys(["a", "b", "a"]).unique()) == 2


def test_words_are_learned_from_the_captions_and_kept_with_the_method(data):
    method = make("clip", data)
    assert len(method.tokenizer.encode("there are red lines")) == 2 + 4
    assert len(make("clip").tokenizer.encode("there are red lines")) == 2 + 16
    assert method.tokenizer.vocab == make("clip").tokenizer.vocab == 600
    assert make("clip", data, tokenizer="bytes").prepared == {}


def test_a_frozen_text_network_keeps_its_weights(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {w: k for k, w in enumerate(["[PAD]", "[UNK]", "red", "green", "lines", "across", "down"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]").save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    name = f"hf:{tmp_path}"
    method = make("clip", data, text=name, tokenizer=name, freeze_text=True).train()
    assert not method.text.training and method.prepared == {}
    total(method(views_of(method, data))).backward()
    assert all(p.grad is None for p in method.text.parameters()) and method.text_projection.weight.grad is not None
    with pytest.raises(UserError, match="words of its own; set tokenizer=hf"):
        make("clip", text=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lines"))


def start(folder, out, **changes):
    given = {"backbone": "resnet8", "image_size": SIDE, "epochs": 2, "batch_size": 12, "workers": 0, "log_every": 1}
    small = {"out": 16, "text_width": 16, "text_layers": 1, "text_heads": 2, "vocab": 600}
    return eyespot.pretrain("clip", data=folder, out=out, set_=small, **(given | changes))


def test_a_run_comes_back_with_its_words(folder, tmp_path):
    run = start(folder, tmp_path / "whole")
    method = load_method(run.path).eval()
    texts = ["red lines across", "never said before"]
    with torch.no_grad():
        first = method.text_features(texts)
    assert len(method.tokenizer.encode("there are red lines")) == 6
    again = load_method(run.path).eval()
    with torch.no_grad():
        assert torch.equal(again.text_features(texts), first)


def test_pictures_without_captions_are_refused_in_one_sentence(folder, tmp_path):
    from shutil import copytree, ignore_patterns

    bare = copytree(folder, tmp_path / "bare", ignore=ignore_patterns("captions.tsv"))
    with pytest.raises(UserError, match=r"No picture of .* has a caption"):
        start(bare, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "grounded_sentences"])
def test_one_process_equals_two(name, tmp_path):
    for world in (1, 2):
        run_processes(Path(__file__).parent / "pair_processes.py", [str(tmp_path), name], world, tmp_path)
    one, two = (torch.load(tmp_path / f"{name}-{world}.pt", weights_only=True) for world in (1, 2))
    for key, value in one["gradient"].items():
        scale = max(float(value.norm()), 1e-6)
        assert float((value - two["gradient"][key]).norm()) / scale < 1e-9, key
    for key, value in one["weights"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, two["weights"][key], rtol=0, atol=1e-8, msg=key)


def unseen_accuracy(method, data):
    with torch.no_grad():
        method.eval()
        image = method.image_features(clean(data.batch(np.arange(len(data)))["image"], SIDE))
        labels = data.labels
        kinds = sorted(set(labels.tolist()))
        prompts = [[t.format(*Lines.classes[k].split()) for t in ("{} lines {}", "{} and {}")] for k in kinds]
        own = torch.tensor([kinds.index(k) for k in labels.tolist()])
        return zero_shot.run(method, image, own, prompts)["top1"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_words_find_combinations_that_were_never_seen(objective):
    """Trained on twelve of sixteen pairs of colour and pattern, tested on the other four: chance is 25 %."""
    train, test = lines(384), lines(64, seed=1, unseen=True)
    given = {"objective": objective, "text": "bag", "crop_min": 1.0}
    method = make("clip", train, batch=64, small=False, **given)
    before = unseen_accuracy(method, test)
    recipe = replace(method.recipe, warmup_epochs=1)
    fit(method.train(), train, Plan(recipe, 3e-3, 64, 6, 150, 25.0, log_every=30))
    after = unseen_accuracy(method, test)
    # 2 standard errors on 64 pictures are about 12 points
    assert after > before + 12 and after > 40, (before, after)
