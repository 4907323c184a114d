"""Grounded sentences: its loss, its heads, what is frozen, and that sentences of one meaning come together."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from captioned import lines, make, views_of

from eyespot.draws import Draws
from eyespot.evaluate import sts
from eyespot.losses.image_text import head_diversity, hinge_pairs
from eyespot.methods.language.grounded_sentences import GroundedSentences, sentence
from eyespot.methods.method import total
from eyespot.nets.backbones import backbone
from eyespot.train.fit import fit
from eyespot.train.plan import Plan

NAME = "grounded_sentences"


@pytest.fixture(scope="module")
def data():
    return lines()


@pytest.mark.parametrize("heads", [1, 3])
def test_every_parameter_has_a_finite_gradient(data, heads):
    method = make(NAME, data, heads=heads).train()
    terms = method(views_of(method, data))
    assert list(terms) == ["hinge", "diversity"][: 1 + (heads > 1)]
    total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert float(method.backbone.net.conv.weight.grad.abs().sum()) > 0


def test_runs_as_its_docstring_says():
    method = GroundedSentences(backbone("resnet8", image_size=64))
    batch = {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "text": ["a red barn", "two boats"]}
    assert bool(method(method.views(batch, Draws(index=range(2))))["hinge"].isfinite())


def test_is_the_papers_loss(data):
    method = make(NAME, data, heads=2, diversity=0.5).double().eval()
    views = views_of(method, data)
    views = {k: v.double() if v.is_floating_point() else v for k, v in views.items()}
    with torch.no_grad():
        terms = method({k: v for k, v in views.items() if k != "caption"})
        image = F.normalize(method.image_projection(method.backbone(views["image"])), dim=1)
        text = method.text(views["tokens"], views["length"])
        expected = hinge_pairs(image @ F.normalize(text, dim=1).T, 0.2)
        first, second = method.text.heads
        states = method.text.states(views["tokens"], views["length"])
        mask = torch.arange(states.shape[1]) < views["length"][:, None]
        maps = [h.weights(states, mask) for h in (first, second)]
        halves = [part[:, None] for part in text.chunk(2, 1)]
        apart = sum(head_diversity(p) for p in ([first.hidden.weight, second.hidden.weight], maps, halves))
    torch.testing.assert_close(terms["hinge"], expected)
    torch.testing.assert_close(terms["diversity"], 0.5 * apart)


def test_sentences_end():
    assert [sentence(s) for s in ("a  barn", "a barn .", "Why?", "红色。", "")] == [
        *("a barn .", "a barn .", "Why?", "红色。"),
        " .",
    ]


def test_reads_its_plateau_when_nothing_is_learned(data):
    method = make(NAME, data)
    views = views_of(method, data)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
        method.image_projection.bias.fill_(1.0)
        found = float(method({**views, "caption": torch.arange(8)})["hinge"])
    assert found == pytest.approx(method.plateau(8)["hinge"], rel=1e-5)


def test_a_frozen_network_of_pictures_stays_as_it_is(data):
    method = make(NAME, data, freeze=True).train()
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    total(method(views_of(method, data))).backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    assert method.image_projection.weight.grad is not None and not method.backbone.training


def test_any_script_and_the_papers_characters():
    texts = ["hình vuông xanh", "红色的船", "a red barn"]
    with torch.no_grad():
        for kind, differ in (("bytes", True), ("printable", False)):
            x = make(NAME, tokenizer=kind).eval().text_features([*texts, "红色的马"])
            assert torch.equal(x[1], x[3]) != differ
            assert bool(x.isfinite().all())


@pytest.mark.slow
def test_sentences_of_one_meaning_come_together():
    """Words of one colour and pattern share no more letters after training, but their vectors lie nearer."""
    train = lines(384)
    method = make(NAME, train, batch=32, small=False, text_width=32, crop_min=1.0)
    test = lines(96, seed=1)
    rows = sts.caption_pairs(test)
    scores = torch.tensor([float(r["score"]) for r in rows])

    def correlation():
        method.eval()
        with torch.no_grad():
            sides = [method.text_features([r[c] for r in rows]) for c in sts.COLUMNS[:2]]
        return sts.run(*sides, scores)["spearman"]

    before = correlation()
    fit(method.train(), train, Plan(replace(method.recipe, warmup_epochs=1), 3e-3, 32, 12, 120, 10.0, log_every=40))
    after = correlation()
    assert np.isfinite(before) and after > before + 10, (before, after)
