"""Names of the same tensors in torchvision and transformers."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from eyespot.nets import naming
from eyespot.nets.naming import from_timm, naming_of, timm_names, to_timm

TIMM = {
    "resnet18": {"num_classes": 0},
    "resnet50": {"num_classes": 0},
    "vit_base_patch16_224": {"num_classes": 0, "depth": 2},
    "vit_base_patch14_dinov2": {"num_classes": 0, "depth": 2, "img_size": 224},
}


def shapes(tensors):
    return {k: tuple(v.shape) for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("resnet18", naming.HF_RESNET),
        ("resnet50", naming.HF_RESNET),
        ("vit_base_patch16_224", naming.HF_VIT),
        ("vit_base_patch14_dinov2", naming.HF_DINOV2),
        ("vit_base_patch16_224", naming.TORCHVISION_VIT),
    ],
)
def test_there_and_back(name, scheme):
    state = timm.create_model(name, **TIMM[name]).state_dict()
    theirs = from_timm(state, scheme)
    assert theirs is not None and naming_of(theirs) == scheme.name
    back = to_timm(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_names_that_a_scheme_lacks():
    assert from_timm({"conv9.weight": torch.ones(1)}, naming.HF_RESNET) is None
    assert timm_names(["encoder.stages.0.layers.0.layer.0.convolution.weight", "classifier.1.bias"]) == {
        "encoder.stages.0.layers.0.layer.0.convolution.weight": "layer1.0.conv1.weight",
        "classifier.1.bias": "classifier.1.bias",
    }
    assert naming_of(["conv1.weight", "fc.bias"]) == "timm"


def test_torchvision_transformer():
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64
    )
    ours = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_heads=2, embed_dim=16, num_classes=0
    )
    named = {k: v for k, v in to_timm(theirs.state_dict()).items() if not k.startswith("heads")}
    assert shapes(named) == shapes(ours.state_dict())
    ours.load_state_dict(named)
    theirs.heads = torch.nn.Sequential()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_transformers_by_file_and_by_module():
    transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")
    resnet = transformers.ResNetModel(
        transformers.ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    )
    assert shapes(to_timm(resnet.state_dict())) == shapes(timm.create_model("resnet18", num_classes=0).state_dict())
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    plain = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    vit = transformers.ViTModel(transformers.ViTConfig(intermediate_size=128, **small), add_pooling_layer=False)
    ours = timm.create_model("vit_base_patch16_224", **plain)
    assert shapes(to_timm(vit.state_dict())) == shapes(ours.state_dict())
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    ours = timm.create_model("vit_base_patch14_dinov2", **plain)
    named = to_timm(dino.state_dict())
    assert named.pop("embeddings.mask_token").shape == (1, 32)
    assert shapes(named) == shapes(ours.state_dict())
    assert naming_of(dino.state_dict()) == "transformers DINOv2"
