"""The one interface over own, timm, torchvision and users' nets."""

import json

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from eyespot.errors import UserError
from eyespot.nets import backbones
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.nets.vit import ViTBackbone
from eyespot.process import synchronise_batch_norm

# (name, size, width, side of the map): every way of building one, on the smallest nets that take it
NETS = [
    ("resnet8", 32, 128, 4),
    ("resnet14", 32, 128, 4),
    ("vit_nano", 32, 64, 8),
    ("vit_nano", 96, 64, 12),
    ("test_resnet", 32, 96, 4),
    ("test_resnet", 96, 96, 3),
    ("test_convnext", 64, 64, 2),
    ("test_vit", 160, 64, 10),
    ("mobilenetv3_small_050", 64, 288, 2),
    ("swinv2_cr_tiny_ns_224", 64, 768, 2),
    ("shufflenet_v2_x0_5", 64, 1024, 2),
    ("torchvision/resnet18", 32, 512, 4),
]


class Flat(nn.Module):
    """A user's net that gives vectors."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, 2)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Odd(nn.Module):
    def forward(self, x):
        return {"features": x}


@pytest.mark.parametrize(("name", "size", "width", "side"), NETS)
@pytest.mark.parametrize("channels", [3, 5])
def test_shapes(name, size, width, side, channels):
    net = backbone(name, image_size=size, channels=channels)
    x = torch.rand(2, channels, size, size)
    assert net.embed_dim == width
    assert net(x).shape == (2, width)
    assert net.forward_dense(x).shape == (2, width, side, side)
    assert net.stride == size // side
    assert net.training, "building a backbone must not leave it in evaluation mode"


@pytest.mark.parametrize("name", ["resnet8", "vit_nano", "test_resnet", "mobilenetv3_small_050", "squeezenet1_1"])
def test_every_trainable_parameter_is_used(name):
    net = backbone(name, image_size=64)
    net(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet8", "vit_nano", "test_resnet", "test_convnext", "shufflenet_v2_x0_5"])
def test_double_precision(name):
    net = backbone(name, image_size=32).double().eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    wide, narrow = net(x), net.float()(x.float())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, narrow.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["resnet8", "test_resnet", "test_convnext", "shufflenet_v2_x0_5", "torchvision/resnet18"]
)
def test_pooled_features_are_the_mean_of_the_map(name):
    net = backbone(name, image_size=64).eval()
    x = torch.rand(2, 3, 64, 64)
    pooled = net.forward_dense(x).mean((2, 3))
    # test_convnext norms after pooling, as timm's classifier sees it
    pooled = net.net.forward_head(net.features(x), pre_logits=True) if name == "test_convnext" else pooled
    torch.testing.assert_close(net(x), pooled)


def test_timm_features_are_what_timm_gives():
    net = backbone("test_resnet", image_size=160).eval()
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    theirs.load_state_dict(net.net.state_dict())
    x = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD))
    torch.testing.assert_close(net(x), theirs((x - mean) / std))


def test_torchvision_features_are_what_torchvision_gives():
    import torchvision

    net = backbone("torchvision/densenet121", image_size=64).eval()
    theirs = torchvision.models.densenet121(weights=None)
    theirs.classifier = nn.Identity()
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in net.state_dict().items() if k.startswith("net.")})
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(net(x), theirs.eval()(net.normalize(x)))


def test_torchvision_transformer():
    import torchvision

    from eyespot.nets.zoo import TorchvisionViT

    plain = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
    )
    plain.heads = nn.Sequential()
    net = TorchvisionViT(plain, name="torchvision/vit_b_32", channels=3, image_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x), plain(net.normalize(x)))
    assert net.forward_dense(x).shape == (2, 16, 4, 4) and net.stride == 8
    with pytest.raises(UserError, match="built for 32 pixels"):
        net(torch.rand(1, 3, 64, 64))


def test_normalises_inside():
    mean, std = (0.1, 0.2), (0.3, 0.4)
    net = backbone("resnet8", image_size=32, channels=2, mean=mean, std=std).eval()
    x = torch.rand(2, 2, 32, 32)
    plain = (x - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    torch.testing.assert_close(net.normalize(x), plain)
    torch.testing.assert_close(net(x), net.net(plain).mean((2, 3)))
    assert backbone("resnet8", image_size=32).describe()["mean"] == pytest.approx(backbones.IMAGENET_MEAN)
    assert backbone("resnet8", image_size=32, channels=1).describe()["std"] == [0.5]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.normalize(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("size", "option", "small"), [(32, None, True), (96, None, False), (32, False, False), (96, True, True)]
)
def test_small_stem(size, option, small):
    for name in ("resnet18", "torchvision/resnet18"):
        net = backbone(name, image_size=size, small_stem=option)
        assert net.options["small_stem"] is small
        first = next(m for m in net.net.modules() if isinstance(m, nn.Conv2d))
        assert (first.kernel_size, first.stride) == (((3, 3), (1, 1)) if small else ((7, 7), (2, 2)))
        assert isinstance(net.net.maxpool, nn.Identity) is small
        assert net.stride == (8 if small else 32)


def test_small_stem_of_a_deep_stem():
    net = backbone("resnet18d", image_size=32)
    assert isinstance(net.net, ResNet) and net.stride == 8
    with pytest.raises(UserError, match="small_stem is only known of ResNets"):
        backbone("test_convnext", image_size=32, small_stem=True)


def test_own_module():
    net = backbone(Flat(2), channels=2, image_size=16)
    assert (net.embed_dim, net.stride) == (5, 0)
    assert net(torch.rand(3, 2, 16, 16)).shape == (3, 5)
    with pytest.raises(UserError, match="no feature map"):
        net.forward_dense(torch.rand(3, 2, 16, 16))
    mapped = backbone(nn.Conv2d(3, 7, 3, 4, 1), image_size=16)
    assert (mapped.embed_dim, mapped.stride) == (7, 4)
    assert mapped.forward_dense(torch.rand(1, 3, 16, 16)).shape == (1, 7, 4, 4)
    assert backbone(mapped) is mapped
    wide = backbone(Flat().double(), image_size=16)
    assert wide(torch.rand(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: backbone("resnet9"), "did you mean 'resnet8'"),
        (lambda: backbone("vit_mikro"), "did you mean 'vit_micro'"),
        (lambda: backbone("torchvision/resnet19"), "torchvision/resnet1"),
        (lambda: backbone("resnet8", image_size=32, widht=8), "no option 'widht'; did you mean 'width'"),
        (lambda: backbone("test_resnet", image_size=32, widht=8), "cannot be built with these options .*widht"),
        (lambda: backbone("shufflenet_v2_x0_5", image_size=32, widht=8), "cannot be built with these options"),
        (lambda: backbone("resnet8", pretrained=True), "no pretrained weights of 'resnet8'"),
        (lambda: backbone("resnet8", channels=0), "at least 1"),
        (lambda: backbone("resnet8", mean=(0.5,)), "mean has 1 numbers but there are 3 channels"),
        (lambda: backbone("resnet8", std=(0.5, 0.5, 0.0)), "std has the value 0.0"),
        (lambda: backbone("vit_nano", image_size=30), "not a multiple of the patch"),
        (lambda: backbone("vit_nano", image_size=32, pooling="max"), "pooling='max' is not known"),
        (lambda: backbone("vit_nano", image_size=32, positions="rope"), "positions='rope'"),
        (lambda: backbone("vit_nano", image_size=32, heads=7), "not a multiple of heads"),
        (lambda: backbone("inception_v3", image_size=32), "does not take 3 x 32 x 32 pixels"),
        (lambda: backbone("crossvit_tiny_240", image_size=240), "no single feature tensor"),
        (lambda: backbone(Odd(), image_size=16), "returns dict; wrap it"),
        (lambda: backbone(nn.Flatten(1, 2), image_size=16), r"returns \(1, 48, 16\); wrap it"),
        (lambda: backbone(Flat(4), image_size=16), "does not take 3 x 16 x 16 pixels"),
        (lambda: backbone(Flat(), image_size=16, width=3), "width does not apply to an own module"),
        (lambda: backbone("resnet8")(torch.rand(1, 4, 32, 32)), "4 channels but the backbone resnet8 takes 3"),
        (lambda: backbone("resnet8")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "uint8"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_pretrained_goes_through_timm(monkeypatch):
    asked = {}
    create = timm.create_model

    def fake(name, pretrained, **options):
        asked.update(name=name, pretrained=pretrained)
        if name == "test_resnet":
            raise OSError("We cannot reach the hub\nand more")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    with pytest.raises(UserError, match=r"weights of 'test_resnet' cannot be had \(We cannot reach the hub\)"):
        backbone("test_resnet", pretrained=True)
    net = backbone("resnet18.a1_in1k", pretrained=True, image_size=32)
    assert asked == {"name": "resnet18.a1_in1k", "pretrained": True}
    assert net.options["small_stem"] is False, "the published first convolution must stay"
    clip = backbone("vit_tiny_patch16_224.augreg_in21k", pretrained=True, image_size=32)
    assert clip.describe()["mean"] == [0.5, 0.5, 0.5], "statistics that the weights were trained with"


def test_first_convolution_of_other_channels_keeps_what_was_learned():
    from eyespot.nets.zoo import _set_channels

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    grey = torch.rand(1, 1, 8, 8)
    before = net(grey.expand(-1, 3, -1, -1))
    _set_channels(net, 5, pretrained=True)
    torch.testing.assert_close(net(grey.expand(-1, 5, -1, -1)), before)


@pytest.mark.parametrize("name", ["resnet8", "test_resnet", "shufflenet_v2_x0_5"])
def test_survives_synchronised_batch_norm(name):
    net = backbone(name, image_size=32).train()
    x = torch.rand(4, 3, 32, 32)
    before, dense = net(x), net.forward_dense(x)
    synchronise_batch_norm(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(net(x), before)
    torch.testing.assert_close(net.forward_dense(x), dense)


# --- files ------------------------------------------------------------------------------------------------------
CASES = [
    ("resnet8", {"width": 8}),
    ("vit_nano", {"pooling": "native", "positions": "learned"}),
    ("test_resnet", {"small_stem": False}),
    ("test_vit", {"patch_size": 8}),
    ("shufflenet_v2_x0_5", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_saved_and_loaded_again(tmp_path, name, options):
    net = backbone(name, image_size=32, channels=2, mean=(0.2, 0.3), std=(0.4, 0.5), **options)
    net(torch.rand(4, 2, 32, 32))  # moves running statistics
    net = net.to(memory_format=torch.channels_last)
    save_backbone(net.eval(), tmp_path)
    again = load_backbone(tmp_path).eval()
    x = torch.rand(2, 2, 32, 32)
    torch.testing.assert_close(again(x), net(x))
    assert again.describe() == net.describe()
    assert json.loads((tmp_path / "backbone.json").read_text())["embed_dim"] == net.embed_dim
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_pooling_that_a_method_sets_is_saved(tmp_path):
    net = backbone("test_vit", image_size=32)
    net.set_pooling("avg")
    save_backbone(net, tmp_path)
    again = load_backbone(tmp_path)
    assert isinstance(again, ViTBackbone) and again.pooling == "avg"


def test_own_module_is_loaded_into_a_fresh_one(tmp_path):
    net = backbone(Flat(), image_size=16)
    save_backbone(net, tmp_path)
    with pytest.raises(UserError, match="own module 'Flat'"):
        load_backbone(tmp_path)
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(load_backbone(tmp_path, module=Flat())(x), net(x))


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_backbone(backbone("resnet8", image_size=32, width=8), tmp_path)
    before = (tmp_path / "backbone.safetensors").read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(backbones, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_backbone(backbone("resnet8", image_size=32, width=8), tmp_path)
    assert (tmp_path / "backbone.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"no backbone.json in .*nothing"):
        load_backbone(tmp_path / "nothing")
    save_backbone(backbone("resnet8", image_size=32, width=8), tmp_path)
    described = json.loads((tmp_path / "backbone.json").read_text())

    def rewrite(**changes):
        (tmp_path / "backbone.json").write_text(json.dumps({**described, **changes}))

    rewrite(options={"width": 16})
    with pytest.raises(UserError, match=r"do not fit resnet8: net.conv.weight is \[8, 3, 3, 3\] instead of \[16"):
        load_backbone(tmp_path)
    rewrite(name="resnet14")
    with pytest.raises(UserError, match=r"missing, .* and \d+ more; build the backbone with the options"):
        load_backbone(tmp_path)
    rewrite(version=99)
    with pytest.raises(UserError, match="version 99"):
        load_backbone(tmp_path)
    (tmp_path / "backbone.json").write_text("[]")
    with pytest.raises(UserError, match="lacks channels"):
        load_backbone(tmp_path)
    (tmp_path / "backbone.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        load_backbone(tmp_path)
    rewrite()
    (tmp_path / "backbone.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_backbone(tmp_path)
    (tmp_path / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="do not exist"):
        load_backbone(tmp_path)
