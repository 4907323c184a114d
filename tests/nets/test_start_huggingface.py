"""Hugging Face folders as what a training starts from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_nets import same, saved, tiny, weights

from eyespot.errors import UserError
from eyespot.nets.architectures import checked_options, from_config
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.nets.naming import HF_DINOV2, HF_RESNET, HF_VIT, from_timm
from eyespot.nets.start import Target, starting_backbone


def hf_folder(path, config, tensors, preprocessing=None):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    saved(path / "model.safetensors", tensors)
    if preprocessing:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return path


RESNET = {"model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [64, 128, 256, 512]}
VIT = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT |= {"intermediate_size": 64, "patch_size": 8, "image_size": 32}


def test_a_resnet_of_transformers(tmp_path):
    trained = tiny(small_stem=False)
    theirs = {f"resnet.{k}": v for k, v in from_timm(weights(trained), HF_RESNET).items()}
    facts = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    folder = hf_folder(tmp_path / "hf", RESNET, theirs | {"classifier.1.bias": torch.ones(2)}, facts)
    got, report = starting_backbone(folder, Target(3, 64))
    assert same(got, trained) and got.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (report.kind, report.naming, report.prefix) == ("huggingface", "transformers ResNet", "resnet.")
    assert "transformers ResNet names, 'resnet.' left out" in report.lines()[0]


@pytest.mark.parametrize("size", [32, 64])
def test_a_vision_transformer_of_transformers(tmp_path, size):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    trained = timm.create_model("vit_base_patch16_224", num_classes=0, **options)
    folder = hf_folder(tmp_path / "hf", VIT, from_timm(trained.state_dict(), HF_VIT))
    got, report = starting_backbone(folder, Target(3, size))
    assert (got.patch, got.pooling, got.net.blocks[0].attn.num_heads) == (8, "native", 2)
    assert list(report.adapted) == ([] if size == 32 else ["pos_embed"])
    assert report.notes == ["its layer norms have epsilon 1e-12, the net's have 1e-06"]
    if size == 32:
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(got.eval()(x), trained.eval()(got.normalize(x)))


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_transformers(tmp_path, registers):
    transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, **extra
    )
    theirs = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "hf")
    got, report = starting_backbone(tmp_path / "hf", Target(3, 28))
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(got.normalize(x)).last_hidden_state
        torch.testing.assert_close(got.eval().tokens(x), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got(x), expected[:, 0], rtol=1e-3, atol=1e-4)
    assert report.matched == report.total
    assert bool(report.notes) is bool(registers)


def test_sharded_folders_and_bin(tmp_path):
    trained = tiny(small_stem=False)
    theirs = from_timm(weights(trained), HF_RESNET)
    folder = hf_folder(tmp_path / "hf", RESNET, theirs)
    names = sorted(theirs)
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, keys in parts.items():
        saved(folder / part, {k: theirs[k] for k in keys})
    index = {"weight_map": {k: part for part, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(starting_backbone(folder, Target(3, 64))[0], trained)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(UserError, match="names files outside its folder"):
        starting_backbone(folder, Target(3, 64))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="but no model"):
        starting_backbone(folder, Target(3, 64))
    torch.save(theirs, folder / "pytorch_model.bin")
    assert same(starting_backbone(folder, Target(3, 64))[0], trained)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "swin"}, "of the kind 'swin', not one of resnet, vit"),
        ({"model_type": "vit", "hidden_act": "relu"}, 'says hidden_act "relu"'),
        ({"model_type": "resnet", "embedding_size": 32}, "says embedding_size 32"),
        ({"model_type": "resnet", "hidden_sizes": [8, 8, 8, 8]}, "says hidden_sizes"),
        ({"model_type": "resnet", "depths": "many"}, "lacks or garbles"),
        ({"model_type": "vit", "num_hidden_layers": 10**9}, "more than 65,536"),
        ({"model_type": "vit", "num_attention_heads": 0}, "cannot be built|lacks or garbles"),
        ({"model_type": "vit", "num_attention_heads": 7}, "cannot be built"),
        (
            {"architecture": "resnet18", "model_args": {"checkpoint_path": "x.pth"}},
            "'checkpoint_path', which describes no",
        ),
        ({"architecture": "resnet18", "model_args": {"pretrained_cfg": {"file": "x"}}}, "'pretrained_cfg'"),
        ({"architecture": "resnet18x"}, "no backbone 'resnet18x'"),
        ({"eyespot": {"backbone": {"name": "resnet18"}}}, "lacks channels"),
    ],
)
def test_a_hostile_or_unknown_config_is_one_sentence(tmp_path, config, sentence):
    folder = hf_folder(tmp_path / "hf", config, {"w": torch.ones(2)})
    with pytest.raises(UserError, match=sentence) as caught:
        starting_backbone(folder, Target(3, 32))
    assert "\n" not in str(caught.value)


def test_options_from_files_fetch_and_open_nothing(tmp_path, monkeypatch):
    for key in ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg", "cache_dir"):
        with pytest.raises(UserError, match=f"'{key}', which describes no net"):
            checked_options({key: True}, "x.json")
    with pytest.raises(UserError, match="'layers', which describes no net"):
        checked_options({"layers": [1, {"a": 1}]}, "x.json")
    net = backbone("resnet8", image_size=32)
    save_backbone(net, tmp_path)
    described = json.loads((tmp_path / "backbone.json").read_text())
    described["options"] = {"pretrained": True}
    (tmp_path / "backbone.json").write_text(json.dumps(described))
    for load in (load_backbone, lambda p: starting_backbone(p, Target(3, 32))):
        with pytest.raises(UserError, match="'pretrained', which describes no net"):
            load(tmp_path)


def test_from_config_of_usual_nets():
    assert from_config({"model_type": "resnet"}, "c").name == "resnet50"
    found = from_config({"model_type": "vit"}, "c")
    assert found.options["num_heads"] == 12 and found.options["mlp_ratio"] == 4.0
    assert from_config({"model_type": "dinov2", "use_swiglu_ffn": False}, "c").name == "vit_base_patch14_dinov2"
    assert from_config({"model_type": "bert"}, "c") is None
    assert HF_DINOV2.from_timm("blocks.3.ls1.gamma") == "encoder.layer.3.layer_scale1.lambda1"


def test_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    save_backbone(backbone("resnet8", image_size=32), tmp_path)
    starting_backbone(tmp_path, Target(3, 32))
    assert os.listdir(tmp_path)
