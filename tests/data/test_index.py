"""What is kept between two starts: listings of large folders, in files that are never trusted."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyespot.data import open_source, stored, tree
from eyespot.data.names import Files, Strings
from eyespot.data.stored import cache_folder, index_file, keep_index, kept_index, settled
from eyespot.errors import UserError


# --- names ----------------------------------------------------------------------------------------------------
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8)))
def test_strings_are_what_they_were(words):
    kept = Strings.of(words)
    assert list(kept) == words and len(kept) == len(words)
    if words:
        assert kept[-1] == words[-1]
    with pytest.raises(IndexError):
        kept[len(words)]


def test_names_that_are_no_utf8():
    word = os.fsdecode(b"caf\xe9.png")
    assert list(Strings.of([word])) == [word]


@pytest.mark.parametrize("ends", [[2, 1, 4], [-1, 4], [1, 2], [1, 5]])
def test_ends_that_do_not_fit(ends):
    with pytest.raises(ValueError, match="do not fit"):
        Strings(np.zeros(4, np.uint8), np.array(ends, np.int64))


def test_files():
    names = sorted(["a.png", "b/1.png", "b/2.png", "b-c/1.png", "b/d/1.png", "z.png"])
    files = Files.of("root/", names)
    assert list(files) == [f"root/{n}" for n in names] and files[-1] == "root/z.png"
    assert list(files.below("b/")) == [f"root/b/{n}" for n in ("1.png", "2.png", "d/1.png")]
    assert len(files.below("c/")) == 0 and files.below("b/")[-1] == "root/b/d/1.png"
    assert Files.of(".", names)[0] == "a.png" and Files.of("/", names)[0] == "/a.png"
    for bad in ([0, 9], [0, -1], [0]):
        with pytest.raises(ValueError):
            Files("", Strings.of(["", "b/"]), np.array(bad, np.int32), Strings.of(["1", "2"]))


# --- where, and in which form ---------------------------------------------------------------------------------
def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("EYESPOT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EYESPOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "eyespot"
    for no_path in ("", "relative"):  # the specification says that relative paths are ignored
        monkeypatch.setenv("XDG_CACHE_HOME", no_path)
        assert cache_folder() == Path.home() / ".cache" / "eyespot"


ARRAYS = {
    "a": np.arange(5),
    "b": np.array([3, 1], np.int32),
    "c": np.zeros(0, np.uint8),
    "d": np.arange(9, dtype=np.uint8),
}


@pytest.mark.parametrize("mapped", [True, False])
def test_arrays_are_what_they_were(tmp_path, mapped):
    assert keep_index(tmp_path / "sub" / "x", "test", {"n": ["größe"]}, ARRAYS)
    about, arrays = kept_index(tmp_path / "sub" / "x", "test", mapped=mapped)
    assert about == {"n": ["größe"]} and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tolist() == array.tolist()
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x"]
    assert kept_index(tmp_path / "sub" / "x", "another kind") is None
    assert kept_index(tmp_path / "nowhere", "test") is None


def test_any_damage_is_noticed(tmp_path):
    file = tmp_path / "x"
    keep_index(file, "test", {}, ARRAYS)
    whole = file.read_bytes()
    damaged = [whole[:size] for size in (0, 10, 40, len(whole) - 1)] + [whole + b"x", b"x" * len(whole)]
    for at in range(0, len(whole), 3):
        raw = bytearray(whole)
        raw[at] ^= 1
        damaged.append(bytes(raw))
    for raw in damaged:
        file.write_bytes(raw)
        assert kept_index(file, "test") is None
    file.write_bytes(struct.pack("<16sQII", stored.MAGIC, 1 << 60, 0, 0))
    assert kept_index(file, "test") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("x")
    assert not keep_index(tmp_path / "file" / "x", "test", {}, ARRAYS)


def test_settled():
    assert settled(100.0, 103.0) and not settled(100.0, 101.0) and not settled(200.0, 100.0)


# --- listings -------------------------------------------------------------------------------------------------
OLD = (1e9, 1e9)


@pytest.fixture
def root(tmp_path, pictures, monkeypatch):
    """A folder of classes whose listing is kept."""
    monkeypatch.setattr(tree, "KEPT", 3)
    folder = pictures.write(tmp_path / "root", {f"{c}/{k}.png": pictures.picture() for c in "ab" for k in range(2)})
    age(folder)
    return folder


def age(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        os.utime(path, OLD)


@pytest.fixture
def walks(monkeypatch):
    """The folders that are listed anew."""
    seen = []
    walk = tree._Listing.walk
    monkeypatch.setattr(tree._Listing, "walk", lambda self, root: (seen.append(root), walk(self, root)))
    return seen


def names(folder) -> list[str]:
    source = open_source(folder)
    return [os.path.relpath(source.path(i), folder) for i in range(len(source))]


def kept_files() -> list[Path]:
    return sorted((cache_folder() / "index").glob("*")) if cache_folder().is_dir() else []


def test_the_second_start_lists_nothing(root, walks, monkeypatch):
    first, second = open_source(root), open_source(root)
    assert len(walks) == 1 and len(kept_files()) == 1
    assert [second.path(i) for i in range(4)] == [first.path(i) for i in range(4)]
    assert second.class_names == first.class_names == ("a", "b") and second.labels.tolist() == [0, 0, 1, 1]
    assert second.load(3).shape == (3, 20, 24)
    monkeypatch.chdir(root.parent)
    assert open_source("root").path(0) == "root/a/0.png" and len(walks) == 1  # whatever it is called
    monkeypatch.chdir(root)
    assert open_source(".").path(0) == "a/0.png" and len(walks) == 1


def test_splits_of_a_kept_listing(tmp_path, pictures, walks, monkeypatch):
    monkeypatch.setattr(tree, "KEPT", 3)
    p = pictures.picture()
    files = {f"{s}/{c}/{k}.png": p for s in ("train", "test") for c in "ab" for k in range(2)} | {"test/b/9.png": p}
    pictures.write(tmp_path / "root", files)
    age(tmp_path / "root")
    for _ in range(2):
        test = open_source(tmp_path / "root", split="test")
        assert test.labels.tolist() == [0, 0, 1, 1, 1] and test.path(4).endswith("root/test/b/9.png")
        assert len(open_source(tmp_path / "root")) == 4 and len(open_source(tmp_path / "root", split="all")) == 9
    assert len(walks) == 1


def added(root, p):
    p.write(root, {"a/9.png": p.picture()})


def removed(root, p):
    (root / "a" / "0.png").unlink()


def renamed(root, p):
    (root / "a" / "0.png").rename(root / "a" / "9.png")


def moved(root, p):
    (root / "a" / "0.png").rename(root / "b" / "9.png")


def new_folder(root, p):
    p.write(root, {"c/1.png": p.picture()})


def folder_away(root, p):
    (root / "b").rename(root.parent / "b")


def replaced(root, p):
    (root / "b").rename(root.parent / "b")
    p.write(root, {"b/7.png": p.picture()})


def linked(root, p):
    p.write(root.parent, {"elsewhere/5.png": p.picture()})
    (root / "link").symlink_to(root.parent / "elsewhere")


CHANGES = [added, removed, renamed, moved, new_folder, folder_away, replaced, linked]


@pytest.mark.parametrize("old_times", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(root, pictures, walks, change, old_times, monkeypatch):
    names(root)
    change(root, pictures)
    if old_times:  # as a copy does that keeps the times
        age(root)
    found = names(root)
    assert len(walks) == 2
    monkeypatch.setenv("EYESPOT_CACHE", str(root.parent / "another cache"))
    assert found == names(root)


def test_a_link_that_points_elsewhere(root, pictures, walks):
    for k in (1, 2):
        pictures.write(root.parent, {f"set{k}/{k}.png": pictures.picture()})
    (root.parent / "way").symlink_to(root.parent / "set1")
    (root / "link").symlink_to(root.parent / "way")
    age(root), age(root.parent / "set1"), age(root.parent / "set2")
    assert names(root)[-1] == "link/1.png" == names(root)[-1] and len(walks) == 1
    (root.parent / "way").unlink()
    (root.parent / "way").symlink_to(root.parent / "set2")
    assert names(root)[-1] == "link/2.png"


def test_a_picture_that_is_replaced_is_read_as_it_is(root, pictures, walks):
    names(root)
    pictures.write(root, {"a/0.png": pictures.picture(5)})
    source = open_source(root)
    assert len(walks) == 1 and (source.load(0).permute(1, 2, 0).numpy() == pictures.picture(5)).all()


def test_a_folder_that_is_being_written_is_not_kept(root, pictures, walks):
    added(root, pictures)
    names(root), names(root)
    assert len(walks) == 2 and not kept_files()


def test_small_folders_are_not_kept(root, walks, monkeypatch):
    monkeypatch.setattr(tree, "KEPT", 100)
    names(root), names(root)
    assert len(walks) == 2 and not kept_files()


def test_many_files_of_other_kinds_are_kept_too(root, walks, pictures, monkeypatch):
    monkeypatch.setattr(tree, "KEPT", 10)
    pictures.write(root, {f"{k}.txt": b"x" for k in range(10)} | {"0.parquet": b"x", "0.tar": b"x"})
    age(root)
    names(root), names(root)
    assert len(walks) == 1
    found = tree.scan(root)
    assert found.other == {".txt": 10} and found.parquet == ["0.parquet"] and found.tars == ["0.tar"]


@pytest.mark.parametrize(
    "what", ["damaged", "another kind", "other arrays", "wrong numbers", "a folder", "no permission"]
)
def test_foreign_files_in_the_cache(root, walks, what):
    expected = names(root)
    (file,) = kept_files()
    about, arrays = kept_index(file, "folder", mapped=False)
    if what == "damaged":
        file.write_bytes(file.read_bytes()[:-9])
    elif what == "another kind":
        keep_index(file, "tar", about, arrays)
    elif what == "other arrays":
        keep_index(file, "folder", about, {"x": np.arange(3)})
    elif what == "wrong numbers":
        keep_index(file, "folder", about, arrays | {"folder_of": arrays["folder_of"] + 99})
    elif what == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(b"")
    assert names(root) == expected and len(walks) == 2
    assert names(root) == expected and len(walks) == (3 if what == "a folder" else 2)


def test_nothing_executable_is_kept(root):
    names(root)
    (file,) = kept_files()
    raw = file.read_bytes()
    assert raw.startswith(b"eyespot index 1\n") and b"pickle" not in raw and not raw.startswith(b"\x80")


def test_the_cache_may_be_read_only_or_missing(root, walks, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EYESPOT_CACHE", str(tmp_path / "file"))
    assert names(root) == names(root) and len(walks) == 2


def test_a_folder_that_is_gone(root, walks):
    names(root)
    root.rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match="There is no path"):
        open_source(root)


def test_names_of_any_bytes_are_kept(root, walks, pictures):
    raw = pictures.encode(pictures.picture(), "PNG")
    for name in (b"caf\xe9.png", "größe.png".encode(), b"a b\tc.png"):
        with open(os.fsencode(root) + b"/a/" + name, "wb") as f:
            f.write(raw)
    age(root)
    first = names(root)
    assert names(root) == first and len(first) == 7 and len(walks) == 1
    source = open_source(root)
    assert all(source.load(i).shape == (3, 20, 24) for i in range(7))
    assert any(path.endswith("caf\\xe9.png") for path in first) and any(path.endswith("größe.png") for path in first)
    assert all(path.encode() for path in first), "a name that no text file can hold"


def test_index_files_of_two_folders_differ(tmp_path):
    assert index_file("folder", str(tmp_path / "a")) != index_file("folder", str(tmp_path / "b"))
    assert index_file("folder", "a") != index_file("tar", "a")


def test_a_large_listing_takes_little_memory(tmp_path):
    """A hundred thousand names: the block, eight bytes for each end and four for each folder."""
    files = Files.of(str(tmp_path), [f"class{k % 100:03d}/picture_{k:09d}.jpg" for k in range(100_000)])
    size = files.leaves.block.nbytes + files.leaves.ends.nbytes + files.folder_of.nbytes
    assert size < 100_000 * (22 + 8 + 4 + 1)
    assert files[99_999].endswith("class099/picture_000099999.jpg")
