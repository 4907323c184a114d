"""Backbones of clips: shapes, sizes of the papers, what a file brings back, mistakes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eyespot.errors import UserError
from eyespot.nets import video
from eyespot.nets.backbones import load_backbone, save_backbone
from eyespot.nets.video import NETS, VideoBackbone, video_backbone
from eyespot.nets.video_cnn import R3D, S3D, Gating, SlowR3D, factored_width
from eyespot.nets.video_vit import TubeletViT, flat_positions

# (name, options, width, cells of 8 frames of 32 px)
SMALL = [
    ("r3d_10", {"width": 4}, 32, (1, 2, 2)),
    ("r3d_18", {"width": 4}, 32, (1, 2, 2)),
    ("r2plus1d_10", {"width": 4}, 32, (1, 2, 2)),
    ("r3d_50", {"width": 4, "blocks": (1, 1, 1, 1)}, 128, (4, 1, 1)),
    ("s3dg", {"width": 0.1}, 102, (1, 1, 1)),
    ("c3d_light", {"width": 4}, 16, (1, 2, 2)),
    ("video_vit_nano", {}, 64, (4, 4, 4)),
]


@pytest.mark.parametrize(("name", "options", "width", "cells"), SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(name, options, width, cells, channels):
    net = video_backbone(name, image_size=32, channels=channels, frames=8, **options)
    clips = torch.rand(2, 8, channels, 32, 32)
    assert net.embed_dim == width and net.modality == "video" and net.training
    assert net(clips).shape == (2, width)
    assert net.forward_volume(clips).shape == (2, width, *cells)
    assert net.forward_dense(clips).shape == (2, width, *cells[1:])
    assert net.stride == 32 // cells[2] and net.time_stride == 8 // cells[0]
    sum(v.sum() for v in net(clips)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(("name", "options", "width", "cells"), SMALL)
def test_other_lengths_and_sizes_fit(name, options, width, cells):
    net = video_backbone(name, image_size=32, frames=8, **options).eval()
    assert net(torch.rand(1, 16, 3, 48, 64)).shape == (1, width)


@pytest.mark.parametrize(("name", "options", "width", "cells"), SMALL)
def test_a_file_brings_the_same_net_back(name, options, width, cells, tmp_path):
    net = video_backbone(name, image_size=32, frames=8, **options).eval()
    save_backbone(net, tmp_path)
    again = load_backbone(tmp_path).eval()
    clips = torch.rand(2, 8, 3, 32, 32)
    assert isinstance(again, VideoBackbone) and again.frames == 8
    with torch.no_grad():
        assert torch.equal(again(clips), net(clips))


@pytest.mark.parametrize("name", NETS)
def test_every_name_is_built(name, monkeypatch):
    monkeypatch.setattr(VideoBackbone, "_probe", lambda self: (1, 1))  # large ones need not run
    assert sum(p.numel() for p in video_backbone(name, image_size=64).parameters()) > 1e5


def test_the_nets_of_the_papers_have_their_sizes():
    """Without heads: R3D-18 has 33.4 M with 400 classes, CVRL's R3D-50 31.7 M, S3D 7.9 M."""
    millions = lambda net: sum(p.numel() for p in net.parameters()) / 1e6  # noqa: E731
    with torch.device("meta"):
        assert millions(R3D(3, 64, (2, 2, 2, 2))) == pytest.approx(33.37 - 0.205, abs=0.01)
        assert millions(SlowR3D(3)) == pytest.approx(31.7, abs=0.05)
        assert millions(S3D(3, 1.0, gating=False)) == pytest.approx(7.91, abs=0.01)
        # a factored convolution has as many weights as the whole one
        assert millions(R3D(3, 64, (2, 2, 2, 2), factored=True)) == pytest.approx(33.2, abs=0.05)
    assert factored_width(64, 64) == 144


def test_motion_is_seen_by_nets_of_clips():
    """The same frames in another order have other features, and a constant clip has the same for any order."""
    torch.manual_seed(0)
    net = video_backbone("r3d_10", image_size=32, width=4).eval()
    clip = torch.rand(1, 8, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(net(clip), net(clip.flip(1)), atol=1e-4)
        still = clip[:, :1].expand(-1, 8, -1, -1, -1)
        assert torch.allclose(net(still), net(still.flip(1)))


def test_gating_multiplies_each_channel_by_one_number():
    gate, x = Gating(5), torch.rand(2, 5, 3, 4, 4)
    share = (gate(x) / x).detach()
    assert torch.allclose(share, share[:, :, :1, :1, :1].expand_as(share), atol=1e-5)
    assert float(share.min()) > 0 and float(share.max()) < 1


def test_positions_by_hand():
    table = flat_positions(7, 8)
    assert table.shape == (7, 8) and table[0].tolist() == [0, 1] * 4
    angle = 5 / 10000 ** (2 / 8)
    assert table[5, 2:4].tolist() == pytest.approx([torch.tensor(angle).sin().item(), torch.tensor(angle).cos().item()])


def test_own_modules():
    class Mean(nn.Module):
        def forward(self, x):
            assert x.shape[1] == 3  # channels stand before time
            return x.mean((2, 3, 4))

    class Maps(nn.Module):
        def forward(self, x):
            return x.mean(2)

    net = video_backbone(Mean(), image_size=16)
    assert net.embed_dim == 3 and net.name == "module:Mean" and video_backbone(net) is net
    with pytest.raises(UserError, match="no feature map"):
        net.forward_volume(torch.rand(1, 4, 3, 16, 16))
    with pytest.raises(UserError, match="wrap it so that it returns"):
        video_backbone(Maps(), image_size=16)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="no backbone of clips 'r3d_12'; did you mean 'r3d_1"):
        video_backbone("r3d_12")
    with pytest.raises(UserError, match="has no option 'widht'; did you mean 'width'"):
        video_backbone("r3d_10", widht=3)
    with pytest.raises(UserError, match="must be at least 1"):
        video_backbone("r3d_10", width=0)
    with pytest.raises(UserError, match="no pretrained weights"):
        video.build("r3d_10", True, {}, {"channels": 3, "image_size": 32})
    with pytest.raises(UserError, match="whole tubelets"):
        TubeletViT(3, 30, 8)
    net = video_backbone("r3d_10", image_size=32, width=4)
    with pytest.raises(UserError, match=r"takes clips \[B, T, C, H, W\]"):
        net(torch.rand(2, 3, 32, 32))
    with pytest.raises(UserError, match="have 8 channels but the backbone r3d_10 takes 3"):
        net(torch.rand(2, 3, 8, 32, 32))
    with pytest.raises(UserError, match=r"the pixels are|The pixels are torch.uint8"):
        net(torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8))
