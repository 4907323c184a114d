"""Programs that hold the net and its normalisation: TorchScript, torch.export, ONNX."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

import eyespot
from eyespot.errors import MissingExtra, UserError

TINY = {"layers": [1, 1, 1, 1]}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX = pytest.mark.skipif(not all(importlib.util.find_spec(p) for p in PACKAGES), reason="needs the extra onnx")
ENDINGS = {"torchscript": ".pt", "torch_export": ".pt2", "onnx": ".onnx"}
ANY_SIZE = ["batch", "height", "width"]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:FutureWarning")
CASES = [
    ("torchscript", "resnet8", 32, 3, {}, ANY_SIZE),
    ("torchscript", "resnet18", 64, 4, TINY, ANY_SIZE),
    ("torchscript", "vit_micro", 32, 1, {}, ["batch"]),
    ("torchscript", "mobilenetv4_conv_small_050", 64, 3, {}, ANY_SIZE),
    ("torchscript", "torchvision/vit_b_32", 32, 3, {"hidden_dim": 16, "num_heads": 2, "mlp_dim": 16}, ["batch"]),
    ("torch_export", "resnet8", 32, 4, {}, ANY_SIZE),
    ("torch_export", "vit_small", 32, 3, {"depth": 2}, ["batch"]),
    pytest.param("torch_export", "test_convnext", 64, 1, {}, ANY_SIZE, marks=pytest.mark.slow),
    pytest.param("onnx", "resnet8", 32, 3, {}, ANY_SIZE, marks=ONNX),
    pytest.param("onnx", "resnet18", 96, 4, TINY, ANY_SIZE, marks=ONNX),
    pytest.param("onnx", "vit_micro", 32, 1, {"pooling": "native"}, ["batch"], marks=ONNX),
    pytest.param("onnx", "mobilenetv4_conv_small_050", 64, 3, {}, ANY_SIZE, marks=[ONNX, pytest.mark.slow]),
    pytest.param("onnx", "torchvision/resnet18", 64, 3, {}, ANY_SIZE, marks=[ONNX, pytest.mark.slow]),
]


def torchvision_vit(net_options):
    """A small one; torchvision's names have their sizes fixed."""
    import torchvision

    from eyespot.nets.zoo import TorchvisionViT

    net = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=1, **net_options)
    net.heads = torch.nn.Sequential()
    return TorchvisionViT(net, name="torchvision/vit_b_32", channels=3, image_size=32).eval()


@pytest.mark.parametrize(("format", "name", "size", "channels", "options", "dynamic"), CASES)
def test_a_program_gives_the_same_features(tmp_path, trained, used, format, name, size, channels, options, dynamic):
    net = torchvision_vit(options) if "vit_b" in name else trained(name, size, channels, **options)
    done = eyespot.export(net, format=format, out=tmp_path / f"net{ENDINGS[format]}")
    assert done["dynamic"] == dynamic and done["matched"] == done["tensors"] > 0
    assert done["largest_difference"] <= 1e-5 * done["largest_feature"]
    assert len(done["compared"]) == 3 and [p.name for p in tmp_path.iterdir()] == [f"net{ENDINGS[format]}"]
    shapes = [(1, size, size), (5, size, size)] + ([(2, size + 32, size + 64)] if len(dynamic) > 1 else [])
    for batch, h, w in shapes:
        pixels = torch.rand(batch, channels, h, w)
        with torch.no_grad():
            torch.testing.assert_close(used(done, pixels), net(pixels), rtol=1e-4, atol=1e-4)


def said_by(path, format):
    if format == "onnx":
        import onnx

        return {p.key: p.value for p in onnx.load(str(path)).metadata_props}["eyespot"]
    files = {"eyespot.json": ""}
    load = torch.jit.load if format == "torchscript" else torch.export.load
    load(str(path), **{"_extra_files" if format == "torchscript" else "extra_files": files})
    return files["eyespot.json"]


@pytest.mark.parametrize("format", ["torchscript", "torch_export", pytest.param("onnx", marks=ONNX)])
def test_what_a_program_says_of_its_pictures(tmp_path, trained, format):
    net = trained("resnet8", 32, 4)
    out = tmp_path / f"net{ENDINGS[format]}"
    eyespot.export(net, format=format, out=out)
    said = json.loads(said_by(out, format))
    assert (said["format"], said["channels"], said["image_size"], said["pixel_range"]) == (format, 4, 32, [0, 1])
    assert said["mean"] == pytest.approx([0.41, 0.42, 0.43, 0.44]) and said["normalisation"].startswith("inside")
    assert said["backbone"] == net.describe()


@ONNX
def test_onnx_names_its_ends(tmp_path, trained):
    import onnx

    eyespot.export(trained("resnet8", 32, 1), format="onnx", out=tmp_path / "net.onnx")
    graph = onnx.load(str(tmp_path / "net.onnx")).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert (graph.input[0].name, graph.output[0].name, dims) == ("pixels", "features", ["batch", 1, "height", "width"])
    assert "backbone.net.conv.weight" in {t.name for t in graph.initializer}
    text = {p.key: p.value for p in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert json.loads(text["dynamic"]) == ["batch", "height", "width"]


def test_own_modules_become_programs(tmp_path, used):
    net = eyespot.backbone(torch.nn.Conv2d(3, 4, 3, 2), image_size=16).eval()
    done = eyespot.export(net, format="torchscript", out=tmp_path / "net.pt")
    pixels = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(used(done, pixels), net(pixels))
    with pytest.raises(UserError, match="own module 'Conv2d' has no equal in timm; use --format onnx"):
        eyespot.export(net, format="timm", out=tmp_path / "w.safetensors")


class Branching(torch.nn.Module):
    """What it computes follows from the pixels, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale * (2 if float(x.sum()) > 0 else 3)


def test_a_net_that_no_graph_holds_is_one_sentence(tmp_path):
    net = eyespot.backbone(Branching(), image_size=16).eval()
    with pytest.raises(UserError, match=r"cannot be exported as a graph .*use --format timm or torchscript") as caught:
        eyespot.export(net, format="torch_export", out=tmp_path / "net.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


class BatchBound(torch.nn.Module):
    """Its trace keeps the batch that it saw."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale * len(x)


def test_a_trace_that_is_wrong_for_another_batch_is_found_out(tmp_path):
    net = eyespot.backbone(BatchBound(), image_size=16).eval()
    with pytest.raises(UserError, match=r"differs from the backbone: .*so '.*net.pt' was not written"):
        eyespot.export(net, format="torchscript", out=tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("huggingface", "transformers")])
def test_a_missing_package_names_the_extra(tmp_path, trained, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package '{package}': install it with .*eyespot\[{format}\]"):
        eyespot.export(trained("vit_nano"), format=format, out=tmp_path / f"net{ENDINGS.get(format, '')}")
    assert not list(tmp_path.iterdir())
