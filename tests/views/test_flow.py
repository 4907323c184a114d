"""Optical flow: known shifts, still and plain pictures, mirrors."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch.nn import functional as F

from eyespot.errors import MissingExtra, UserError
from eyespot.views.flow import clip_flow, lucas_kanade, optical_flow, warp

NEEDS_CV = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")
METHODS = ["lk", pytest.param("dis", marks=NEEDS_CV), pytest.param("farneback", marks=NEEDS_CV)]


def ground(size=120, seed=0):
    x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(seed))
    kernel = torch.ones(1, 1, 5, 5) / 25
    x = F.conv2d(F.conv2d(x, kernel), kernel)[0, 0]
    return (x - x.min()) / (x.max() - x.min())


def shifted(u, v, size=(64, 80)):
    """A picture, and the same moved u right and v down."""
    x = ground()
    a = x[12 : 12 + size[0], 12 : 12 + size[1]]
    return a[None], x[12 - v : 12 - v + size[0], 12 - u : 12 - u + size[1]][None]


def error(flow, u, v, border=0):
    off = (flow - torch.tensor([u, v]).float()[:, None, None]).norm(dim=1)
    return float(off[:, border : off.shape[1] - border, border : off.shape[2] - border].mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-2, 1), (4, 3), (0, -5)])
def test_a_shift_is_found(method, shift):
    flow = optical_flow(*shifted(*shift), method)
    assert flow.shape == (1, 2, 64, 80)
    assert error(flow, *shift) < 0.3 and error(flow, *shift, border=8) < 0.15


def test_half_the_scale_is_a_little_worse():
    a, b = shifted(4, 3)
    assert error(lucas_kanade(a, b, finest=2), 4, 3) < 0.5
    assert lucas_kanade(a, b, finest=2).shape == (1, 2, 64, 80)


def test_plain_pictures_do_not_move():
    plain = torch.full((2, 40, 50), 0.3)
    assert float(lucas_kanade(plain, plain + 0.1).abs().max()) < 1e-4
    assert bool(lucas_kanade(plain * 0, plain * 0).isfinite().all())


def test_a_square_moves_and_the_ground_stays():
    background = 0.5 * ground()[:64, :64]
    square = 0.3 + 0.7 * ground(seed=1)[:20, :20]
    a, b = background.clone(), background.clone()
    a[20:40, 20:40], b[21:41, 23:43] = square, square
    flow = lucas_kanade(a[None], b[None])[0]
    inside = flow[:, 25:35, 25:35].mean((1, 2))
    assert inside.tolist() == pytest.approx([3, 1], abs=0.3)
    assert float(flow[:, :8].abs().mean()) < 0.2


def test_a_mirror_negates_u():
    a, b = shifted(2, 1)
    flow = lucas_kanade(a, b)
    mirrored = lucas_kanade(a.flip(-1), b.flip(-1)).flip(-1) * torch.tensor([-1, 1])[:, None, None]
    torch.testing.assert_close(mirrored, flow, atol=1e-3, rtol=0)


def test_flow_takes_the_second_picture_to_the_first():
    a, b = shifted(3, -2)
    back = warp(b[:, None], lucas_kanade(a, b))[:, 0]
    assert float((back - a)[:, 6:-6, 6:-6].abs().mean()) < 0.1 * float((b - a)[:, 6:-6, 6:-6].abs().mean())


def test_clips_of_bytes_and_of_numbers_alike():
    a, b = shifted(2, 0)
    clip = torch.stack([a, b, b], 1)[:, :, None].expand(-1, -1, 3, -1, -1)  # [1, 3, 3, H, W]
    flow = clip_flow(clip)
    assert flow.shape == (1, 2, 2, 64, 80)
    assert error(flow[:, 0], 2, 0) < 0.3 and error(flow[:, 1], 0, 0) < 1e-3
    torch.testing.assert_close(clip_flow((clip * 255).round().byte()), flow, atol=0.05, rtol=0)


def test_mistakes_are_told(monkeypatch):
    with pytest.raises(UserError, match=r"no optical flow 'dsi'.*did you mean 'dis'"):
        optical_flow(*shifted(0, 0), "dsi")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"eyespot\[flow\]"):
        optical_flow(*shifted(0, 0), "dis")
