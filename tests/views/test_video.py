"""Views of clips: one draw for all frames, whatever the batch; windows; the clean view."""

from __future__ import annotations

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.views.clip_pictures import MOVES, first_and_last, painted, statistics_columns
from eyespot.views.image import ViewSpec, view
from eyespot.views.video import clean_clips, clip_view, windows

SPEC = ViewSpec(size=24, scale=(0.3, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur_p=0.5, solarize_p=0.3)


def clips(count=6, time=5, size=(30, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, time, 3, *size), dtype=torch.uint8, generator=generator)


def still(count=6, time=5):
    return clips(count, 1).expand(-1, time, -1, -1, -1).contiguous()


@pytest.mark.parametrize("color", ["exact", "linear"])
def test_a_clip_of_one_repeated_frame_stays_one(color):
    spec = ViewSpec(**(vars(SPEC) | {"color": color}))
    seen = clip_view(still(), Draws(index=range(6)), spec).pixels
    assert seen.shape == (6, 5, 3, 24, 24)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert float(seen.std(0).mean()) > 0.05  # and clips differ


def test_frames_that_draw_for_themselves_differ():
    seen = clip_view(still(), Draws(index=range(6)), SPEC, consistent=False).pixels
    for a in range(5):
        for b in range(a):
            assert float((seen[:, a] - seen[:, b]).abs().mean((1, 2, 3)).min()) > 0.01


def test_each_frame_is_what_the_picture_view_makes_of_it():
    video, draws = clips(), Draws(seed=3, epoch=2, index=range(6))
    seen = clip_view(video, draws, SPEC)
    for t in (0, 4):
        one = view(video[:, t], draws, SPEC)
        torch.testing.assert_close(seen.pixels[:, t], one.pixels, atol=1e-6, rtol=0)
        assert torch.equal(seen.box, one.box) and torch.equal(seen.flip, one.flip)
    assert seen.jitter.shape == (6, 4) and seen.blur.shape == (6,)


def test_a_view_depends_on_the_sample_alone():
    video = clips()
    whole = clip_view(video, Draws(index=range(6)), SPEC).pixels
    part = clip_view([video[4], video[1]], Draws(index=[4, 1]), SPEC).pixels
    torch.testing.assert_close(part, whole[[4, 1]], atol=1e-6, rtol=0)
    other = clip_view(video, Draws(index=range(6), epoch=1), SPEC).pixels
    assert not torch.allclose(other, whole, atol=0.05)


def test_clips_of_different_sizes():
    video = [clips(1, size=size)[0] for size in ((30, 40), (25, 60), (90, 41))]
    assert clip_view(video, Draws(index=range(3)), SPEC).pixels.shape == (3, 5, 3, 24, 24)


def test_windows_of_a_batch():
    video = clips(2 * 3).unflatten(0, (3, 2))
    first, second = windows(video, 2)
    assert torch.equal(first, video[:, 0]) and torch.equal(second, video[:, 1])
    assert torch.equal(windows(list(video), 2)[1][2], video[2, 1])
    same = windows(video[:, 0], 2)
    assert torch.equal(same[0], same[1])
    with pytest.raises(UserError, match=r"Clips of 3 windows must be \[3, T, C, H, W\]"):
        windows(video, 3)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="draws for 2"):
        clip_view(clips(), Draws(index=[0, 1]), SPEC)
    with pytest.raises(UserError, match=r"Clips of \[4, 5\] frames"):
        clip_view([clips(1, 5)[0], clips(1, 4)[0]], Draws(index=[0, 1]), SPEC)
    with pytest.raises(UserError, match=r"must be \[T, C, H, W\]"):
        clip_view(clips()[:, 0], Draws(index=range(6)), SPEC)
    with pytest.raises(UserError, match="no clips"):
        clip_view([], Draws(index=[]), SPEC)


def test_the_clean_view_is_the_middle_of_every_frame():
    video = clips(2, size=(24, 40))
    seen = clean_clips(list(video), 24)
    assert seen.shape == (2, 5, 3, 24, 24)
    torch.testing.assert_close(seen, video[..., 8:32].float() / 255)


def test_pictures_mark_the_blocks_of_the_labels():
    grey = torch.full((2, 4, 3, 32, 32), 0.5)
    motion = torch.ones(2, 14, dtype=torch.long)
    motion[1, 0] = 0  # nothing moves
    appearance = torch.ones(2, 13, dtype=torch.long)
    columns = statistics_columns(grey, motion, appearance)
    assert list(columns) == ["motion 1", "colour 1", "motion 2", "colour 2", "motion 3", "colour 3"]
    assert all(c.shape == (2, 3, 32, 32) for c in columns.values())
    assert torch.equal(columns["motion 1"][1], grey[1, 0])
    marked = painted(grey[:, 0], torch.tensor([6, 16]), 0, MOVES)
    changed = (marked != grey[:, 0]).any(1)
    assert changed[0].nonzero().amin(0).tolist() == [8, 8] and changed[0].sum() == 64
    assert changed[1].nonzero().amin(0).tolist() == [24, 24]
    assert list(first_and_last(grey, "clip")) == ["clip first", "clip last"]
