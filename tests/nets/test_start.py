"""What a training may start from, and the report of what matched."""

from __future__ import annotations

import json
import os

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from eyespot.errors import UserError
from eyespot.nets import zoo
from eyespot.nets.architectures import checked_options, from_config, guess
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.nets.match import load_matching
from eyespot.nets.naming import HF_DINOV2, HF_RESNET, HF_VIT, from_timm
from eyespot.nets.start import Target, is_backbone_name, starting_backbone

TINY = {"layers": [1, 1, 1, 1]}


def tiny(channels=3, size=96, **options):
    """A ResNet with one block a stage, in batch norm as after training."""
    net = backbone("resnet18", channels=channels, image_size=size, **TINY, **options)
    settle(net)
    return net


def settle(net):
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def weights(net):
    return {k: v.clone() for k, v in net.net.state_dict().items()}


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved(path, tensors):
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


# --- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("suffix", "nest", "prefix"),
    [
        (".safetensors", None, ""),
        (".safetensors", None, "module."),
        (".safetensors", None, "anything.at.all."),
        (".pth", None, "backbone."),
        (".pth", "state_dict", ""),
        (".pth", "state_dict", "module.encoder_q."),
        (".pt", "model", "encoder."),
        (".bin", "teacher", "backbone."),
        (".ckpt", "student", "module."),
    ],
)
def test_prefixes_and_nesting(tmp_path, suffix, nest, prefix):
    trained, net = tiny(), tiny()
    tensors = {prefix + k: v for k, v in weights(trained).items()} | {"head.weight": torch.ones(3)}
    nested = {nest: tensors, "epoch": 3} if nest else tensors
    path = saved(tmp_path / f"w{suffix}", nested)
    source = start_tensors(path)
    report = load_matching(net, source, str(path), "file")
    assert same(net, trained)
    assert report.matched == report.total == sum(v.is_floating_point() for v in net.net.state_dict().values())
    assert report.prefix == (f"{nest}." if nest else "") + prefix
    assert len(report.unexpected) + report.elsewhere == 1


def start_tensors(path):
    from eyespot.nets.files import read_tensors

    return read_tensors(path)[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("teacher.backbone.", "student.module.backbone."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("online.", "target."),
        ("method.backbone.net.", "method.teacher.net.0.net."),
    ],
)
def test_of_two_that_fit_the_usual_one_is_taken_and_the_other_named(first, second):
    trained, other, net = tiny(), tiny(), tiny()
    tensors = {second + k: v for k, v in weights(other).items()} | {first + k: v for k, v in weights(trained).items()}
    report = load_matching(net, tensors, "both.pth", "file")
    assert same(net, trained) and (report.prefix, report.also) == (first, [second])
    assert f"not '{second}', which fits as well" in report.lines()[0]


def test_head_and_decoder_are_left_out_and_named():
    net, trained = tiny(), tiny()
    extra = {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3), "decoder.weight": torch.ones(2)}
    report = load_matching(net, weights(trained) | extra, "w.pth", "file")
    assert report.unexpected == ["decoder.weight", "fc.bias", "fc.weight"]
    assert "not used  no part of the backbone: decoder.weight, fc.bias, fc.weight" in "\n".join(report.lines())
    assert json.loads(json.dumps(report.json()))["unexpected"] == report.unexpected


def test_what_is_missing_or_differs_stays_as_drawn_and_is_named():
    trained, net = tiny(small_stem=False), tiny(small_stem=True)
    before = weights(net)
    tensors = weights(trained)
    del tensors["bn1.bias"]
    report = load_matching(net, tensors, "w.pth", "file")
    after = weights(net)
    assert report.missing == ["bn1.bias"]
    assert report.differs == {"conv1.weight": "[64, 3, 7, 7] instead of [64, 3, 3, 3]"}
    assert report.matched == report.total - 2
    for name in ("bn1.bias", "conv1.weight"):
        assert torch.equal(before[name], after[name])
    assert torch.equal(after["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])
    text = "\n".join(report.lines())
    assert "conv1.weight: [64, 3, 7, 7] instead" in text and "not in the source: bn1.bias" in text


@pytest.mark.parametrize(("have", "want"), [(3, 1), (3, 4), (1, 3), (1, 5)])
def test_first_convolution_for_other_channels(have, want):
    trained, net = tiny(have), tiny(want)
    report = load_matching(net, weights(trained), "w.pth", "file")
    assert list(report.adapted) == ["conv1.weight"] and f"{have} to {want} channels" in report.adapted["conv1.weight"]
    grey = torch.rand(2, 1, 48, 48)
    mine, theirs = (
        n.net.eval().forward_features(grey.expand(-1, c, -1, -1)) for n, c in ((net, want), (trained, have))
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_channels_of_other_meaning_are_not_averaged():
    with pytest.raises(UserError, match=r"takes 4 channels but the pictures have 3; use --channels 4"):
        load_matching(tiny(3), weights(tiny(4)), "w.pth", "file")


def test_positions_of_another_grid():
    trained, net = backbone("vit_nano", image_size=32, patch=4), backbone("vit_nano", image_size=48, patch=4)
    table = trained.net.pos_embed
    with torch.no_grad():
        cells = torch.linspace(0, 1, 8).view(8, 1).expand(8, 8).reshape(64, 1)
        table[:, 1:] = cells
        table[:, :1] = 7
    report = load_matching(net, weights(trained), "w.pth", "file")
    assert report.adapted == {"pos_embed": "resampled from 8 x 8 to 12 x 12 positions"}
    assert report.matched + 1 == report.total
    new = net.net.pos_embed
    assert torch.equal(new[:, 0], torch.full_like(new[:, 0], 7))
    grid = new[0, 1:, 0].view(12, 12)
    assert bool((grid.diff(dim=0) > 0).all()) and float(grid.diff(dim=1).abs().max()) < 1e-6


def test_numbers_that_are_not_finite_are_refused():
    net, trained = tiny(), weights(tiny())
    before = weights(net)
    trained["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    trained["bn1.bias"][0] = float("inf")
    with pytest.raises(UserError, match=r"not finite in 2 tensors \(bn1.bias, layer1.0.conv1.weight\)|in 2 tensors"):
        load_matching(net, trained, "w.pth", "file")
    assert all(torch.equal(before[k], v) for k, v in weights(net).items()), "nothing may be loaded in part"


@pytest.mark.parametrize(
    ("name", "options", "theirs", "sentence"),
    [
        ("resnet18", {}, "resnet50", "look like those of a resnet50: use --backbone resnet50"),
        ("resnet18", {}, "vit_small_patch16_224", "of width 384, 12 blocks and patches of 16 pixels"),
        ("resnet18", TINY, "resnet18", r"40 of the source are not in it.*layer1.1.bn1.bias, .* are of a deeper net"),
        ("vit_nano", {}, "vit_nano", "is .* instead of .*another width or patch"),
        ("test_convnext", {}, "words", "its names .*'lm_head.weight'.* are not those of the net"),
    ],
)
def test_another_net_is_refused_with_the_nearest_explanation(name, options, theirs, sentence):
    net = backbone(name, image_size=64, **options)
    if theirs == "words":
        tensors = {"lm_head.weight": torch.ones(2, 3), "wte.weight": torch.ones(3, 2)}
    elif theirs == "vit_nano":
        tensors = weights(backbone("vit_nano", image_size=64, dim=32))
    else:
        tensors = timm.create_model(theirs).state_dict()
    before = weights(net)
    with pytest.raises(UserError, match=f"{sentence}") as caught:
        load_matching(net, tensors, "w.pth", "file")
    assert "at least 90 % must" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in weights(net).items())


def test_guesses():
    for name in ("resnet34", "resnext50_32x4d", "wide_resnet50_2"):
        assert guess(timm.create_model(name).state_dict()).name == name
    assert guess(timm.create_model("vit_tiny_patch16_224").state_dict()).name == "vit_tiny_patch16_224"
    assert guess(weights(backbone("vit_micro", image_size=32))).name == "vit_micro"
    assert guess(timm.create_model("test_convnext").state_dict()) is None


def test_half_precision_files_load():
    trained, net = tiny(), tiny()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights(trained).items()}
    load_matching(net, halves, "w.pth", "file")
    state = weights(net)
    assert all(torch.equal(state[k], v.to(state[k].dtype)) for k, v in halves.items())


# --- runs and named nets ----------------------------------------------------------------------------------------------
def test_a_saved_backbone_says_its_net_and_statistics(tmp_path):
    net = backbone("resnet8", channels=2, image_size=32, mean=(0.1, 0.2), std=(0.3, 0.4), width=16)
    save_backbone(net, tmp_path)
    for start in (tmp_path, tmp_path / "backbone.safetensors"):
        got, report = starting_backbone(start, Target(2, 48))
        assert got.name == "resnet8" and got.options == {"width": 16} and got.image_size == 48 and same(got, net)
        assert torch.equal(got.mean, net.mean) and torch.equal(got.std, net.std)
        assert report.matched == report.total and report.kind == ("run" if start == tmp_path else "file")
        assert not report.elsewhere and not report.unexpected


@pytest.mark.parametrize("noted", [True, False])
def test_the_patch_of_a_run_is_kept_at_another_size(tmp_path, noted):
    save_backbone(backbone("vit_nano", image_size=32), tmp_path)
    if not noted:  # as older runs are described
        described = json.loads((tmp_path / "backbone.json").read_text())
        assert described["options"].pop("patch") == 4
        (tmp_path / "backbone.json").write_text(json.dumps(described))
    got, report = starting_backbone(tmp_path, Target(3, 96))
    assert got.patch == 4 and got.grid == 24 and list(report.adapted) == ["pos_embed"]
    again = tmp_path / "again"
    save_backbone(got, again)
    assert same(load_backbone(again), got)


def test_a_named_backbone_wins_over_the_source(tmp_path):
    save_backbone(tiny(small_stem=False), tmp_path)
    got, report = starting_backbone(tmp_path, Target(3, 96, nn_of_tiny()))
    assert got.name == "module:Sequential" and report.matched == report.total


def nn_of_tiny():
    net = tiny(small_stem=False).net
    parts = [(n, m) for n, m in net.named_children() if n not in ("global_pool", "fc")]
    from collections import OrderedDict

    return nn.Sequential(OrderedDict(parts))


def test_own_modules(tmp_path):
    module = nn.Conv2d(3, 4, 3, 2)
    net = backbone(module, image_size=16)
    save_backbone(net, tmp_path)
    with pytest.raises(UserError, match="own module 'Conv2d'; build one and pass it"):
        starting_backbone(tmp_path, Target(3, 16))
    got, report = starting_backbone(tmp_path, Target(3, 16, nn.Conv2d(3, 4, 3, 2)))
    assert same(got, net) and report.matched == 2
    got, report = starting_backbone(module, Target(3, 16))
    assert got.net is module and (report.kind, report.matched) == ("module", 2)
    with pytest.raises(UserError, match="leave backbone out"):
        starting_backbone(module, Target(3, 16, "resnet8"))


def test_a_file_that_says_nothing_goes_into_the_recipe_s_net(tmp_path):
    path = saved(tmp_path / "w.pth", timm.create_model("resnet18").state_dict())
    got, report = starting_backbone(path, Target(3, 96, None, "resnet18"))
    assert got.name == "resnet18" and report.matched == report.total and report.unexpected == ["fc.bias", "fc.weight"]
    with pytest.raises(UserError, match="use --backbone resnet18"):
        starting_backbone(path, Target(3, 32, None, "vit_micro"))


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("resnet8", "no published weights of 'resnet8'"),
        ("resnet81", "no backbone 'resnet81'"),
        ("runs/nowhere", "'runs/nowhere' does not exist"),
        ("w.safetensors", "'w.safetensors' does not exist"),
        ("torchvision/resnet19", "no backbone 'torchvision/resnet19'"),
        ("vit_tiny_patch16_dinov3_nonsense", "no backbone"),
        (3, "cannot start from a int"),
    ],
)
def test_mistakes(start, sentence):
    with pytest.raises(UserError, match=sentence):
        starting_backbone(start, Target(3, 32))


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match="holds neither a run"):
        starting_backbone(tmp_path, Target(3, 32))
    (tmp_path / "config.json").write_text('{"method": "simclr", "command": "eyespot pretrain"}')
    with pytest.raises(UserError, match=r"not been finished; finish it with --resume, or start from '.*checkpoint.pt'"):
        starting_backbone(tmp_path, Target(3, 32))


def test_names_and_paths(tmp_path):
    assert is_backbone_name("resnet18") and is_backbone_name("torchvision/resnet18")
    assert not any(is_backbone_name(v) for v in ("runs/a", "w.pth", str(tmp_path), tmp_path, None))


@pytest.mark.parametrize(
    ("name", "library"), [("resnet18.a1_in1k", timm), ("torchvision/resnet18", torchvision.models)]
)
def test_published_weights_by_name(monkeypatch, name, library):
    plain = timm.create_model("resnet18") if library is timm else torchvision.models.resnet18()
    state = plain.state_dict()
    if library is timm:
        create = timm.create_model

        def fake(name, pretrained=False, **options):
            net = create(name, **options)
            if pretrained:
                net.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc")})
            return net

        monkeypatch.setattr(timm, "create_model", fake)
    else:
        get = torchvision.models.get_model

        def fake_get(name, weights=None, **options):
            net = get(name, weights=None, **options)
            if weights:
                net.load_state_dict(state)
            return net

        monkeypatch.setattr(torchvision.models, "get_model", fake_get)
    got, report = starting_backbone(name, Target(1, 48, statistics=lambda: ((0.4,), (0.2,))))
    assert got.channels == 1 and got.options["small_stem"] is False and got.mean.item() == pytest.approx(0.4)
    assert list(report.adapted) == ["conv1.weight"] and report.matched == report.total - 1
    assert torch.equal(weights(got)["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert report.kind == ("timm" if library is timm else "torchvision")


def test_published_weights_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"pretrained weights of 'resnet18' cannot be had .*connect to the network"
    ) as caught:
        starting_backbone("resnet18", Target(3, 64))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"timm publishes no weights|cannot be had"):
        starting_backbone("vit_small_patch8_224", Target(3, 64))


def test_sizes_of_published_weights():
    assert zoo.published_size("resnet18") == 224 and zoo.published_size("torchvision/vit_h_14") == 518


# --- Hugging Face folders ---------------------------------------------------------------------------------------------
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
