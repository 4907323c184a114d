"""Tracks from frames: the shift of the background, what moves, following, and a folder of tracks from video files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from eyespot.data import tracks
from eyespot.data.sources import open_source
from eyespot.data.tracks import find_tracks, follow, motion, moving_box, overlap, shift_between
from eyespot.errors import MissingExtra, UserError


def smooth(shape, seed=0):
    """A random texture without single pixels."""
    x = np.random.default_rng(seed).random(shape)
    for axis in (0, 1):
        x = sum(np.roll(x, k, axis) for k in range(-2, 3)) / 5
    return ((x - x.min()) / (x.max() - x.min())).astype(np.float32)


def clip(steps=12, speed=(1, 2), pan=(0, 0), size=(64, 80), side=20, seed=0):
    """A textured square that moves over a textured ground, which moves too: uint8 [T, H, W, 3]."""
    ground, square = smooth((160, 160), seed), 0.2 + 0.8 * smooth((side, side), seed + 1)
    frames = []
    for t in range(steps):
        frame = 0.5 * ground[40 + t * pan[0] :, 40 + t * pan[1] :][: size[0], : size[1]].copy()
        top, left = 10 + t * speed[0], 12 + t * speed[1]
        frame[top : top + side, left : left + side] = square
        frames.append(frame)
    return (np.stack(frames)[..., None].repeat(3, -1) * 255).astype(np.uint8)


@pytest.mark.parametrize("moved", [(0, 0), (3, -5), (-4, 2)])
def test_the_shift_of_the_picture_is_found(moved):
    ground = smooth((120, 120))
    a = ground[20:84, 20:100]
    b = ground[20 - moved[0] : 84 - moved[0], 20 - moved[1] : 100 - moved[1]]
    assert shift_between(a, b) == moved
    assert float(motion(a, b).max()) < 1e-6


def test_what_moves_against_the_ground_is_found_also_when_the_camera_moves():
    for pan in ((0, 0), (1, -1)):
        frames = tracks.grey(clip(pan=pan))
        box = moving_box(frames[2], frames[0], share=20 / 64)
        assert box is not None and overlap(box, (10, 12, 20)) > 0.5


def test_nothing_moves_in_a_still_or_panned_clip():
    still = clip(speed=(0, 0))
    assert find_tracks(still, span=8) == []
    ground = smooth((120, 120))
    assert moving_box(ground[10:74, 10:90], ground[12:76, 9:89]) is None


def test_a_box_follows_its_object():
    boxes, match = follow(tracks.grey(clip()), (10.0, 12.0, 20.0))
    assert match > 0.8
    for t, box in enumerate(boxes):
        assert overlap(box, (10 + t, 12 + 2 * t, 20)) > 0.75, t


def test_a_box_on_plain_ground_stays():
    boxes, _ = follow(np.full((4, 40, 40), 0.5, np.float32), (10.0, 10.0, 12.0))
    assert all(overlap(box, boxes[0]) > 0.95 for box in boxes)


def test_tracks_of_a_clip():
    (track,) = find_tracks(clip(), span=10, share=20 / 64)
    assert (track.start, track.end) == (0, 10)
    assert overlap(track.last, (20, 32, 20)) > 0.4 and track.returned > 0.5
    two = find_tracks(clip(), span=6, most=2, share=20 / 64)
    assert [t.start for t in two] == [0, 5]
    assert find_tracks(clip()[:4]) == []  # too short


def test_an_object_that_vanishes_is_no_track():
    frames = clip()
    frames[6:] = clip(seed=7)[6:]
    assert find_tracks(frames, span=10, share=20 / 64) == []


def test_overlap_of_boxes():
    assert overlap((0, 0, 2), (0, 0, 2)) == 1 and overlap((0, 0, 2), (5, 5, 2)) == 0
    assert overlap((0, 0, 2), (0, 1, 2)) == pytest.approx(1 / 3)


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Files that stand for clips; what is in them is made up when they are read."""
    for name in ("a/x 1.mp4", "a/y.mp4", "b/z.mp4", "b/broken.mp4", "b/notes.txt"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def read(path):
        if path.stem == "broken":
            raise UserError("broken")
        return clip(seed=ord(path.stem[0]))

    monkeypatch.setattr(tracks, "read_frames", read)
    return tmp_path / "clips"


def test_a_folder_of_tracks(videos, tmp_path):
    out = tmp_path / "tracks"
    found = tracks.tracks(videos, out, span=10, size=20 / 64)
    assert found["clips"] == 4 and found["tracks"] == 3 and list(found["bad"]) == [str(videos / "b" / "broken.mp4")]
    assert sorted(p.name for p in out.iterdir()) == ["a_x_1#000", "a_y#000", "b_z#000", "tracks.json"]
    record = json.loads((out / "tracks.json").read_text())["tracks"][0]
    assert record["folder"] == "a_x_1#000" and record["end"] == 10
    assert Image.open(out / "a_y#000" / "1.png").size[0] == Image.open(out / "a_y#000" / "1.png").size[1]
    source = open_source(out)
    assert len(source) == 6 and len(source.class_names) == 3
    with pytest.raises(UserError, match="not an empty"):
        tracks.tracks(videos, out)


def test_all_clips_of_a_folder_as_one_video(videos, tmp_path):
    tracks.tracks(videos, tmp_path / "t", same="folder", span=10, size=20 / 64)
    assert sorted(p.name for p in (tmp_path / "t").glob("*#*")) == ["a#000", "a#001", "b#000"]


def test_mistakes_are_named(videos, tmp_path):
    with pytest.raises(UserError, match="no path"):
        tracks.tracks(tmp_path / "nothing", tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video"):
        tracks.tracks(tmp_path / "empty", tmp_path / "t")
    with pytest.raises(UserError, match="Nothing that moves"):
        tracks.tracks(videos, tmp_path / "t", least_match=1.0)


def test_reading_real_clips(shared_data, tmp_path):
    pytest.importorskip("av")
    import tarfile

    with tarfile.open(shared_data("video_clips") / "scene_clips.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".mp4")][:3]
        tar.extractall(tmp_path / "clips", members, filter="data")
    frames = tracks.read_frames(tracks.video_files(tmp_path / "clips")[0])
    assert frames.dtype == np.uint8 and frames.ndim == 4 and min(frames.shape[1:3]) == 128
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be decoded"):
        tracks.read_frames(bad)


def test_clips_that_are_all_broken_are_told(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"None of the 1 clips .* cannot be decoded as video"):
        tracks.tracks(tmp_path, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtra, match=r"eyespot\[video\]"):
        tracks.read_frames(tmp_path / "x.mp4")
