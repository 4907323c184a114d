"""Folders, lists and single files: what is found, what is a label, and what is said when there is nothing."""

import os

import numpy as np
import pytest

from eyespot.data import aligned_labels, open_source
from eyespot.data.folder import FileSource
from eyespot.data.sources import numbered
from eyespot.errors import UserError


def names(source) -> list[str]:
    root = str(source.name).rsplit(":", 1)[0] if ":" in source.name else source.name
    return [os.path.relpath(source.path(i), root) for i in range(len(source))]


def test_nested_mixed_formats(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"a.png": p, "x/b.JPG": p, "x/y/c.tiff": p, "x/y/z/d.npy": p, "x/e.webp": p, "f.bmp": p})
    source = open_source(tmp_path)
    assert names(source) == ["a.png", "f.bmp", "x/b.JPG", "x/e.webp", "x/y/c.tiff", "x/y/z/d.npy"]
    assert source.labels is None and source.class_names == ()
    assert all(source.load(i).shape == (3, 20, 24) for i in range(6))
    assert open_source(str(tmp_path)).path(0) == str(tmp_path / "a.png")


def test_class_folders(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"dog/1.png": p, "cat/1.png": p, "cat/2.jpg": p, "dog/readme.txt": b"no picture"})
    source = open_source(tmp_path)
    assert names(source) == ["cat/1.png", "cat/2.jpg", "dog/1.png"]
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "files",
    [
        ["1.png", "2.png"],  # flat
        ["cat/1.png", "cat/2.png"],  # one folder
        ["cat/1.png", "dog/1.png", "3.png"],  # mixed depths
        ["cat/1.png", "dog/old/1.png"],
        ["a/cat/1.png", "a/dog/1.png"],  # two levels down
    ],
)
def test_other_trees_have_no_labels(tmp_path, pictures, files):
    pictures.write(tmp_path, {f: pictures.picture() for f in files})
    source = open_source(tmp_path)
    assert len(source) == len(files) and source.labels is None and source.class_names == ()


def test_splits_are_no_classes(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"train/cat/1.png": p, "train/dog/1.png": p, "test/dog/1.png": p, "test/cat/1.png": p})
    for data, split in [(tmp_path, "test"), (f"{tmp_path}:test", None)]:
        source = open_source(data, split=split)
        assert names(source) == ["test/cat/1.png", "test/dog/1.png"] and source.class_names == ("cat", "dog")
    assert names(open_source(tmp_path)) == ["train/cat/1.png", "train/dog/1.png"]  # the training part, when named
    everything = open_source(tmp_path, split="all")
    assert len(everything) == 4 and everything.labels is None
    with pytest.raises(UserError, match=r"no folder 'tset'.*did you mean 'test'"):
        open_source(tmp_path, split="tset")
    flat = pictures.write(tmp_path / "flat", {"train/1.png": p, "test/2.png": p})
    assert open_source(flat, split="all").labels is None


def test_labels_align_by_name(tmp_path, pictures):
    p = pictures.picture()
    train = pictures.write(tmp_path / "a", {"cat/1.png": p, "dog/1.png": p, "eel/1.png": p})
    test = pictures.write(tmp_path / "b", {"dog/1.png": p, "eel/1.png": p, "fox/1.png": p})
    names = open_source(train).class_names
    assert aligned_labels(open_source(test), names).tolist() == [1, 2, -1]
    assert aligned_labels(open_source(train / "cat"), names).tolist() == [-1]


def test_hidden_and_foreign_files_are_left_out(tmp_path, pictures):
    p = pictures.picture()
    files = {"1.png": p, ".hidden.png": p, ".git/2.png": p, "__MACOSX/3.png": p, "notes.txt": b"x", "film.mp4": b"x"}
    pictures.write(tmp_path, files)
    assert names(open_source(tmp_path)) == ["1.png"]


def test_links(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"root/zoo/1.png": p, "elsewhere/2.png": p, "elsewhere/deep/3.png": p})
    root = tmp_path / "root"
    (root / "loop").symlink_to(root)
    (root / "zoo" / "up").symlink_to(tmp_path / "root")
    (root / "also").symlink_to(root / "zoo")  # already there under its own name
    (root / "other").symlink_to(tmp_path / "elsewhere")
    (root / "zoo" / "4.png").symlink_to(root / "zoo" / "1.png")
    (root / "zoo" / "gone.png").symlink_to(root / "nowhere.png")
    assert names(open_source(root)) == [
        "other/2.png",
        "other/deep/3.png",
        "zoo/1.png",
        "zoo/4.png",
        "zoo/gone.png",  # reported when it is read
    ]


def test_class_folders_of_links(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"all/n01/1.png": p, "all/n02/1.png": p, "all/n03/1.png": p})
    (tmp_path / "some").mkdir()
    for name in ("n03", "n01"):
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    assert open_source(tmp_path / "some").class_names == ("n01", "n03")


def test_a_pipe_is_no_file(tmp_path, pictures):
    pictures.write(tmp_path, {"1.png": pictures.picture()})
    os.mkfifo(tmp_path / "2.png")
    assert names(open_source(tmp_path)) == ["1.png"]


def test_one_picture(tmp_path, pictures):
    pictures.write(tmp_path, {"1.png": pictures.picture()})
    source = open_source(tmp_path / "1.png")
    assert len(source) == 1 and source.load(0).shape == (3, 20, 24)


# --- text lists -----------------------------------------------------------------------------------------------
def test_list(tmp_path, pictures):
    p = pictures.picture()
    pictures.write(tmp_path, {"sub/a b.png": p, "c.png": p, "far/d.png": p})
    text = f"sub/a b.png\r\n\n  c.png  \r\n{tmp_path / 'far' / 'd.png'}\n"
    (tmp_path / "list.txt").write_text("\ufeff" + text, encoding="utf-8")
    source = open_source(tmp_path / "list.txt")
    assert [os.path.basename(source.path(i)) for i in range(3)] == ["a b.png", "c.png", "d.png"]
    assert source.labels is None and source.load(0).shape == (3, 20, 24)


def test_list_with_labels(tmp_path, pictures):
    pictures.write(tmp_path, {f"{k}.png": pictures.picture() for k in range(3)})
    (tmp_path / "words.txt").write_text("0.png\tzebra\n1.png\tant\n2.png\tzebra\n")
    source = open_source(tmp_path / "words.txt")
    assert source.class_names == ("ant", "zebra") and source.labels.tolist() == [1, 0, 1]
    (tmp_path / "numbers.tsv").write_text("0.png\t2\n1.png\t0\n2.png\t2\n")
    source = open_source(tmp_path / "numbers.tsv")
    assert source.class_names == ("0", "1", "2") and source.labels.tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; write one path a line"),
        ("\n \n", "is empty"),
        ("0.png\nmissing.png\nalso.png\n", "names 2 of 3 files that do not exist, the first is 'missing.png'"),
        ("0.png\tcat\n0.png\n", "no label for '0.png' but for others"),
        (b"\xff\xfe\x00\x99binary", "not a text list in UTF-8"),
    ],
)
def test_broken_lists(tmp_path, pictures, text, message):
    pictures.write(tmp_path, {"0.png": pictures.picture()})
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "list.txt")


# --- nothing there --------------------------------------------------------------------------------------------
def one_sentence(message: str) -> bool:
    return "\n" not in message and message.rstrip("?.").count("? ") == 0 and message[-1] in ".?"


def test_missing_path_names_what_is_near(tmp_path, pictures):
    pictures.write(tmp_path, {"photos/1.png": pictures.picture(), "labels/1.txt": b"x"})
    with pytest.raises(UserError, match=r"There is no path .*photo; did you mean 'photos'?") as caught:
        open_source(tmp_path / "photo")
    assert one_sentence(str(caught.value))
    with pytest.raises(UserError, match=r"the last folder of it that exists is .*"):
        open_source(tmp_path / "a" / "b" / "c")
    with pytest.raises(UserError, match="is an address"):
        open_source("https://example.org/photos")
    with pytest.raises(UserError, match="data path is empty"):
        open_source(" ")
    for k in range(30):
        (tmp_path / f"{k:02d}").mkdir()
    with pytest.raises(UserError, match="and 27 more") as caught:
        open_source(tmp_path / "qqqqqqqqqqqqqq")
    assert len(str(caught.value)) < 400


def test_nothing_to_read(tmp_path, pictures):
    with pytest.raises(UserError, match="is empty; give one that holds pictures"):
        open_source(tmp_path)
    pictures.write(tmp_path, {"a.txt": b"x", "b.txt": b"x", "c.mp4": b"x"})
    with pytest.raises(
        UserError, match=r"holds no picture, no Parquet file and no tar, only other files \(2 .txt, 1 .mp4\)"
    ):
        open_source(tmp_path)
    with pytest.raises(UserError, match="neither a folder, a picture"):
        open_source(tmp_path / "c.mp4")
    with pytest.raises(UserError, match="has no splits"):
        pictures.write(tmp_path, {"1.png": pictures.picture()})
        open_source(tmp_path / "1.png", split="test")


def test_numbered():
    assert numbered([]) == (None, ())
    assert numbered([None, -1]) == (None, ())
    labels, classes = numbered([3, 1, None, 3])
    assert labels is not None and labels.tolist() == [3, 1, -1, 3] and classes == ("0", "1", "2", "3")
    labels, classes = numbered([0, 1, -1], ("cat", "dog"))
    assert labels is not None and labels.tolist() == [0, 1, -1] and classes == ("cat", "dog")
    labels, classes = numbered(["b", "a", None])
    assert labels is not None and labels.tolist() == [1, 0, -1] and classes == ("a", "b")
    labels, classes = numbered([10**9, 5, 10**9])  # identifiers, not numbers of classes
    assert labels is not None and labels.tolist() == [1, 0, 1] and classes == ("5", "1000000000")


def test_a_source_stays_itself(tmp_path):
    source = FileSource(["a.png"])
    assert open_source(source) is source
