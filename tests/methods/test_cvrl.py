"""CVRL: which frames it reads, that a clip is drawn once, its loss from its parts, its limits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.clips import clip_contrast
from eyespot.methods.video.cvrl import CVRL, CVRLConfig
from eyespot.nets.video import video_backbone


def build(**settings):
    torch.manual_seed(0)
    given = {"hidden": 16, "out": 8, "frames": 4, "image_size": 16} | settings
    return CVRL(video_backbone("r3d_10", image_size=16, width=4), CVRLConfig(**given))


def views(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n, 4, 3, 16, 16, generator=generator) for name in ("view1", "view2")}


def batch(n=6, windows=2):
    generator = torch.Generator().manual_seed(0)
    return {"video": torch.randint(0, 256, (n, windows, 4, 3, 20, 28), dtype=torch.uint8, generator=generator)}


def starts(method, length, count=400):
    source = SimpleNamespace(length=lambda i: length)
    plans = [method.read({"index": i, "source": source}, Draws(0, 0, 0, [i])) for i in range(count)]
    assert all(len(p["windows"]) == 2 and {w[1:] for w in p["windows"]} == {(4, 2)} for p in plans)
    return np.array([[w[0] for w in p["windows"]] for p in plans])


# --- reading ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("law", "mean"), [("decreasing", 1 / 3), ("uniform", 1 / 2), ("increasing", 2 / 3)])
def test_windows_follow_the_law_of_the_interval(law, mean):
    found = starts(build(interval=law), 106)  # 100 starts
    assert found.min() >= 0 and found.max() <= 99
    apart = np.abs(found[:, 0] - found[:, 1])
    assert apart.mean() / 100 == pytest.approx(mean, abs=0.05)
    assert (found[:, 0] < found[:, 1]).mean() == pytest.approx(0.5, abs=0.1)  # in any order


def test_of_short_clips_windows_begin_anywhere():
    found = starts(build(), 5)
    assert set(found.flatten().tolist()) == set(range(5))
    assert starts(build(), 0).max() == 0  # a clip that cannot be read, which is told when it is decoded


def test_what_is_read_depends_on_sample_and_epoch():
    method, meta = build(), {"index": 7, "source": SimpleNamespace(length=lambda i: 100)}
    plans = [method.read(meta, Draws(0, epoch, 0, [key])) for epoch, key in ((0, 7), (0, 7), (1, 7), (0, 8))]
    assert plans[0] == plans[1] and plans[0] != plans[2] and plans[0] != plans[3]
    assert plans[0]["short_side"] == 19  # 8 / 7 of 16, rounded up


# --- views ------------------------------------------------------------------------------------------------------------
def test_a_still_clip_stays_still_unless_frames_are_drawn_one_by_one():
    still = {"video": batch()["video"][:, :, :1].expand(-1, -1, 4, -1, -1, -1)}
    for consistent in (True, False):
        made = build(consistent=consistent).views(still, Draws(index=range(6)))
        for seen in made.values():
            assert seen.shape == (6, 4, 3, 16, 16)
            assert torch.equal(seen, seen[:, :1].expand_as(seen)) is consistent


def test_the_two_views_are_of_the_two_windows():
    video = torch.zeros(3, 2, 4, 3, 20, 28, dtype=torch.uint8)
    video[:, 1] = 255
    made = build(jitter=0.0, grey=0.0, solarize=0.0).views({"video": video}, Draws(index=range(3)))
    assert float(made["view1"].max()) == 0 and float(made["view2"].min()) > 0.999


def test_crops_are_as_in_the_code():
    first, second = CVRLConfig(image_size=112).view_pair()
    for spec in (first, second):
        assert spec.scale == (0.3, 1.0) and spec.ratio == (0.5, 2.0)
        assert spec.jitter == (0.8, 0.8, 0.8, 0.2)
    assert (first.blur_p, second.blur_p) == (1.0, 0.1)
    assert (first.solarize_p, second.solarize_p) == (0.0, 0.2)


# --- loss -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("reduction", "parts"), [("sum", 1), ("mean", 2)])
def test_the_loss_is_the_contrast_of_the_embeddings(reduction, parts):
    method = build(temperature=0.2, reduction=reduction)
    encoded = method.encode(views())
    assert encoded["query"].shape == encoded["key"].shape == (6, 8)
    expected = sum(clip_contrast(encoded["query"], encoded["key"], 0.2)) / parts
    torch.testing.assert_close(method(views())["contrast"], expected)
    assert 0 <= float(method.watch["found"]) <= 1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equal_clips_give_the_plateau_and_finite_gradients(reduction):
    method = build(reduction=reduction)
    same = torch.full((5, 4, 3, 16, 16), 0.5)
    loss = method({"view1": same, "view2": same})["contrast"]
    loss.backward()
    plateau = method.plateau(5)["contrast"]
    assert loss.item() == pytest.approx(plateau, abs=1e-4)
    assert plateau == pytest.approx(math.log(9) * (2 if reduction == "sum" else 1))
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_every_parameter_learns_and_the_loss_falls():
    method = build()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = method(views(8))["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [n for n, p in method.named_parameters() if p.grad is None] == []
    assert losses[-1] < method.plateau(8)["contrast"] / 2


def test_it_embeds_clips_of_any_length():
    method = build().eval()
    with torch.no_grad():
        assert method.embed(torch.rand(2, 16, 3, 16, 16)).shape == (2, 32)
        assert method.dense(torch.rand(2, 16, 3, 16, 16)).shape == (2, 32, 1, 1)


def test_it_shows_its_views():
    shown = build().pictures(batch(), Draws(index=range(6)))
    assert list(shown["views"]) == ["clip 1 first", "clip 1 last", "clip 2 first", "clip 2 last"]
    assert all(v.shape == (6, 3, 16, 16) for v in shown["views"].values())


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"frames": 0}, {"stride": 0}, {"crop_ratio": 0.5}])
def test_values_out_of_range_are_named(setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"{name}={value} is out of range"):
        build(**setting)


def test_an_unknown_law_is_named():
    with pytest.raises(UserError, match="no law of the interval 'decresing'; did you mean 'decreasing'"):
        build(interval="decresing")
