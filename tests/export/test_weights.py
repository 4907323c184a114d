"""Weights under the names of timm, torchvision and transformers: read back by those libraries, and by ours."""

from __future__ import annotations

import importlib.util
import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import eyespot
from eyespot.errors import UserError
from eyespot.nets.start import Target, starting_backbone

TINY = {"layers": [1, 1, 1, 1]}
HF = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the extra huggingface")

# (format, name, size, channels, options of the net)
CASES = [
    ("timm", "resnet18", 96, 3, TINY),
    ("timm", "resnet18", 32, 4, TINY),
    ("timm", "resnet18d", 32, 3, TINY),
    ("timm", "vit_micro", 32, 3, {}),
    ("timm", "vit_micro", 32, 1, {"pooling": "native"}),
    ("timm", "vit_micro", 32, 4, {"class_token": False, "registers": 2}),
    ("timm", "vit_small", 64, 3, {"depth": 2}),
    ("timm", "vit_small_patch14_reg4_dinov2", 28, 3, {"depth": 2}),
    ("timm", "vit_base_patch16_siglip_224", 32, 3, {"depth": 1, "embed_dim": 32, "num_heads": 2, "pooling": "avg"}),
    ("timm", "mobilenetv4_conv_small_050", 64, 1, {}),
    ("timm", "test_convnext", 64, 4, {}),
    ("timm", "swinv2_cr_tiny_ns_224", 64, 3, {"depths": [1, 1, 1, 1], "embed_dim": 24}),
    ("timm", "torchvision/resnet18", 64, 3, {"small_stem": False}),
    ("torchvision", "torchvision/resnet18", 32, 1, {}),
    ("torchvision", "resnet18", 64, 4, {"small_stem": False}),
    ("torchvision", "vit_micro", 32, 4, {}),
    ("torchvision", "vit_nano", 32, 3, {"pooling": "native"}),
    ("torchvision", "torchvision/mobilenet_v3_small", 64, 1, {}),
    ("torchvision", "torchvision/squeezenet1_1", 64, 3, {}),
    pytest.param("huggingface", "resnet18", 96, 3, TINY, marks=HF),
    pytest.param("huggingface", "resnet50", 64, 1, {**TINY, "small_stem": False}, marks=HF),
    pytest.param("huggingface", "torchvision/resnet18", 64, 3, {"small_stem": False}, marks=HF),
    pytest.param("huggingface", "vit_micro", 32, 3, {}, marks=HF),
    pytest.param("huggingface", "vit_micro", 32, 4, {"pooling": "native"}, marks=HF),
    pytest.param("huggingface", "vit_micro", 32, 1, {"registers": 2}, marks=HF),
    pytest.param("huggingface", "vit_small_patch14_dinov2", 28, 3, {"depth": 2}, marks=HF),
    pytest.param("huggingface", "vit_small_patch14_reg4_dinov2", 28, 3, {"depth": 2}, marks=HF),
    pytest.param("huggingface", "mobilenetv4_conv_small_050", 64, 4, {}, marks=HF),
    pytest.param("huggingface", "test_convnext", 64, 3, {}, marks=HF),
]
MODEL_TYPES = {
    "resnet18": "resnet",
    "torchvision/resnet18": "resnet",
    "vit_micro": "vit",
    "test_convnext": "timm_wrapper",
}


@pytest.mark.parametrize(("format", "name", "size", "channels", "options"), CASES)
def test_another_library_gives_the_same_features_and_init_the_same_net(
    tmp_path, trained, used, format, name, size, channels, options
):
    net = trained(name, size, channels, **options)
    out = tmp_path / ("hf" if format == "huggingface" else "w.safetensors")
    done = eyespot.export(net, format=format, out=out)
    assert done["matched"] == done["tensors"] == len(net.net.state_dict())
    assert done["largest_difference"] <= 1e-5 * done["largest_feature"] and done["largest_feature"] > 0
    assert done["reader"].startswith({"huggingface": "transformers"}.get(format, format))
    assert [p.name for p in tmp_path.iterdir()] == [out.name], "nothing else may be left"
    pixels = torch.rand(2, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(used(done, pixels), net(pixels), rtol=1e-4, atol=1e-5)
    again, report = starting_backbone(out, Target(channels, size))
    assert (again.name, type(again), again.describe()) == (net.name, type(net), net.describe())
    state = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items()) and len(state) == len(
        again.state_dict()
    )
    assert report.matched == report.total and not report.missing and not report.differs and not report.adapted


def test_what_a_safetensors_file_says_of_its_pictures(tmp_path, trained):
    net = trained("vit_nano", 32, 4)
    eyespot.export(net, format="timm", out=tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        said = file.metadata()
    assert said["format"] == "pt" and json.loads(said["mean"]) == pytest.approx([0.41, 0.42, 0.43, 0.44])
    assert json.loads(said["std"]) == pytest.approx([0.21, 0.22, 0.23, 0.24])
    assert (said["channels"], said["image_size"], said["pixel_range"]) == ("4", "32", "[0, 1]")
    assert said["normalisation"] == "before the net: (pixels - mean) / std" and "bilinear" in said["resize"]
    assert said["architecture"] == "vit_base_patch16_224" and json.loads(said["model_args"])["depth"] == 3
    assert json.loads(said["eyespot"])["backbone"] == net.describe()
    theirs = timm.create_model(said["architecture"], num_classes=0, **json.loads(said["model_args"]))
    theirs.load_state_dict(load_file(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("format", "name", "options", "sentence"),
    [
        ("timm", "resnet8", {}, "net 'resnet8' has no equal in timm; use --format onnx"),
        ("torchvision", "resnet8", {}, "net 'resnet8' has no equal in torchvision"),
        ("torchvision", "vit_micro", {"registers": 1}, "a class token, and neither registers nor layer scale"),
        ("torchvision", "vit_micro", {"class_token": False}, "differs in class_token and 1 more"),
        ("torchvision", "test_convnext", {}, "'test_convnext' has no equal in torchvision"),
        ("torchvision", "resnet18", TINY, "its net of that name differs in layer1.1.bn1.bias and 47 more"),
        ("timm", "torchvision/squeezenet1_1", {}, "no equal in timm"),
        pytest.param("huggingface", "resnet8", {}, "'resnet8' has no equal in transformers", marks=HF),
        pytest.param("huggingface", "resnet18", TINY, r"stem for small pictures cannot be said", marks=HF),
    ],
)
def test_nets_that_a_library_lacks_are_refused(tmp_path, trained, format, name, options, sentence):
    out = tmp_path / ("hf" if format == "huggingface" else "w.safetensors")
    with pytest.raises(UserError, match=sentence) as caught:
        eyespot.export(trained(name, 32, 3, **options), format=format, out=out)
    assert "\n" not in str(caught.value) and "use --format onnx" in str(caught.value)
    assert not list(tmp_path.iterdir())


@HF
@pytest.mark.parametrize("name", ["resnet18", "vit_micro", "test_convnext"])
def test_a_hugging_face_folder(tmp_path, trained, name):
    import numpy as np
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    from eyespot.views.image import clean

    size = 96 if name == "resnet18" else 64
    net = trained(name, size, 3, **(TINY if name == "resnet18" else {}))
    eyespot.export(net, format="huggingface", out=tmp_path / "hf")
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {p.name for p in (tmp_path / "hf").iterdir()} == names
    assert AutoConfig.from_pretrained(tmp_path / "hf").model_type == MODEL_TYPES[name]
    assert AutoModel.from_pretrained(tmp_path / "hf").config.eyespot["image_size"] == size
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    g = torch.Generator().manual_seed(0)
    small = torch.rand(3, 6, 8, generator=g)
    picture = torch.nn.functional.interpolate(small[None], (150, 200), mode="bilinear")[0].mul(255).byte()
    theirs = processor(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    ours = net.normalize(clean([picture], size))
    assert theirs.shape == ours.shape
    assert float((theirs - ours).abs().mean()) < 0.02, "the folder must bring pictures to the net as eyespot does"


@HF
def test_a_wrapped_folder_is_timm_s_too(tmp_path, trained):
    net = trained("test_convnext", 64, 3)
    eyespot.export(net, format="huggingface", out=tmp_path / "hf")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True).eval()
    assert theirs.pretrained_cfg["mean"] == pytest.approx([0.41, 0.42, 0.43])
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(net.normalize(x)), net(x), rtol=1e-4, atol=1e-5)
