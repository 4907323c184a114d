"""Clips: exact frames after seeking, windows, plans, every kind of path, everything that may be broken."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clips import CODECS, encode, frames, number, sound, write_folder

from eyespot.data import video
from eyespot.data.clips import ClipSource, open_clips
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.data.video import about, evenly, read_windows, upright, window_frames
from eyespot.errors import MissingExtra, UserError


@pytest.fixture(scope="module")
def mp4():
    return encode(frames())


# --- frames -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CODECS)
def test_the_frames_asked_for_are_those_decoded(kind):
    """Whatever the container, with several key frames on the way: the number written into each frame says which."""
    data = encode(frames(), kind)
    assert about(data).frames == 24 and about(data).fps == pytest.approx(12, rel=1e-3)
    got = read_windows(data, [(0, 4, 2), (13, 4, 3), (20, 4, 1)])
    assert got.shape == (3, 4, 3, 32, 48) and got.dtype == torch.uint8
    assert [[number(f) for f in window] for window in got] == [[0, 2, 4, 6], [13, 16, 19, 22], [20, 21, 22, 23]]


def test_frames_equal_those_of_a_whole_decoding(mp4):
    import av

    with av.open(io.BytesIO(mp4)) as container:
        whole = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    part = read_windows(mp4, [(9, 6, 2)])
    assert np.array_equal(part.permute(0, 2, 3, 1).numpy(), whole[9:21:2])


def test_far_windows_are_reached_by_seeking():
    """More frames lie between two windows than are decoded for nothing."""
    data = encode(frames(steps=150), gop=10)
    got = read_windows(data, [(3, 2, 1), (140, 2, 4)])
    assert [[number(f) for f in window] for window in got] == [[3, 4], [0, 4]]  # numbers wrap at 28
    decoded = []
    real = video._number
    video._number = lambda *args: decoded.append(1) or real(*args)
    try:
        read_windows(data, [(140, 2, 4)])
    finally:
        video._number = real
    assert len(decoded) < 20


def test_a_window_over_the_end_goes_on_at_the_beginning(mp4):
    assert window_frames((3, 4, 2), 5).tolist() == [3, 0, 2, 4]
    assert [number(f) for f in read_windows(mp4, [(21, 4, 2)])] == [21, 23, 1, 3]


def test_a_clip_that_is_too_short_is_looped():
    data = encode(frames(steps=3))
    assert [number(f) for f in read_windows(data, [(0, 8, 1)])] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [number(f) for f in read_windows(data, None, frames=6)] == [0, 0, 1, 1, 2, 2]
    one = encode(frames(steps=1))
    assert read_windows(one, [(0, 4, 2)]).shape == (4, 3, 32, 48)


def test_without_a_plan_frames_are_spread_over_the_whole_clip(mp4):
    (chosen,) = evenly(24, 6)
    assert chosen.tolist() == [2, 6, 10, 14, 18, 22]
    assert [number(f) for f in read_windows(mp4, None, frames=6)] == chosen.tolist()


def test_frames_are_shrunk_and_never_enlarged(mp4):
    assert read_windows(mp4, None, short_side=16).shape == (16, 3, 16, 24)
    assert read_windows(mp4, None, short_side=99).shape == (16, 3, 32, 48)
    small = read_windows(mp4, [(4, 1, 1)], short_side=16).float()
    large = torch.nn.functional.avg_pool2d(read_windows(mp4, [(4, 1, 1)]).float(), 2)
    assert float((small - large).abs().mean()) < 6


def test_grey(mp4):
    grey, colour = (read_windows(mp4, [(2, 2, 5)], channels=c).float() for c in (1, 3))
    assert grey.shape == (2, 1, 32, 48)
    luma = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert float((grey - luma).abs().mean()) < 20  # video levels 16..235 may be kept
    with pytest.raises(UserError, match="3 channels, or 1 of grey, not 4"):
        read_windows(mp4, None, channels=4)


def test_turned_clips_are_turned_upright():
    frame = np.arange(6).reshape(2, 3)
    assert upright(frame, 0) is not None and upright(frame, 0).tolist() == frame.tolist()
    assert upright(frame, 90).tolist() == [[2, 5], [1, 4], [0, 3]]
    assert upright(frame, -90).tolist() == [[3, 0], [4, 1], [5, 2]]
    assert upright(frame, 180).tolist() == frame[::-1, ::-1].tolist()


# --- what is broken ---------------------------------------------------------------------------------------------------
def broken(mp4):
    return {
        "empty": (b"", "invalid data"),
        "no video": (b"these are words, not a clip " * 40, "invalid data"),
        "sound": (sound(), "no moving picture"),
        "half": (mp4[: len(mp4) // 2], "invalid data"),
        "end missing": (encode(frames(), "mkv")[:-3000], "it is cut off"),
        "header alone": (encode(frames(), "mkv")[:600], "cannot be sought"),
    }


@pytest.mark.parametrize("kind", ["empty", "no video", "sound", "half", "end missing", "header alone"])
def test_broken_clips_are_bad_files(mp4, kind):
    data, reason = broken(mp4)[kind]
    with pytest.raises(BadFile, match=reason) as error:
        read_windows(data, [(0, 4, 6)], name="x.mp4")
    assert str(error.value).startswith("x.mp4: ") and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_a_bad_file(tmp_path):
    with pytest.raises(BadFile, match="no such file"):
        about(tmp_path / "none.mp4")


def test_some_bad_clips_are_replaced_and_many_stop(tmp_path, mp4):
    root = write_folder(tmp_path / "clips", each=6)
    (root / "fast" / "03.mp4").write_bytes(b"")
    data = RecordData(open_clips(root), workers=0, max_bad=0.2)
    batch = data.batch(range(12), plans=[{"windows": [(0, 4, 1)]}] * 12)
    assert batch["video"].shape == (12, 4, 3, 32, 48)
    assert batch["index"].tolist() == [0, 1, 2, 4, 4, *range(5, 12)]
    assert list(data.bad) == [str(root / "fast" / "03.mp4")]
    assert len(data.batch(range(12), replace=False)["index"]) == 11
    for name in ("00", "01", "02"):
        (root / "slow" / f"{name}.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match="more than the 20% that are allowed"):
        RecordData(open_clips(root), workers=0, max_bad=0.2).batch(range(12))


def test_without_pyav_the_extra_is_named(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"eyespot\[video\]"):
        about(mp4)


# --- sources ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clips"))


def test_class_folders_are_labels(folder):
    source = open_clips(folder)
    assert len(source) == 12 and source.class_names == ("fast", "slow") and source.labels.tolist() == [0] * 6 + [1] * 6
    assert source.path(0) == str(folder / "fast" / "00.mp4")
    assert source.about(0).frames == source.length(0) == 24
    assert source.record(0)["video"].shape == (16, 3, 32, 48)
    assert source.record(0, {"windows": [(2, 4, 2), (9, 4, 2)], "short_side": 16})["video"].shape == (2, 4, 3, 16, 24)


def test_kept_clips_give_what_decoded_ones_give(folder):
    kept, decoded = open_clips(folder), open_clips(folder, keep_bytes=0)
    for plan in (None, {"windows": [(20, 6, 2)]}, {"windows": [(0, 4, 1), (50, 4, 3)], "short_side": 20}):
        assert torch.equal(kept.record(1, plan)["video"], decoded.record(1, plan)["video"])
    assert kept._kept and not decoded._kept
    again = pickle.loads(pickle.dumps(kept))
    assert not again._kept and torch.equal(again.record(1)["video"], kept.record(1)["video"])


def test_a_batch_by_worker_processes_is_the_same(folder):
    plans = [{"windows": [(i, 4, 2)]} for i in range(12)]
    from eyespot.data.batches import Request

    request = Request(np.arange(12), plans=plans)
    (here,), (there,) = (RecordData(open_clips(folder), workers=w).stream([request]) for w in (0, 1))
    assert torch.equal(here["video"], there["video"]) and torch.equal(here["label"], there["label"])


def test_clips_of_many_sizes_are_a_list(tmp_path):
    for k, size in enumerate(((32, 48), (32, 64))):
        (tmp_path / f"{k}.mp4").write_bytes(encode(frames(size=size)))
    batch = RecordData(open_clips(tmp_path), workers=0).batch([0, 1])
    assert [tuple(v.shape) for v in batch["video"]] == [(16, 3, 32, 48), (16, 3, 32, 64)]
    assert "label" not in batch


def test_splits_by_folder_and_by_fold(tmp_path):
    for part, each in (("train", 5), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(each):
                (tmp_path / part / name / f"{i}.mp4").write_bytes(b"x")
    assert len(open_clips(tmp_path)) == 10  # the training part
    test = open_clips(f"{tmp_path}:test")
    assert len(test) == 4 and test.class_names == ("a", "b") and test.labels.tolist() == [0, 0, 1, 1]
    assert len(open_clips(tmp_path, split="all")) == 14
    with pytest.raises(UserError, match=r"no folder 'tset'.*did you mean 'test'"):
        open_clips(tmp_path, split="tset")
    train = tmp_path / "train"
    parts = [open_clips(train, split=f"fold{k}/5") for k in range(1, 6)]
    assert [[Path(p.path(i)).stem for i in range(len(p))] for p in parts] == [[str(k)] * 2 for k in range(5)]
    for k, part in enumerate(parts, 1):
        rest = open_clips(f"{train}:rest{k}/5")
        assert len(rest) == 8 and rest.labels.tolist() == [0] * 4 + [1] * 4
        assert not {rest.path(i) for i in range(8)} & {part.path(i) for i in range(2)}
    for wrong in ("fold0/5", "fold6/5", "fold1/1"):
        with pytest.raises(UserError, match="numbered from 1"):
            open_clips(train, split=wrong)


def test_text_lists(folder, tmp_path):
    names = ["fast/00.mp4\tmoves", "slow/01.mp4\tstays", "fast/02.mp4\tmoves"]
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    source = open_clips(folder / "list.txt")
    assert source.labels.tolist() == [0, 1, 0] and source.class_names == ("moves", "stays")
    assert len(open_clips(f"{folder / 'list.txt'}:rest1/2")) == 1
    with pytest.raises(UserError, match="a text list has no splits"):
        open_clips(folder / "list.txt", split="test")


def test_tars(folder, tmp_path):
    path = tmp_path / "clips.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "fast", "fast")
        tar.add(folder / "slow", "slow")
        evil = tarfile.TarInfo("../evil.mp4")
        tar.addfile(evil)
    source = open_clips(path)
    assert len(source) == 12 and source.class_names == ("fast", "slow")
    assert source.path(0) == f"{path}#fast/00.mp4"
    assert list(source.refused.values()) == ["'..' in its path"]
    assert torch.equal(source.record(7)["video"], open_clips(folder).record(7)["video"])
    assert len(open_clips(tmp_path)) == 12  # a folder of tars
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(BadFile, match="has been cut off since"):
        source.record(11)


def test_one_file_and_a_source(folder):
    source = open_clips(folder / "fast" / "00.mp4")
    assert len(source) == 1 and source.labels is None
    assert open_clips(source) is source and isinstance(source, ClipSource)


def test_mistakes_are_told(tmp_path, mp4):
    encoded = tmp_path / "empty" / "x.mp4"
    encoded.parent.mkdir()
    encoded.write_bytes(mp4)
    tmp_path = tmp_path / "other"
    tmp_path.mkdir()
    with pytest.raises(UserError, match="There is no path"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is empty"):
        open_clips(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.csv").write_text("words")
    with pytest.raises(UserError, match=r"only other files \(1 \.csv, 1 \.txt\)|only other files \(1 \.txt, 1 \.csv\)"):
        open_clips(tmp_path)
    (tmp_path / "c.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is compressed"):
        open_clips(tmp_path / "c.zip")
    (tmp_path / "d.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(UserError, match="cannot be read as a tar"):
        open_clips(tmp_path / "d.tar")
    with pytest.raises(UserError, match="come from a path, not from int"):
        open_clips(3)
    with pytest.raises(UserError, match="0 frames of a clip"):
        open_clips(encoded, frames=0)


def test_real_clips(shared_data):
    source = open_clips(shared_data("video_clips") / "fight_detection.tar", short_side=64)
    assert len(source) == 300 and source.class_names == ("fight", "noFight")
    info = source.about(0)
    assert info.fps == pytest.approx(15) and 15 <= info.frames <= 90
    clip = source.record(5, {"windows": [(0, 8, 2)]})["video"]
    assert clip.shape[:2] == (8, 3) and min(clip.shape[2:]) == 64 and float(clip.float().std()) > 5
