"""`--init` of a whole run: what is loaded, what is recorded and printed, and how it goes with `--resume`."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eyespot
from eyespot import cli
from eyespot.errors import UserError
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.nets.start import Target, starting_backbone

SIDE = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    g = torch.Generator().manual_seed(0)
    for i in range(24):
        place = root / f"class{i % 2}"
        place.mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{i:03d}.png")
    return root


def start(pictures, out, **changes):
    options = {"data": pictures, "out": out, "image_size": SIDE, "epochs": 1, "batch_size": 12, "workers": 0}
    return eyespot.pretrain("simclr", **(options | changes))


@pytest.fixture
def at_the_start(monkeypatch):
    """The backbone as training receives it."""
    from eyespot.train import pretrain as module

    seen = []

    def fit(method, *_, **__):
        seen.append({k: v.clone() for k, v in method.backbone.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", fit)
    return seen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    net = backbone("resnet8", image_size=SIDE)
    folder = tmp_path_factory.mktemp("run") / "a"
    save_backbone(net, folder)
    return folder


def test_training_starts_from_the_weights(pictures, tmp_path, run, at_the_start):
    heard = []
    with pytest.raises(KeyboardInterrupt):
        start(pictures, tmp_path / "b", init=run, listener=heard.append)
    assert at_the_start[0].keys() == load_file(run / "backbone.safetensors").keys()
    assert all(torch.equal(at_the_start[0][k], v) for k, v in load_file(run / "backbone.safetensors").items())
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["init"]["source"] == str(run) and config["init"]["kind"] == "run"
    assert config["init"]["matched"] == config["init"]["total"] > 20
    assert config["backbone"]["name"] == "resnet8", "the run's net, not the recipe's"
    assert config["auto"]["backbone"] == f"resnet8: from {run}"
    notes = [r for r in heard if r["kind"] == "note" and "init" in r]
    assert notes[0]["text"].startswith(
        f"{config['init']['total']} of {config['init']['total']} tensors of resnet8 from"
    )


def test_without_init_none_is_recorded(pictures, tmp_path, at_the_start):
    with pytest.raises(KeyboardInterrupt):
        start(pictures, tmp_path / "b", backbone="resnet8")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["init"] is None


def test_a_file_into_a_named_backbone(pictures, tmp_path, at_the_start):
    trained = timm.create_model("resnet18").state_dict()
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in trained.items()}}, tmp_path / "m.pth.tar")
    with pytest.raises(KeyboardInterrupt):
        start(pictures, tmp_path / "b", init=tmp_path / "m.pth.tar", backbone="resnet18")
    init = json.loads((tmp_path / "b" / "config.json").read_text())["init"]
    assert init["differs"] == {"conv1.weight": "[64, 3, 7, 7] instead of [64, 3, 3, 3]"}, "the small stem at 32 px"
    assert init["prefix"] == "state_dict.module.encoder_q." and init["unexpected"] == ["fc.bias", "fc.weight"]
    assert torch.equal(at_the_start[0]["net.layer4.0.conv1.weight"], trained["layer4.0.conv1.weight"])


def test_resume_takes_the_checkpoint_and_needs_the_source_no_more(pictures, tmp_path, run):
    source = tmp_path / "source"
    shutil.copytree(run, source)
    first = start(pictures, tmp_path / "b", init=source, epochs=1)
    weights = load_file(first.path / "backbone.safetensors")
    shutil.rmtree(source)
    again = start(pictures, tmp_path / "b", init=source, resume=True)
    assert all(torch.equal(load_file(again.path / "backbone.safetensors")[k], v) for k, v in weights.items())
    start(pictures, tmp_path / "b", resume=True)  # and --init may be left out
    assert again.config["init"] == first.config["init"] and again.config["init"]["matched"] > 20
    with pytest.raises(UserError, match=r"--init elsewhere differs from the run in .*leave it out to resume"):
        start(pictures, tmp_path / "b", init="elsewhere", resume=True)


def test_resume_before_the_first_checkpoint_starts_from_the_source_again(pictures, tmp_path, run, at_the_start):
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            start(pictures, tmp_path / "b", init=run, resume=resume)
    assert all(torch.equal(at_the_start[0][k], at_the_start[1][k]) for k in at_the_start[0])


def test_an_eyespot_checkpoint_is_a_source_too(pictures, tmp_path):
    whole = start(pictures, tmp_path / "a", backbone="resnet8")
    net, report = starting_backbone(whole.path / "checkpoint.pt", Target(3, SIDE, "resnet8"))
    assert report.prefix == "method.backbone.net." and report.matched == report.total
    trained = load_backbone(whole.path)
    assert all(torch.equal(net.net.state_dict()[k], v) for k, v in trained.net.state_dict().items())


def test_adapters(pictures, tmp_path, run, at_the_start):
    options = {"data": pictures, "out": tmp_path / "b", "image_size": SIDE, "epochs": 1, "batch_size": 12}
    with pytest.raises(KeyboardInterrupt):
        eyespot.adapt("core_tuning", run, **options)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["init"]["kind"] == "run"
    with pytest.raises(KeyboardInterrupt):
        eyespot.adapt("core_tuning", "resnet8", **(options | {"out": tmp_path / "c"}))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["init"] is None and "random weights" in config["auto"]["backbone"]
    other = options | {"out": tmp_path / "d"}
    with pytest.raises(UserError, match="leave --init out"):
        eyespot.adapt("core_tuning", run, init=run, **other)
    with pytest.raises(UserError, match="--pretrained is for the name of a backbone"):
        eyespot.adapt("core_tuning", run, pretrained=True, **other)
    with pytest.raises(UserError, match="both name the net"):
        eyespot.adapt("core_tuning", "resnet8", backbone="resnet14", **other)
    with pytest.raises(UserError, match="no published weights of 'resnet8'"):
        eyespot.adapt("core_tuning", "resnet8", pretrained=True, **other)


def test_the_command_line_prints_the_report_and_refuses_in_one_sentence(pictures, tmp_path, run, capsys):
    words = ["pretrain", "simclr", "--data", str(pictures), "--image-size", "32", "--epochs", "1", "--batch-size", "12"]
    words += ["--workers", "0", "--out", str(tmp_path / "b")]
    assert cli.main([*words, "--init", str(run)]) == 0
    assert f"tensors of resnet8 from '{run}'" in "".join(capsys.readouterr().err.split("\n"))
    broken = load_file(run / "backbone.safetensors")
    broken["net.conv.weight"][0] = float("nan")
    save_file(broken, tmp_path / "broken.safetensors")
    words[-1] = str(tmp_path / "c")
    assert cli.main([*words, "--backbone", "resnet8", "--init", str(tmp_path / "broken.safetensors")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not finite in 1 tensors (conv.weight)" in err
    assert not (tmp_path / "c" / "config.json").exists()
