"""Parquet files as the Hugging Face hub exports them."""

import io
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eyespot.data import BadFile, open_source
from eyespot.data.decode import decode
from eyespot.data.parquet import ParquetSource
from eyespot.errors import UserError


def encoded(pictures, n: int, seed: int = 0) -> list[bytes]:
    return [pictures.encode(pictures.picture(seed + k), "PNG") for k in range(n)]


def save(path, columns: dict, rows: int = 3, metadata: dict | None = None):
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def test_bytes_and_integer_labels(tmp_path, pictures):
    images = encoded(pictures, 7)
    labels = [0, 1, 2, 0, 1, 2, 1]
    file = save(tmp_path / "a.parquet", {"image": images, "label": pa.array(labels, pa.int8()), "name": ["x"] * 7})
    source = open_source(file)
    assert len(source) == 7 and source.class_names == ("0", "1", "2")
    assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == labels
    for i in (6, 0, 3):
        assert torch.equal(source.load(i), decode(images[i]))
        assert source.shape(i) == (3, 20, 24, False)
    assert source.path(4) == f"{file}#4"


def test_struct_of_the_hub_with_class_names(tmp_path, pictures):
    images = encoded(pictures, 4)
    rows = [{"bytes": raw, "path": f"{k}.png"} for k, raw in enumerate(images)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog", "eel"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file = save(tmp_path / "a.parquet", {"image": rows, "label": [1, 0, 1, 1]}, 2, metadata)
    source = open_source(file)
    assert source.class_names == ("cat", "dog", "eel") and source.labels.tolist() == [1, 0, 1, 1]
    assert torch.equal(source.load(3), decode(images[3]))


def test_rows_that_only_name_a_file(tmp_path, pictures):
    pictures.write(tmp_path, {"img/1.png": pictures.picture()})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "img/1.png"}, {"bytes": None, "path": "img/2.png"}, None], kind)
    source = open_source(save(tmp_path / "a.parquet", {"image": rows}))
    assert source.load(0).shape == (3, 20, 24) and source.labels is None
    for i in (1, 2):
        with pytest.raises(BadFile, match="the row is empty"):
            source.load(i)


def test_words_as_labels_agree_between_splits(tmp_path, pictures):
    columns = {
        "image": encoded(pictures, 5),
        "label": pa.array(["zebra", "ant", "bee", None, "bee"]).dictionary_encode(),
        "split": ["train", "train", "test", "test", "test"],
    }
    file = save(tmp_path / "a.parquet", columns)
    test = open_source(file, split="test")
    assert test.class_names == ("ant", "bee", "zebra") and test.labels.tolist() == [1, -1, 1]
    assert [test.path(i) for i in range(3)] == [f"{file}#2", f"{file}#3", f"{file}#4"]
    assert torch.equal(test.load(2), decode(columns["image"][4]))
    assert len(open_source(f"{file}:train")) == 2 and len(open_source(file)) == len(open_source(file, split="all")) == 5
    with pytest.raises(UserError, match=r"no split 'tets'.*did you mean 'test'"):
        open_source(file, split="tets")


def test_which_columns(tmp_path, pictures):
    images, other = encoded(pictures, 3), encoded(pictures, 3, 50)
    two = save(
        tmp_path / "two.parquet", {"depth": other, "image": images, "target": [1, 1, 0], "kind": ["a", "b", "a"]}
    )
    assert torch.equal(open_source(two).load(0), decode(images[0]))
    assert torch.equal(open_source(two, image_column="depth").load(0), decode(other[0]))
    assert open_source(two).labels.tolist() == [1, 1, 0]
    assert open_source(two, label_column="kind").labels.tolist() == [0, 1, 0]
    with pytest.raises(UserError, match="has no column 'imag'; did you mean 'image'"):
        open_source(two, image_column="imag")
    with pytest.raises(UserError, match=r"column 'kind' of .* holds no encoded pictures"):
        open_source(two, image_column="kind")
    with pytest.raises(UserError, match="not integers or words"):
        open_source(two, label_column="depth")
    photo = save(tmp_path / "photo.parquet", {"photograph": images, "id": [1, 2, 3]})
    assert len(open_source(photo)) == 3 and open_source(photo).labels is None
    with pytest.raises(UserError, match="no column 'image'; name the one with pictures: left, right"):
        open_source(save(tmp_path / "pair.parquet", {"left": images, "right": images}))
    with pytest.raises(UserError, match="no column of encoded pictures, only text"):
        open_source(save(tmp_path / "text.parquet", {"text": ["a"]}))


def test_shards_of_a_folder(tmp_path, pictures):
    for k in range(3):
        save(
            tmp_path / "data" / f"train-0000{k}-of-00003.parquet",
            {"image": encoded(pictures, 4, k * 10), "label": [k] * 4},
        )
    save(tmp_path / "data" / "test-00000-of-00001.parquet", {"image": encoded(pictures, 2, 90), "label": [0, 2]})
    pictures.write(tmp_path, {"README.md": b"about"})
    source = open_source(tmp_path)
    assert len(source) == 12 and source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.path(9).endswith("train-00002-of-00003.parquet#1")
    assert torch.equal(source.load(9), decode(encoded(pictures, 2, 20)[1]))
    test = open_source(tmp_path, split="test")
    assert len(test) == 2 and test.labels.tolist() == [0, 2]
    assert len(open_source(f"{tmp_path}:test")) == 2 and len(open_source(tmp_path, split="all")) == 14
    with pytest.raises(UserError, match=r"no split 'valid' in .*valid: test, train"):
        open_source(tmp_path, split="valid")


@pytest.mark.parametrize("files", [["train.parquet", "test.parquet"], ["train/0000.parquet", "test/0000.parquet"]])
def test_named_parts(tmp_path, pictures, files):
    for k, file in enumerate(files):
        save(tmp_path / file, {"image": encoded(pictures, k + 1)})
    assert [len(open_source(tmp_path, split=s)) for s in (None, "train", "test", "all")] == [1, 1, 2, 3]


def test_folder_with_one_file_and_a_split_column(tmp_path, pictures):
    save(tmp_path / "flowers.parquet", {"image": encoded(pictures, 3), "split": ["train", "test", "test"]})
    assert [len(open_source(tmp_path, split=s)) for s in (None, "train", "test", "all")] == [3, 1, 2, 3]


def test_shards_must_agree(tmp_path, pictures):
    save(tmp_path / "a.parquet", {"image": encoded(pictures, 1)})
    save(tmp_path / "b.parquet", {"picture": encoded(pictures, 1)})
    with pytest.raises(UserError, match=r"b.parquet has no column 'image'"):
        open_source(tmp_path)


def test_large_sets_are_mapped_from_a_file(tmp_path, pictures, monkeypatch):
    monkeypatch.setenv("EYESPOT_CACHE", str(tmp_path / "cache"))
    images = encoded(pictures, 8)
    rows = [{"bytes": raw, "path": ""} for raw in images]
    for name, column in (("plain", images), ("struct", rows)):
        file = save(tmp_path / f"{name}.parquet", {"image": column, "split": ["a", "b"] * 4})
        source = ParquetSource([file, file], split="b", memory=10)
        assert len(source) == 8
        for i in range(8):
            assert torch.equal(source.load(i), decode(images[(2 * i + 1) % 8]))
        assert torch.equal(ParquetSource([file, file], memory=10).load(11), decode(images[3]))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2  # one for each set, used again


def test_cache_folder_that_cannot_be_written(tmp_path, pictures, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("EYESPOT_CACHE", str(tmp_path / "cache"))
    source = ParquetSource([save(tmp_path / "a.parquet", {"image": encoded(pictures, 2)})], memory=1)
    with pytest.raises(UserError, match="set EYESPOT_CACHE"):
        source.load(0)


def shards(tmp_path, pictures, n: int, rows: int) -> list[bytes]:
    """n files of some rows each, in small row groups; the pictures in their order."""
    images = encoded(pictures, n * rows)
    for k in range(n):
        part = slice(k * rows, (k + 1) * rows)
        columns = {"image": images[part], "label": [k % 3] * rows}
        save(tmp_path / "set" / f"train-{k:05d}-of-{n:05d}.parquet", columns, rows=2)
    return images


def test_many_shards_are_opened_one_by_one(tmp_path, pictures):
    images = shards(tmp_path, pictures, 120, 1)
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, limits[1]))
    try:
        for memory in (None, 1):
            source = open_source(tmp_path / "set")
            source.memory = source.memory if memory is None else memory
            assert len(source) == 120 and source.labels.tolist() == [k % 3 for k in range(120)]
            assert torch.equal(source.load(77), decode(images[77]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_pattern_of_shards(tmp_path, pictures):
    images = shards(tmp_path, pictures, 3, 5)
    source = open_source(f"{tmp_path}/set/train-{{00001..00002}}-of-00003.parquet")
    assert len(source) == 10 and torch.equal(source.load(6), decode(images[11]))
    assert source.path(6).endswith("train-00002-of-00003.parquet#1")


def test_a_copy_takes_one_row_group_at_a_time(tmp_path, pictures, monkeypatch):
    images, read = shards(tmp_path, pictures, 2, 6), []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: (read.append(a[1]), group(*a, **k))[1])
    source = open_source(tmp_path / "set")
    source.memory = 1
    assert read == [], "pictures were read before one was asked for"
    assert torch.equal(source.load(9), decode(images[9])) and read == [0, 1, 2] * 2
    again = open_source(tmp_path / "set")
    again.memory = 1
    assert torch.equal(again.load(3), decode(images[3])) and len(read) == 6, "the copy was made twice"


@pytest.mark.parametrize("damage", [b"", b"ARROW1 nonsense", "half", "other rows"])
def test_a_damaged_copy_is_made_again(tmp_path, pictures, damage):
    images = shards(tmp_path, pictures, 1, 6)

    def load(i):
        source = open_source(tmp_path / "set")
        source.memory = 1
        return source.load(i)

    load(0)
    (copy,) = Path(os.environ["EYESPOT_CACHE"]).glob("*.arrow")
    if damage == "other rows":
        with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("image", pa.binary())])) as writer:
            writer.write_table(pa.table({"image": [b"x"]}))
    else:
        copy.write_bytes(copy.read_bytes()[:-50] if damage == "half" else damage)
    assert torch.equal(load(5), decode(images[5]))


def test_a_disk_without_room(tmp_path, pictures, monkeypatch):
    shards(tmp_path, pictures, 1, 4)
    source = open_source(tmp_path / "set")
    source.memory = 1
    monkeypatch.setattr("eyespot.data.parquet.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        UserError, match=r"GB are needed and 0.0 GB are free\); set EYESPOT_CACHE to a folder with room"
    ):
        source.load(0)
    assert not list(Path(os.environ["EYESPOT_CACHE"]).glob("*.arrow"))


COPY = """
import fcntl
import sys
from pathlib import Path
from eyespot.data import parquet
write = parquet.ParquetSource._write
parquet.ParquetSource._write = lambda self, target: (print("wrote", flush=True), sys.stdin.read(), write(self, target))
lock = fcntl.flock
fcntl.flock = lambda *given: (print("locks", flush=True), lock(*given))
files = sorted(Path(sys.argv[1]).glob("*.parquet"))
source = parquet.ParquetSource(files, memory=1)
print("ready", flush=True)
source.prepare()
print("rows", len(source), flush=True)
"""


def test_one_process_makes_the_copy_and_the_others_wait(tmp_path, pictures):
    shards(tmp_path, pictures, 1, 4)
    command = [sys.executable, "-c", COPY, str(tmp_path / "set")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while first.stdout.readline() not in ("wrote\n", ""):
        pass
    second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = [second.stdout.readline() for _ in range(2)]
    ends = [job.communicate("", timeout=60)[0] for job in (first, second)]  # only now the first one goes on
    assert said == ["ready\n", "locks\n"] and ends == ["rows 4\n"] * 2


def test_no_rows(tmp_path):
    file = save(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(UserError, match="has no rows"):
        open_source(file)


def test_pickles_for_workers_that_are_not_forked(tmp_path, pictures):
    source = open_source(save(tmp_path / "a.parquet", {"image": encoded(pictures, 40)}))
    source.prepare()
    stored = pickle.dumps(source)
    assert len(stored) < 5000
    assert torch.equal(pickle.loads(stored).load(2), source.load(2))


def test_broken_files(tmp_path, pictures):
    whole = save(tmp_path / "a.parquet", {"image": encoded(pictures, 3)}).read_bytes()
    for raw in (b"", b"PAR1 nonsense", whole[: len(whole) // 2], whole[:-9] + b"\xff" + whole[-8:]):
        (tmp_path / "a.parquet").write_bytes(raw)
        with pytest.raises(UserError, match="not a readable Parquet file"):
            open_source(tmp_path / "a.parquet")
    damaged = encoded(pictures, 3)
    damaged[1] = damaged[1][:40]
    source = open_source(save(tmp_path / "b.parquet", {"image": damaged}))
    with pytest.raises(BadFile) as caught:
        source.load(1)
    assert caught.value.path == f"{tmp_path / 'b.parquet'}#1"


def test_labels_without_any(tmp_path, pictures):
    source = open_source(save(tmp_path / "a.parquet", {"image": encoded(pictures, 3), "label": [-1, -1, -1]}))
    assert source.labels is None and source.class_names == ()


# --- real sets ------------------------------------------------------------------------------------------------
def test_cifar10(shared_data):
    folder = shared_data("cifar10")
    train, test = open_source(folder), open_source(folder, split="test")
    assert len(train) == 50000 and len(test) == len(open_source(folder / "test.parquet")) == 10000
    assert np.bincount(train.labels).tolist() == [5000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    assert train.load(49999).shape == (3, 32, 32)
    raw = pq.ParquetFile(folder / "train.parquet").read_row_group(9).column("image")[-1].as_py()
    expected = np.asarray(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(train.load(49999).permute(1, 2, 0).numpy(), expected)


def test_flowers17(shared_data):
    folder = shared_data("flowers17")
    parts = [open_source(folder, split=s) for s in ("train", "test")]
    assert sum(map(len, parts)) <= len(open_source(folder)) == 1360
    assert all(p.class_names == parts[0].class_names and len(p.class_names) == 17 for p in parts)


@pytest.mark.parametrize("name", ["ucm_captions", "camvid_240x180", "em_membranes", "imagenet_samples_1k", "coco128"])
def test_other_real_sets(shared_data, name):
    source = open_source(shared_data(name))
    assert source.load(len(source) - 1).shape[0] in (1, 3)


def test_sound_is_no_picture(shared_data):
    with pytest.raises(UserError, match="name the one with pictures: audio"):
        open_source(shared_data("esc10_audio"))
