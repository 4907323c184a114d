"""Tars in the form of WebDataset: what is a sample, what is a label, and what is refused of a hostile tar."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot.data import BadFile, Data, open_source
from eyespot.data.decode import decode
from eyespot.data.tar import MAX_ATTRIBUTES, MAX_NAME, NoTar, Reader, members
from eyespot.data.webdataset import MAX_JSON, TOLD, TarSource, index_of
from eyespot.errors import UserError


def encoded(pictures, n: int, seed: int = 0) -> list[bytes]:
    return [pictures.encode(pictures.picture(seed + k), "PNG") for k in range(n)]


def header(name: str = "a.png", size: int = 0, kind: bytes = b"0", **fields) -> bytes:
    """One raw header block with a right checksum; `size` may be anything."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def body(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)


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


# --- hostile tars ---------------------------------------------------------------------------------------------
def tar_of(path, *parts: bytes):
    path.write_bytes(b"".join(parts))
    os.utime(path, (1e9, 1e9))
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd.png", "an absolute path"),
        ("\\\\host\\share.png", "an absolute path"),
        ("C:\\x.png", "an absolute path"),
        ("../a.png", "'..' in its path"),
        ("a/../../b.png", "'..' in its path"),
        ("a\\..\\b.png", "'..' in its path"),
        ("a\nb.png", "control characters in its name"),
        ("a\x1b[2Jb.png", "control characters in its name"),
        ("a\u2028b.png", "control characters in its name"),
    ],
)
def test_names_that_are_refused(tmp_path, pictures, tars, name, reason):
    raw = encoded(pictures, 1)[0]
    before = {p.name for p in tmp_path.iterdir()}
    source = open_source(tars.write(tmp_path / "a.tar", {name: raw, "good.png": raw}))
    assert len(source) == 1 and list(source.refused.values()) == [reason]
    assert all(len(path.splitlines()) == 1 for path in source.refused)
    data = Data(source, cache_bytes=0, workers=0)
    assert data.bad == source.refused and data.batch([0, 0])["index"].tolist() == [0, 0]
    assert {p.name for p in tmp_path.iterdir()} - before == {"a.tar"}, "something was unpacked"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"M", "a member of the unknown kind b'M'"),
    ],
)
def test_kinds_that_are_refused(tmp_path, pictures, kind, reason):
    raw = encoded(pictures, 1)[0]
    bad = header("a.png", 0, kind, linkname="/etc/passwd")
    path = tar_of(tmp_path / "a.tar", bad, header("b.png", len(raw)), body(raw), END)
    source = open_source(path)
    assert [source.path(i) for i in range(len(source))] == [f"{path}#b.png"]
    assert source.refused == {f"{path}#a.png": reason}
    assert torch.equal(source.load(0), decode(raw))


def test_links_declare_no_data(tmp_path, pictures):
    """A link's size is not skipped: what follows it is a header, as every other program reads it."""
    raw = encoded(pictures, 1)[0]
    link = header("a.png", 512, tarfile.SYMTYPE, linkname="b.png")
    source = open_source(tar_of(tmp_path / "a.tar", link, header("b.png", len(raw)), body(raw), END))
    assert source.path(0).endswith("#b.png")


@pytest.mark.parametrize("size", [10**4, 8**11 - 1, 1 << 60])
def test_sizes_beyond_the_file(tmp_path, pictures, size):
    raw = encoded(pictures, 1)[0]
    path = tar_of(tmp_path / "a.tar", header("a.png", len(raw)), body(raw), header("b.png", size), b"x" * 100)
    source = open_source(path)
    assert len(source) == 1 and torch.equal(source.load(0), decode(raw))
    reason = source.refused[str(path)]
    assert f"'b.png' declares {size:,} bytes where 100 are left" in reason and "cut off" in reason


def test_sizes_in_attributes(tmp_path, pictures):
    raw = encoded(pictures, 1)[0]

    def attributes(*records: tuple[str, str]) -> bytes:
        text = b""
        for key, value in records:
            tail = f" {key}={value}\n".encode()
            length = len(tail) + 1
            while len(str(length)) + len(tail) != length:
                length = len(str(length)) + len(tail)
            text += str(length).encode() + tail
        return header("pax", len(text), b"x") + body(text)

    first, good = (header(name, len(raw)) + body(raw) for name in ("0.png", "x.png"))
    cases = {
        "right": (attributes(("path", "y.png"), ("size", str(len(raw)))) + header("x.png", 0) + body(raw), ""),
        "false": (attributes(("size", "99999999999999")) + good, "declares 99,999,999,999,999 bytes"),
        "negative": (attributes(("size", "-5")) + good, "are damaged"),
        "letters": (attributes(("size", "abc")) + good, "are damaged"),
        "sparse": (attributes(("GNU.sparse.realsize", "1" + "0" * 15)) + good, "a sparse member"),
        "hidden path": (attributes(("path", "../../y.png")) + good, "'..' in its path"),
        "no record": (header("pax", 20, b"x") + body(b"99999999 path=y.png\n") + good, "are damaged"),
        "no number": (header("pax", 20, b"x") + body(b"abc path=yyyyyy.png\n") + good, "are damaged"),
    }
    for name, (parts, reason) in cases.items():
        source = open_source(tar_of(tmp_path / f"{name}.tar", first, parts, END))
        assert reason in " ".join(source.refused.values()), name
        assert bool(reason) == bool(source.refused) and len(source) == (1 if reason else 2), name
        assert torch.equal(source.load(len(source) - 1), decode(raw))
    assert open_source(tmp_path / "right.tar").path(1).endswith("#y.png")


def test_sparse_members(tmp_path, pictures):
    raw = encoded(pictures, 1)[0]
    sparse = bytearray(header("a.png", 512, b"S"))
    sparse[386:410] = b"%011o\0%011o\0" % (1 << 30, 512)
    sparse[482] = 1  # the map goes on in the next block
    sparse[483:495] = b"%011o\0" % (1 << 32)
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    path = tar_of(tmp_path / "a.tar", bytes(sparse), bytes(512), b"x" * 512, header("b.png", len(raw)), body(raw), END)
    source = open_source(path)
    assert source.refused == {f"{path}#a.png": "a sparse member"} and torch.equal(source.load(0), decode(raw))


@pytest.mark.parametrize(
    ("kind", "most"), [(b"x", MAX_ATTRIBUTES), (b"L", MAX_NAME), (b"K", MAX_NAME), (b"g", MAX_ATTRIBUTES)]
)
def test_headers_without_measure(tmp_path, pictures, kind, most):
    raw = encoded(pictures, 1)[0]
    path = tmp_path / "a.tar"
    tar_of(path, header("a.png", len(raw)), body(raw), header("long", most + 1, kind), bytes(most + 1024), END)
    source = open_source(path)
    assert len(source) == 1 and "declares" in source.refused[str(path)]


def test_cut_off_and_damaged(tmp_path, pictures, tars):
    images = encoded(pictures, 3)
    whole = tars.write(tmp_path / "a.tar", {f"{k}.png": raw for k, raw in enumerate(images)}).read_bytes()
    second = 512 + len(body(images[0]))
    cases = {
        second + 600: (1, "is cut off or"),
        second + 100: (1, "without its end mark"),
        second: (1, "without its end mark"),
        512 + 10: (0, "is cut off or"),
        100: (0, "ends without its end mark"),
    }
    for k, (size, (samples, reason)) in enumerate(cases.items()):
        path = tar_of(tmp_path / f"cut{k}.tar", whole[:size])
        if samples:
            source = open_source(path)
            assert len(source) == samples and reason in source.refused[str(path)]
            assert torch.equal(source.load(0), decode(images[0]))
        else:
            with pytest.raises(UserError, match=f"holds no picture.*{reason}") as caught:
                open_source(path)
            assert "\n" not in str(caught.value)
    damaged = bytearray(whole)
    damaged[second + 10] ^= 255
    source = open_source(tar_of(tmp_path / "damaged.tar", bytes(damaged)))
    assert len(source) == 1 and f"the header at byte {second} is damaged" in next(iter(source.refused.values()))


def test_two_tars_in_one(tmp_path, pictures, tars):
    raw = tars.write(tmp_path / "a.tar", {"0.png": encoded(pictures, 1)[0]}).read_bytes()
    source = open_source(tar_of(tmp_path / "b.tar", raw, raw))
    assert len(source) == 1 and "it may be two tars in one" in next(iter(source.refused.values()))


def test_zeros_without_end(tmp_path, pictures):
    """A sparse file on disk may claim terabytes behind the end mark: they are not read."""
    raw = encoded(pictures, 1)[0]
    path = tar_of(tmp_path / "a.tar", header("a.png", len(raw)), body(raw), END)
    os.truncate(path, 1 << 40)
    os.utime(path, (1e9, 1e9))
    source = open_source(path)
    assert len(source) == 1 and "behind its end mark are not read" in source.refused[str(path)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty; remove it"),
        (b"not a tar at all" * 100, "is not a tar; remove it"),
        (b"\x1f\x8b\x08" + b"z" * 2000, "is not a tar"),
        (bytes(10240), r"holds no picture, its members end in nothing\."),
    ],
)
def test_what_is_no_tar(tmp_path, raw, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(tar_of(tmp_path / "a.tar", raw))
    assert str(tmp_path / "a.tar") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def test_other_things_named_tar(tmp_path, pictures):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="is no file that can be read at any place"):
        open_source(tmp_path / "pipe.tar")
    for name in ("a.tar.gz", "a.tgz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"is compressed, .* keep a tar plain"):
            open_source(tmp_path / name)
    (tmp_path / "pipe.tar").unlink()
    with pytest.raises(UserError, match=r"compressed files .*; unpack them, and keep tars plain"):
        open_source(tmp_path)
    with pytest.raises(UserError, match=r"Cannot read .*: No such file"):
        TarSource([tmp_path / "gone.tar"])


def test_only_sound_or_only_refused(tmp_path, tars):
    path = tars.write(tmp_path / "a.tar", {"1.flac": b"x", "2.flac": b"x", "1.txt": b"x"})
    with pytest.raises(UserError, match=r"holds no picture, its members end in .flac, .txt\."):
        open_source(path)
    path = tar_of(tmp_path / "b.tar", *(header(f"{k}.png", 0, tarfile.SYMTYPE) for k in range(3)), END)
    with pytest.raises(UserError, match=r"holds no picture, .*; refused was, for one, .*#0.png: a symbolic link"):
        open_source(path)


def test_many_refused_members_are_counted(tmp_path, pictures):
    raw = encoded(pictures, 1)[0]
    links = [header(f"{k}.png", 0, tarfile.SYMTYPE) for k in range(TOLD + 7)]
    source = open_source(tar_of(tmp_path / "a.tar", *links, header("x.png", len(raw)), body(raw), END))
    assert len(source.refused) == TOLD + 1
    assert source.refused[str(tmp_path / "a.tar")] == "7 more members are left out for such reasons"


def test_members_that_occur_twice(tmp_path, pictures):
    one, two = encoded(pictures, 2)
    path = tar_of(tmp_path / "a.tar", header("a.png", len(one)), body(one), header("a.png", len(two)), body(two), END)
    source = open_source(path)
    assert len(source) == 1 and torch.equal(source.load(0), decode(one))
    assert source.refused == {f"{path}#a.png": "occurs twice; the first is taken"}


def test_labels_that_cannot_be_read(tmp_path, pictures, tars):
    raw = encoded(pictures, 1)[0]
    bad = {
        "a.json": b"{",
        "b.json": b"[" * 100_000,
        "c.cls": b"\xff\xfe",
        "d.cls": b"one\ntwo",
        "e.json": b" " * (MAX_JSON + 1),
        "f.json": b'{"label": 1' + b"0" * 5000 + b"}",
    }
    quiet = {"g.cls": b" ", "h.json": b"[1]", "i.cls": b"--5"}
    files = {**bad, **quiet, **{f"{k}.png": raw for k in "abcdefghi"}}
    source = open_source(tars.write(tmp_path / "a.tar", files))
    assert len(source) == 9 and source.labels.tolist() == [-1] * 8 + [0] and source.class_names == ("--5",)
    assert {path.rpartition("#")[2] for path in source.refused} == set(bad)
    assert all(reason.startswith("no label is taken from it: it ") for reason in source.refused.values())


@settings(max_examples=150)
@given(st.data())
def test_no_bytes_lead_astray(tmp_path_factory, pictures, tars, data):
    """Whatever the bytes, the walk ends, and every member lies within the file."""
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(tars.write(folder / "a.tar", {"a.png": b"12345", "b" * 150 + ".png": b"x" * 600}).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(whole), 4096) - 1))
        whole[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # as an attacker would: with the checksum put right
            start = at // 512 * 512
            whole[start + 148 : start + 156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % sum(whole[start : start + 512])
    path = tar_of(folder / "a.tar", bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        found = list(members(Reader(path)))
    except NoTar:
        return
    assert all(0 <= m.offset <= m.offset + m.size <= path.stat().st_size for m in found)
    assert all(len(m.reason.splitlines()) < 2 for m in found)


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
