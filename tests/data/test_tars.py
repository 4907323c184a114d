"""Tars in the form of WebDataset: what is a sample, what is a label, and what is refused of a hostile tar."""

import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from raw_tars import encoded

from eyespot.data import BadFile, Data, open_source
from eyespot.data.decode import decode
from eyespot.data.tar import members
from eyespot.data.webdataset import index_of
from eyespot.errors import UserError


# --- samples and labels ---------------------------------------------------------------------------------------
def test_samples_and_labels(tmp_path, pictures, tars):
    images = encoded(pictures, 4)
    files = {}
    for k, raw in enumerate(images):
        files |= {f"{k:04d}.png": raw, f"{k:04d}.cls": b"%d\n" % (k % 3), f"{k:04d}.json": b'{"label": 9, "x": [1]}'}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    assert len(source) == 4 and source.labels.dtype == np.int64 and source.labels.tolist() == [0, 1, 2, 0]
    assert source.class_names == ("0", "1", "2") and not source.refused
    for i in (3, 0, 2):
        assert torch.equal(source.load(i), decode(images[i])) and source.shape(i) == (3, 20, 24, False)
    assert source.path(2) == f"{tmp_path / 'a.tar'}#0002.png"
    with pytest.raises(IndexError):
        source.raw(4)


def test_labels_from_json_and_words(tmp_path, pictures, tars):
    images = encoded(pictures, 6)
    labels = [{"label": "dog"}, {"cls": "ant"}, {"caption": "x"}, {"label": ["dog"]}, {"label": True}, {"label": "dog"}]
    files = {}
    for k, (raw, label) in enumerate(zip(images, labels, strict=True)):
        files |= {f"./deep/{k}.json": json.dumps(label).encode(), f"./deep/{k}.jpg": raw}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    assert source.class_names == ("ant", "dog") and source.labels.tolist() == [1, 0, -1, -1, -1, 1]
    assert source.path(1).endswith("#deep/1.jpg")
    named = open_source(tmp_path / "a.tar", label_column="caption")
    assert named.class_names == ("x",) and named.labels.tolist() == [-1, -1, 0, -1, -1, -1]
    with pytest.raises(
        UserError, match=r"No sample of .* has a label in '.species' or under that key of its .json; its"
    ):
        open_source(tmp_path / "a.tar", label_column="species")


def test_labels_agree_between_tars(tmp_path, pictures, tars):
    raw = encoded(pictures, 1)[0]
    tars.write(tmp_path / "s" / "0.tar", {"a.png": raw, "a.txt": b"zebra", "b.png": raw, "b.txt": b"bee"})
    tars.write(tmp_path / "s" / "1.tar", {"a.png": raw, "a.txt": b"ant", "b.png": raw, "c.png": raw, "c.txt": b"bee"})
    source = open_source(tmp_path / "s", label_column="txt")
    assert source.class_names == ("ant", "bee", "zebra") and source.labels.tolist() == [2, 1, 0, -1, 1]
    assert open_source(tmp_path / "s").labels is None


def test_members_of_a_sample_need_not_lie_side_by_side(tmp_path, pictures, tars):
    images = encoded(pictures, 3)
    files = {f"{k}.png": raw for k, raw in enumerate(images)} | {f"{k}.cls": b"%d" % k for k in (2, 0, 1)}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    assert source.labels.tolist() == [0, 1, 2] and torch.equal(source.load(1), decode(images[1]))
    turned = {f"{k}.cls": b"%d" % k for k in range(3)} | {f"{k}.png": images[k] for k in (2, 1, 0)}
    source = open_source(tars.write(tmp_path / "b.tar", turned))
    assert [source.path(i)[-5:] for i in range(3)] == ["2.png", "1.png", "0.png"], "in the order of the pictures"
    assert source.labels.tolist() == [2, 1, 0]


def test_which_member_is_the_picture(tmp_path, pictures, tars):
    one, two = encoded(pictures, 2)
    files = {"a.mask.png": two, "a.png": one, "a.npy": b"", "b.image.png": one, "b.depth.png": two, "c.left.png": one}
    files |= {"d.left.png": one, "d.right.png": two, "e.txt": b"no picture", "f.SEG.PNG": two}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    names = [source.path(i).partition("#")[2] for i in range(len(source))]
    assert names == ["a.png", "b.image.png", "c.left.png", "f.SEG.PNG"]
    assert source.refused == {
        f"{tmp_path / 'a.tar'}#d": "holds several pictures (left.png, right.png); name one with --image-column"
    }
    left = open_source(tmp_path / "a.tar", image_column="left.png")
    assert [left.path(i).partition("#")[2] for i in range(len(left))] == ["c.left.png", "d.left.png"]
    with pytest.raises(UserError, match=r"holds no member that ends in '.webp', its members end in "):
        open_source(tmp_path / "a.tar", image_column="webp")


def test_what_is_no_sample_is_left_out(tmp_path, pictures, tars):
    raw = encoded(pictures, 1)[0]
    files = {"README": b"x", ".hidden.png": raw, "a/._1.png": raw, "__MACOSX/1.png": raw, "1.png": raw, "1.txt": b"x"}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    assert len(source) == 1 and not source.refused


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_and_long_names(tmp_path, pictures, form):
    raw = encoded(pictures, 1)[0]
    long = "/".join(["directory" * 9] * (2 if form == tarfile.USTAR_FORMAT else 6)) + "/größe.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=form, pax_headers={"comment": "x"}) as tar:
        folder = tarfile.TarInfo("directory")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("a.png", long):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    source = open_source(tmp_path / "a.tar")
    assert [source.path(i).partition("#")[2] for i in range(2)] == ["a.png", long]
    assert torch.equal(source.load(1), decode(raw)) and not source.refused


def test_folders_splits_and_patterns(tmp_path, pictures, tars):
    for k, name in enumerate(("train-000000", "train-000001", "test-000000")):
        tars.write(tmp_path / f"{name}.tar", {f"{i}.png": raw for i, raw in enumerate(encoded(pictures, 2, 10 * k))})
    assert len(open_source(tmp_path)) == 4 and len(open_source(tmp_path, split="all")) == 6
    assert len(open_source(f"{tmp_path}:test")) == 2
    pattern = open_source(f"{tmp_path}/train-{{000000..000001}}.tar")
    assert len(pattern) == 4 and pattern.path(3) == f"{tmp_path}/train-000001.tar#1.png"
    assert torch.equal(pattern.load(3), decode(encoded(pictures, 2, 10)[1]))
    assert len(open_source(f"{tmp_path}/{{train,test}}-000000.tar")) == 4
    with pytest.raises(UserError, match=r"no split 'valid'.*valid: test, train"):
        open_source(tmp_path, split="valid")
    with pytest.raises(UserError, match="a tar has no splits"):
        open_source(tmp_path / "test-000000.tar", split="test")


def test_pictures_come_before_tars_in_a_folder(tmp_path, pictures, tars):
    tars.write(tmp_path / "a.tar", {"1.png": encoded(pictures, 1)[0]})
    pictures.write(tmp_path, {"0.png": pictures.picture()})
    assert open_source(tmp_path).path(0) == str(tmp_path / "0.png")


# --- the index ------------------------------------------------------------------------------------------------
def walks(monkeypatch) -> list:
    """The tars that are walked through from here on."""
    seen = []

    def counting(tar):
        seen.append(tar)
        return members(tar)

    monkeypatch.setattr("eyespot.data.webdataset.members", counting)
    return seen


def test_the_index_is_kept_and_the_same(tmp_path, pictures, tars, monkeypatch):
    files = {}
    for k, raw in enumerate(encoded(pictures, 5)):
        files |= {f"{k}.png": raw, f"{k}.cls": b"%d" % (k % 2)}
    tars.write(tmp_path / "a.tar", files)
    seen = walks(monkeypatch)
    first, second = (open_source(tmp_path / "a.tar") for _ in range(2))
    assert len(seen) == 1
    assert [first.path(i) for i in range(5)] == [second.path(i) for i in range(5)]
    assert first.labels.tolist() == second.labels.tolist() == [0, 1, 0, 1, 0]
    assert all(torch.equal(first.load(i), second.load(i)) for i in range(5))
    open_source(tmp_path / "a.tar", label_column="cls")  # another question, another index
    assert len(seen) == 2
    assert len(index_of(tmp_path / "a.tar", mapped=False)) == 5 and len(seen) == 2


def test_the_index_notices_another_tar(tmp_path, pictures, tars, monkeypatch):
    images = encoded(pictures, 3)
    tars.write(tmp_path / "a.tar", {"0.png": images[0]})
    assert len(open_source(tmp_path / "a.tar")) == 1
    tars.write(tmp_path / "a.tar", {"0.png": images[1], "1.png": images[2]})
    assert torch.equal(open_source(tmp_path / "a.tar").load(1), decode(images[2]))
    seen = walks(monkeypatch)
    tars.write(tmp_path / "a.tar", {"0.png": images[1], "1.png": images[2]}, when=2e9)
    open_source(tmp_path / "a.tar")
    assert len(seen) == 1


def test_a_tar_that_is_being_written_is_not_kept(tmp_path, pictures, tars, monkeypatch):
    tars.write(tmp_path / "a.tar", {"0.png": encoded(pictures, 1)[0]})
    os.utime(tmp_path / "a.tar")
    seen = walks(monkeypatch)
    for _ in range(2):
        open_source(tmp_path / "a.tar")
    assert len(seen) == 2


def test_a_tar_that_changes_during_the_run(tmp_path, pictures, tars):
    images = encoded(pictures, 2)
    path = tars.write(tmp_path / "a.tar", {"0.png": images[0], "1.png": images[1]})
    source = open_source(path)
    tars.write(path, {"0.png": images[1]}, when=2e9)
    with pytest.raises(BadFile, match="has changed since the run began"):
        source.load(0)
    source = open_source(path)
    path.unlink()
    with pytest.raises(BadFile, match="no such file"):
        source.load(0)
    path = tars.write(tmp_path / "b.tar", {"0.png": images[0], "1.png": images[1]})
    source = open_source(path)
    source.load(0)
    os.truncate(path, 600)  # the tar is open already
    with pytest.raises(BadFile, match="has been cut off"):
        source.load(1)


def test_many_tars_are_not_all_kept_open(tmp_path, pictures, tars):
    raw = encoded(pictures, 1)[0]
    for k in range(200):
        tars.write(tmp_path / f"{k:03d}.tar", {"0.png": raw})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):  # indices made, and kept
        source = open_source(tmp_path)
        assert {source.load(i).shape for i in range(200)} == {(3, 20, 24)}
        assert len(os.listdir("/proc/self/fd")) - before < 40
    del source
    assert len(os.listdir("/proc/self/fd")) - before < 40


def test_pickles_for_workers_that_are_not_forked(tmp_path, pictures, tars):
    images = encoded(pictures, 2)
    source = open_source(tars.write(tmp_path / "a.tar", {"0.png": images[0], "1.png": images[1]}))
    source.load(0)
    assert torch.equal(pickle.loads(pickle.dumps(source)).load(1), decode(images[1]))


# --- real pictures --------------------------------------------------------------------------------------------
def test_flowers_in_tars(shared_data, tmp_path, tars):
    whole = open_source(shared_data("flowers17"), split="test")
    rows = range(0, len(whole), 9)
    for shard, part in enumerate(np.array_split(np.array(rows), 3)):
        files = {}
        for i in part.tolist():
            files |= {f"{i:06d}.jpg": whole.raw(i), f"{i:06d}.cls": b"%d" % whole.labels[i]}
        tars.write(tmp_path / f"shard-{shard:06d}.tar", files)
    source = open_source(tmp_path)
    assert len(source) == len(rows) and source.labels.tolist() == whole.labels[::9].tolist()
    assert all(torch.equal(source.load(k), whole.load(i)) for k, i in enumerate(rows))
    batch = next(Data(source, cache_bytes=0, workers=1).stream([np.arange(8)]))
    assert batch["label"].tolist() == whole.labels[::9][:8].tolist()
