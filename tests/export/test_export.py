"""The verb: what it takes, where it writes, what it prints, and that nothing wrong is left behind."""

from __future__ import annotations

import json

import pytest
import torch

import eyespot
from eyespot import cli
from eyespot.errors import UserError
from eyespot.export import export as module
from eyespot.nets.backbones import save_backbone


@pytest.fixture
def run(tmp_path, trained):
    folder = tmp_path / "run"
    save_backbone(trained("vit_nano", 32), folder)
    (folder / "config.json").write_text(json.dumps({"method": "simclr", "data": "photos"}))
    return folder


def test_a_run_and_its_facts(run, tmp_path):
    done = eyespot.export(run, format="timm", out=tmp_path / "new" / "w.safetensors")
    assert (done["run"], done["format"], done["out"]) == (str(run), "timm", str(tmp_path / "new" / "w.safetensors"))
    assert (done["backbone"], done["channels"], done["image_size"], done["embed_dim"]) == ("vit_nano", 3, 32, 64)
    assert done["bytes"] == (tmp_path / "new" / "w.safetensors").stat().st_size
    assert done["compared"] == ["2 x 3 x 32 x 32", "3 x 3 x 32 x 32", "1 x 3 x 32 x 32"]
    from safetensors import safe_open

    with safe_open(tmp_path / "new" / "w.safetensors", "pt") as file:
        assert (file.metadata()["method"], file.metadata()["data"]) == ("simclr", "photos")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_line(run, tmp_path, capsys, as_json):
    out = tmp_path / "w.safetensors"
    words = ["export", str(run), "--format", "timm", "--out", str(out)]
    assert cli.main([*words, "--json"] if as_json else words) == 0
    printed = capsys.readouterr().out
    if as_json:
        done = json.loads(printed)
        assert done["matched"] == done["tensors"] == 42 and done["largest_difference"] < 1e-5
        return
    lines = printed.splitlines()
    assert lines[0].startswith(f"written   {out} (") and "3 x 32 x 32 pixels to 64 features" in lines[0]
    assert lines[1].startswith("read by   timm ") and lines[1].endswith("42 of 42 tensors equal")
    assert lines[2].startswith("features  differ by ") and "2 x 3 x 32 x 32" in lines[2]
    assert "    net = timm.create_model(" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "tim"], "it takes one of timm, torchvision.*did you mean 'timm'"),
        (["--out", "w.onnx", "--format", "timm"], r"does not end in .safetensors, as --format timm needs"),
        (["--out", "w.safetensors", "--format", "onnx"], r"does not end in .onnx"),
        (["--format", "timm"], "--out is missing"),
        (["--out", "w.safetensors"], "--format is missing"),
        (["--out", "w.safetensors", "--format", "timm", "--tolerance", "0"], "--tolerance cannot be 0"),
    ],
)
def test_mistakes_on_the_command_line(run, capsys, words, sentence):
    import re

    assert cli.main(["export", str(run), *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"run": "resnet18"}, "is a name, not a run; add --pretrained"),
        ({"run": "runs/nowhere"}, "no run 'runs/nowhere'"),
        ({"run": 3}, "cannot be a int"),
        ({"run": torch.nn.Linear(2, 2)}, "A Linear cannot be exported; wrap it"),
        ({"pretrained": True}, "--pretrained is for the name of a backbone"),
        ({"image_size": 64}, "was trained at 32 px; leave --image-size out"),
    ],
)
def test_mistakes_in_python(run, tmp_path, given, sentence):
    options = {"run": run, "format": "timm", "out": tmp_path / "w.safetensors"} | given
    with pytest.raises(UserError, match=sentence):
        eyespot.export(options.pop("run"), **options)


def test_the_run_s_own_files_and_others_are_safe(run, tmp_path):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(UserError, match="the run's own file"):
        eyespot.export(run, format="timm", out=run / "backbone.safetensors")
    with pytest.raises(UserError, match="holds other files; name a new folder"):
        eyespot.export(run, format="huggingface", out=run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        eyespot.export(run, format="huggingface", out=tmp_path / "file")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(UserError, match="is a folder; name a file"):
        eyespot.export(run, format="timm", out=tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="cannot be written"):
        eyespot.export(run, format="timm", out=tmp_path / "file" / "w.safetensors")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_an_export_may_be_repeated(run, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra huggingface")
    for format, out in (("timm", tmp_path / "w.safetensors"), ("huggingface", tmp_path / "hf")):
        first = eyespot.export(run, format=format, out=out)
        assert eyespot.export(run, format=format, out=out)["bytes"] == first["bytes"]


@pytest.mark.parametrize("wrong", ["features", "tensors", "not a number"])
def test_a_copy_that_differs_is_not_left(run, tmp_path, monkeypatch, wrong):
    from eyespot.export import timm as format

    real = format.write

    def broken(*args):
        written = real(*args)
        right = written.features
        if wrong == "features":
            written.features = lambda pixels: right(pixels) * 1.001
        elif wrong == "not a number":
            written.features = lambda pixels: right(pixels) * float("nan")
        else:
            written.matched -= 1
        return written

    monkeypatch.setattr(format, "write", broken)
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"what was there before")
    with pytest.raises(UserError, match=r"differs from the backbone: 4\d of 42 tensors .*was not written"):
        eyespot.export(run, format="timm", out=out)
    assert out.read_bytes() == b"what was there before"
    assert {p.name for p in tmp_path.iterdir()} == {"run", "w.safetensors"}
    if wrong == "features":
        assert eyespot.export(run, format="timm", out=out, tolerance=0.1)["tolerance"] == 0.1


def test_a_broken_backbone_is_not_exported(run, tmp_path, trained):
    net = trained("vit_nano", 32)
    with torch.no_grad():
        net.net.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite, so its training broke"):
        eyespot.export(net, format="timm", out=tmp_path / "w.safetensors")


def test_the_given_net_stays_as_it_was(tmp_path, trained):
    net = trained("resnet8", 32).double().train()
    eyespot.export(net, format="torchscript", out=tmp_path / "n.pt")
    assert net.training and next(net.parameters()).dtype == torch.float64 and next(net.parameters()).requires_grad


def test_published_weights_by_name(tmp_path, monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    done = eyespot.export("test_vit", format="timm", out=tmp_path / "w.safetensors", pretrained=True)
    assert (done["backbone"], done["image_size"]) == ("test_vit", 160)


def test_formats_agree_with_the_options():
    from eyespot.declare import option_fields
    from eyespot.fields import kind_of
    from eyespot.options import ExportOptions

    about = next(f for f in option_fields(ExportOptions) if f.name == "format")
    assert set(kind_of(about.annotation).parts) == set(module.FORMATS)


def test_public_function_and_package():
    from eyespot.export import export

    assert callable(eyespot.export) and "export" in eyespot.__all__ and eyespot.export.export is export


def test_the_code_of_the_page_runs(root, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    page = (root / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    left: dict = {}
    exec(compile(code, "docs/export.md", "exec"), left)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("54 of 54 tensors") and said[1] == "True"
    assert said[2] == "54 of 54 tensors of vit_micro from 'vit.safetensors'"
    state = left["net"].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in left["again"].state_dict().items())


def test_a_name_that_no_library_has_is_told_before_its_weights_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="resnet18"):
        eyespot.export("resnet188", format="onnx", out=tmp_path / "a.onnx")
    with pytest.raises(UserError, match="--pretrained"):
        eyespot.export("resnet18", format="onnx", out=tmp_path / "a.onnx")
