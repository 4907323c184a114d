"""Motion and appearance statistics: labels of what is seen, mirrored with it, the loss from its parts, its limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.clip_statistics import appearance_statistics, motion_statistics
from eyespot.methods.clips import random_window
from eyespot.methods.method import Info
from eyespot.methods.video.motion_appearance_statistics import (
    MotionAppearanceStatistics,
    MotionAppearanceStatisticsConfig,
    still_is_zero,
)
from eyespot.nets.video import video_backbone
from eyespot.views.flow import clip_flow


def build(info=None, **settings):
    torch.manual_seed(0)
    given = {"hidden": 16, "frames": 6, "image_size": 64} | settings
    net = video_backbone("c3d_light", image_size=64, width=4, channels=info.channels if info else 3)
    return MotionAppearanceStatistics(net, MotionAppearanceStatisticsConfig(**given), info)


def moving(count=4, time=6, size=(64, 64)):
    """A bright textured square that moves in one quadrant each, over a dark ground: uint8 [B, T, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    out = (40 * torch.rand(count, 1, 3, *size, generator=generator)).expand(-1, time, -1, -1, -1).clone()
    square = 120 + 130 * torch.rand(3, 12, 12, generator=generator)
    for i in range(count):
        top, left = (8 + size[0] // 2 * (i // 2 % 2), 8 + size[1] // 2 * (i % 2))
        for t in range(time):
            out[i, t, :, top : top + 12, left + t : left + t + 12] = square
    return out.byte()


def views(method, video, **draws):
    return method.views({"video": video}, Draws(index=range(len(video)), **draws))


# --- labels -----------------------------------------------------------------------------------------------------------
def test_the_labels_are_those_of_the_clip():
    video, method = moving(), build(flow_scale=1)
    made = views(method, video)
    torch.testing.assert_close(made["clip"], video.float() / 255)
    flow = still_is_zero(clip_flow(video))
    assert torch.equal(made["motion"], motion_statistics(flow).float())
    assert torch.equal(made["appearance"], appearance_statistics(video).float())
    for i, cells in enumerate(({1, 2, 5, 6}, {3, 4, 7, 8}, {9, 10, 13, 14}, {11, 12, 15, 16})):
        assert int(made["motion"][i, 0]) in cells and int(made["appearance"][i, 0]) in cells


def test_a_mirrored_clip_has_mirrored_labels():
    video, method = moving(), build(flip=1.0)
    made, plain = views(method, video), views(build(), video)
    torch.testing.assert_close(made["clip"], plain["clip"].flip(-1))
    row, column = (plain["motion"][:, 0].long() - 1) // 4, (plain["motion"][:, 0].long() - 1) % 4
    assert torch.equal(made["motion"][:, 0].long(), row * 4 + (3 - column) + 1)
    by_hand = motion_statistics(still_is_zero(clip_flow(video.flip(-1), finest=2)))
    assert torch.equal(made["motion"][:, [0, 2]], by_hand[:, [0, 2]].float())


def test_crops_are_drawn_by_the_sample_alone_and_frames_of_a_clip_are_cut_alike():
    video, method = moving(size=(70, 90)), build()
    whole, part = views(method, video), method.views({"video": [video[2], video[0]]}, Draws(index=[2, 0]))
    assert whole["clip"].shape == (4, 6, 3, 64, 64)
    for key, value in part.items():
        torch.testing.assert_close(value, whole[key][[2, 0]])
    still = video[:, :1].expand(-1, 6, -1, -1, -1)
    seen = views(method, still)
    assert torch.equal(seen["clip"], seen["clip"][:, :1].expand_as(seen["clip"]))
    assert seen["motion"][:, :4].abs().max() == 0  # nothing moves


def test_small_clips_are_enlarged():
    assert views(build(), moving(size=(48, 60)))["clip"].shape == (4, 6, 3, 64, 64)


def test_a_window_is_read():
    method = build()
    source = SimpleNamespace(length=lambda i: 30)
    plans = [method.read({"index": i, "source": source}, Draws(index=[i])) for i in range(200)]
    starts = {p["windows"][0][0] for p in plans}
    assert starts == set(range(25)) and plans[0]["windows"][0][1:] == (6, 1) and plans[0]["short_side"] == 74
    short = SimpleNamespace(length=lambda i: 4)
    found = {random_window({"index": i, "source": short}, Draws(index=[i]), 6, 1)[0] for i in range(50)}
    assert found == set(range(4))


# --- loss -------------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_weighted_mean_of_squares():
    method, made = build(motion=2.0, appearance=0.3), views(build(), moving())
    terms = method(made)
    places = torch.nn.functional.adaptive_avg_pool3d(method.backbone.forward_volume(made["clip"]), (1, 4, 4)).flatten(1)
    for name, weight in (("motion", 2.0), ("appearance", 0.3)):
        squares = (getattr(method, name)(places) - made[name]).square()
        assert float(terms[name].detach()) == pytest.approx(weight * float(squares.detach().mean()), rel=1e-5)


@pytest.mark.parametrize(("off", "kept"), [("motion", "appearance"), ("appearance", "motion")])
def test_one_half_alone(off, kept):
    """With weight 0 a half is neither computed nor learned, and the other is what it was."""
    method = build(**{off: 0.0})
    made = views(method, moving())
    assert off not in made and getattr(method, off) is None
    terms = method(made)
    assert list(terms) == [kept]
    terms[kept].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_heads_begin_at_the_middle_of_the_labels():
    method = build()
    assert method.motion[-1].bias.tolist()[:4] == [8.5, 4.5, 8.5, 4.5] and method.motion[-1].bias.tolist()[-2:] == [
        3,
        3,
    ]
    assert method.appearance[-1].bias.shape == (13,)


def test_it_learns_where_things_move():
    method, made = build(), views(build(), moving())
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        terms = method(made)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(float(terms["motion"].detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert float(method.watch["explained_motion"]) > 0.5 and "explained_appearance" in method.watch


def test_it_shows_what_it_found():
    shown = build().pictures({"video": moving()}, Draws(index=range(4)))["statistics"]
    assert len(shown) == 7 and all(v.shape == (4, 3, 64, 64) for v in shown.values())
    assert "colour 1" not in build(appearance=0.0).pictures({"video": moving()}, Draws(index=range(4)))["statistics"]


def test_grey_clips_have_motion_alone():
    with pytest.raises(UserError, match="set appearance=0"):
        build(Info(channels=1))
    method = build(Info(channels=1), appearance=0.0)
    made = views(method, moving()[:, :, :1])
    assert method(made)["motion"].isfinite()
    assert method.pictures({"video": moving()[:, :, :1]}, Draws(index=range(4)))["statistics"]["motion 1"].shape[1] == 3


def test_mistakes_are_told():
    with pytest.raises(UserError, match="leave nothing to learn"):
        build(motion=0.0, appearance=0.0)
    with pytest.raises(UserError, match="a multiple of 8"):
        build(image_size=30)
    with pytest.raises(UserError, match="frames=1 is out of range"):
        build(frames=1)
