"""The verdict on real methods that were broken on purpose, each trained by the engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from bench import SIDE, make, plan_of, stripes
from torch.nn.functional import cosine_similarity

from eyespot.errors import NonFiniteLoss
from eyespot.train.fit import fit
from eyespot.train.watch import RunProbe


def verdict(method, data, steps, lr, **recipe):
    """The final verdict on a run of the engine."""
    plan = plan_of(method, data, batch=64, steps=steps)
    plan = replace(plan, lr=lr, recipe=replace(plan.recipe, schedule="constant", warmup_epochs=0, **recipe))
    probe = RunProbe(method, data, SIDE, torch.device("cpu"), None)
    try:
        fit(method, data, plan, probe=probe)
    except NonFiniteLoss as error:
        return probe.failed(str(error))
    return probe.finish(method)


def make_on(data, name):
    return make(name, data, batch=64, small=False)


def test_byol_without_predictor_and_stop_gradient_collapses():
    data = stripes(256)
    method = make_on(data, "byol")

    def encode(views, draws=None):
        first, second = (method.projector(method.backbone(v)) for v in (views["view1"], views["view2"]))
        return {"query": first, "key": second}

    def loss(encoded, draws=None):
        return {"prediction": 2 - 2 * cosine_similarity(encoded["query"], encoded["key"]).mean()}

    method.encode, method.loss = encode, loss
    found = verdict(method, data, 150, 3e-3, optimizer="adamw")
    assert found["state"] == "collapsed", found
    assert found["remedy"]


def test_dino_without_centring_collapses():
    data = stripes(256)
    method = make_on(data, "dino")
    method.after_step = lambda: (method._means.clear(), method.teacher.update(method._student(), 0.9))
    found = verdict(method, data, 200, 3e-3, optimizer="adamw")
    assert found["state"] == "collapsed", found


@pytest.mark.parametrize(("name", "reads"), [("simclr", "nt_xent"), ("moco_v2", "info_nce")])
def test_a_rate_that_moves_nothing_stalls_at_the_plateau(name, reads):
    data = stripes(256)
    found = verdict(make_on(data, name), data, 60, 1e-9, optimizer="sgd")
    assert found["state"] == "stalled", found
    assert found["numbers"]["loss"] == pytest.approx(found["numbers"][f"plateau_{reads}"], rel=0.1)


@pytest.mark.parametrize("name", ["simclr", "supervised"])
def test_a_rate_that_is_far_too_high_is_no_success(name):
    data = stripes(256)
    found = verdict(make_on(data, name), data, 60, 300.0, optimizer="sgd")
    assert found["state"] in ("unstable", "collapsed"), found
