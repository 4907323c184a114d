"""One suite over every method of other modalities than pictures: clips, sounds, clouds, pictures with captions ..."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from kinds import KINDS, batch_of, kind_of, made, names, options
from processes import run_processes

import eyespot
from eyespot import modality
from eyespot.draws import Draws
from eyespot.methods.method import total
from eyespot.train.build import load_method

pytestmark = pytest.mark.xdist_group("kinds")  # the made data is written once
JOB = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The made data of each modality that is asked for."""
    root, there = tmp_path_factory.mktemp("kinds"), {}

    def of(name):
        kind = kind_of(name)
        if kind not in there:
            (root / kind).mkdir()
            there[kind] = KINDS[kind].make(root / kind)
        return there[kind]

    return of


def tensors(value, name=""):
    """Every tensor in nested views, by name."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, inner in items for k, v in tensors(inner, f"{name}/{key}").items()}


@pytest.mark.parametrize("name", names())
def test_shapes_and_finite_gradients(name, folders, tmp_path):
    data, method = made(name, folders(name), tmp_path)
    draws = Draws(0, index=range(6))
    views = method.views(batch_of(method, data, range(6), draws), draws)
    terms = method.train()(views, draws)
    assert terms and all(isinstance(v, torch.Tensor) and v.dim() == 0 for v in terms.values())
    total(terms).backward()
    for n, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{n} has no gradient"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of {n} is not finite"
    assert any(float(p.grad.abs().sum()) > 0 for p in method.backbone.parameters() if p.requires_grad)
    assert all(bool(v.isfinite()) for v in method(views).values())  # without draws, outside the engine


@pytest.mark.parametrize("name", names())
def test_views_are_a_function_of_the_sample_alone(name, folders, tmp_path):
    data, method = made(name, folders(name), tmp_path)
    found = []
    for rows in ([1, 2, 3, 4], [3, 4]):
        draws = Draws(5, 2, 7, rows)
        views = tensors(method.views(batch_of(method, data, rows, draws), draws))
        found.append({k: v for k, v in views.items() if len(v) == len(rows)})
    whole, part = found
    assert part and whole.keys() == part.keys()
    for key, value in part.items():
        torch.testing.assert_close(whole[key][2:], value, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", names())
def test_embeds_the_same_vector_whatever_the_batch(name, folders, tmp_path):
    data, method = made(name, folders(name), tmp_path)
    clean = modality.of_backbone(method.backbone).clean
    inputs = clean(data.batch(range(4)), method.config.image_size)
    with torch.no_grad():
        whole, single = method.eval().embed(inputs), method.embed(modality.rows(inputs, 2, 3))
    assert whole.shape == (4, method.backbone.embed_dim)
    assert torch.allclose(whole[2:3], single, atol=1e-4) and float(whole.std(0).mean()) > 0


@pytest.mark.parametrize("name", names())
def test_a_run_from_a_path_is_complete_and_measured(name, folders, tmp_path):
    data = folders(name)
    run = eyespot.pretrain(name, **options(name, data, tmp_path / "run", pictures=True))
    assert run.verdict["state"] in ("learning", "stalled", "starting", "collapsed") and run.metrics[-1]["step"] == 8
    method = load_method(run.path).eval()
    assert all(torch.equal(v, method.backbone.state_dict()[k]) for k, v in run.backbone.state_dict().items())
    told = eyespot.embed(run, data=data, out=tmp_path / "vectors.parquet", workers=0)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert told["rows"] == table.num_rows == 24 and np.isfinite(table["vector"].to_pylist()).all()
    if KINDS[kind_of(name)].labels:
        result = eyespot.evaluate(run, data=data, workers=0)
        assert result["classes"] == 2 and 0 <= result["top1"] <= 100 and result["floor"]["top1"] >= 0


@pytest.mark.parametrize("name", names())
def test_resumes_to_the_bit(name, folders, tmp_path, monkeypatch):
    from eyespot.train import fit as loop

    whole = eyespot.pretrain(name, **options(name, folders(name), tmp_path / "whole"))
    real, count = loop.training_step, []

    class Stop(Exception):
        pass

    def stops(engine, *args):
        if engine.plan.steps == 8:  # not the steps of a preparation
            if len(count) == 5:
                raise Stop
            count.append(1)
        return real(engine, *args)

    monkeypatch.setattr(loop, "training_step", stops)
    monkeypatch.setattr(loop, "side_work", lambda *a: True)
    with pytest.raises(Stop):
        eyespot.pretrain(name, **options(name, folders(name), tmp_path / "part"))
    monkeypatch.setattr(loop, "training_step", real)
    part = eyespot.pretrain(name, **options(name, folders(name), tmp_path / "part", resume=True))
    a, b = (torch.load(r.path / "checkpoint.pt", weights_only=True) for r in (whole, part))
    assert a["step"] == b["step"] == 8 and a["method"].keys() == b["method"].keys()
    for key, value in a["method"].items():
        assert torch.equal(value, b["method"][key]), key
    assert [r["step"] for r in part.metrics] == list(range(1, 9))


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    """All methods alone and on two processes, started once."""
    out = tmp_path_factory.mktemp("processes")
    for name in names():
        folders(name)
    root = folders(names()[0]).parent
    for world in (1, 2):
        run_processes(JOB, [str(out), f"--kinds={root}", *names()], world, out, timeout=1800)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", names())
def test_one_process_equals_two(results, name, how):
    one, two = (torch.load(results / f"{h}-float64" / f"{name}.pt", weights_only=True) for h in ("one", how))
    assert one["gradient"].keys() == two["gradient"].keys() and one["gradient"]
    scale = max(float(g.norm()) for g in one["gradient"].values())
    for key, g in one["gradient"].items():
        error = float((g - two["gradient"][key]).norm()) / max(float(g.norm()), 1e-5 * scale)
        assert error < 1e-10, f"gradient of {key} differs by {error:.1e}"  # a gradient that is 0 is rounding
    for key, w in one["weights"].items():
        error = float((w.double() - two["weights"][key]).abs().max()) if w.numel() else 0.0
        assert error < 1e-8, f"{key} differs by {error:.1e} after the run"
