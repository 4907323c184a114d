"""Batches: the same from memory, from this process and from workers; bad files replaced, counted and limited."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from eyespot.data import Data, Request, occurrence_keys, open_source
from eyespot.data.batches import REPEAT
from eyespot.draws import Draws
from eyespot.errors import UserError

WAYS = {
    "memory": {},
    "here": {"cache_bytes": 0, "workers": 0},
    "workers": {"cache_bytes": 0, "workers": 2},
}


def equal(a, b) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(torch.equal, a, b))
    return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


@pytest.fixture
def folder(tmp_path, pictures):
    """24 pictures in two classes, all of one size."""
    root = tmp_path / "set"
    pictures.write(root, {f"{'ab'[k % 2]}/{k:02d}.png": pictures.picture(k) for k in range(24)})
    return root


@pytest.fixture
def sizes(tmp_path, pictures):
    """12 pictures of different sizes."""
    root = tmp_path / "sizes"
    pictures.write(root, {f"{k:02d}.png": pictures.picture(k, 10 + k, 30 - k) for k in range(12)})
    return root


def damage(root, *numbers: int) -> None:
    files = sorted(root.rglob("*.png"), key=lambda p: p.relative_to(root).as_posix())
    for k in numbers:
        files[k].write_bytes(files[k].read_bytes()[:60])


def rows(n: int, batches: int, size: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, n, (batches, size)))


# --- what a batch is ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", WAYS)
def test_batch_of_one_size(folder, way):
    source = open_source(folder)
    data = Data(source, **WAYS[way])
    order = rows(24, 5)
    batches = list(data.stream(order))
    assert len(batches) == 5 and data.cached == (way == "memory")
    for batch, asked in zip(batches, order, strict=True):
        assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 3, 20, 24)
        assert batch["index"].dtype == batch["label"].dtype == batch["key"].dtype == torch.int64
        assert batch["index"].tolist() == asked.tolist()
        assert batch["label"].tolist() == source.labels[asked].tolist()
        for image, i in zip(batch["image"], asked, strict=True):
            assert torch.equal(image, source.load(i))
        assert same(batch, data.batch(asked))


@pytest.mark.parametrize("kind", ["one size", "sizes", "damaged", "deep"])
def test_ways_agree(folder, sizes, kind, tmp_path, pictures):
    root = folder if kind == "one size" else sizes
    if kind == "damaged":
        damage(root, 3, 4, 11)
    if kind == "deep":
        deep = pictures.smooth(20, 24, 1, 65535).astype(np.uint16)
        pictures.write(root, {"deep.png": pictures.png16(deep)})
    n = len(open_source(root))
    order = rows(n, 6)
    runs = [list(Data(open_source(root), max_bad=0.5, **way).stream(order)) for way in WAYS.values()]
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))
    assert isinstance(runs[0][0]["image"], list) == (kind != "one size")


@pytest.mark.parametrize("way", WAYS)
def test_start_leaves_out_batches(folder, way):
    order = rows(24, 6)
    whole = list(Data(open_source(folder), **WAYS[way]).stream(order))
    rest = list(Data(open_source(folder), **WAYS[way]).stream(order, start=4))
    assert len(rest) == 2 and all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_endless_orders_are_read_as_needed(folder, way):
    stream = Data(open_source(folder), **WAYS[way]).stream(np.array([k % 24]) for k in itertools.count())
    assert [next(stream)["index"].item() for _ in range(30)] == [k % 24 for k in range(30)]
    stream.close()


def test_workers_leave_the_global_generator_alone(folder):
    data = Data(open_source(folder), cache_bytes=0, workers=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(data.stream(rows(24, 3)))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_copies(folder):
    data = Data(open_source(folder))
    data.fill()
    batch = data.batch([0, 1])
    batch["image"].zero_()
    batch["label"].fill_(7)
    assert data.batch([0, 1])["image"].any() and data.batch([0, 1])["label"].max() < 2


def test_pickles_for_workers_that_are_not_forked(folder):
    data = Data(open_source(folder))
    data.fill()
    assert same(pickle.loads(pickle.dumps(data)).batch([3, 4]), data.batch([3, 4]))


# --- keys -----------------------------------------------------------------------------------------------------
def test_keys_tell_repeated_samples_apart(folder):
    keys = occurrence_keys(np.array([5, 3, 5, 5, 3, 0]))
    assert keys.tolist() == [5, 3, 5 + REPEAT, 5 + 2 * REPEAT, 3 + REPEAT, 0]
    batch = Data(open_source(folder)).batch([5, 3, 5])
    assert batch["index"].tolist() == [5, 3, 5]
    draws = Draws(index=batch["key"]).uniform("crop")
    assert len(set(draws.tolist())) == 3
    assert occurrence_keys(np.zeros(0, np.int64)).tolist() == []


def test_keys_of_the_global_batch(folder):
    everything = np.array([5, 3, 5, 7, 3, 5])
    keys = occurrence_keys(everything)
    data = Data(open_source(folder))
    halves = [data.batch(everything[part], keys[part])["key"] for part in (slice(0, 3), slice(3, 6))]
    assert torch.cat(halves).tolist() == keys.tolist()
    requests = [Request(everything[:3], keys[:3]), Request(everything[3:], keys[3:])]
    assert [b["key"].tolist() for b in data.stream(requests)] == [keys[:3].tolist(), keys[3:].tolist()]


# --- bad files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", WAYS)
def test_bad_files_are_replaced_by_the_next_good_one(folder, way):
    damage(folder, 2, 3, 23)
    source = open_source(folder)
    data = Data(source, max_bad=0.2, **WAYS[way])
    batches = list(data.stream([[1, 2, 3], [23, 2, 22]]))
    assert [b["index"].tolist() for b in batches] == [[1, 4, 4], [0, 4, 22]]
    assert [b["label"].tolist() for b in batches] == [
        source.labels[[1, 4, 4]].tolist(),
        source.labels[[0, 4, 22]].tolist(),
    ]
    assert torch.equal(batches[0]["image"][1], source.load(4))
    assert batches[0]["key"].tolist() == [1, 2, 3]  # two samples that became one still get different views
    assert set(data.bad) == {source.path(i) for i in (2, 3, 23)}
    assert all(reason and "\n" not in reason for reason in data.bad.values())


@pytest.mark.parametrize("way", WAYS)
def test_bad_files_left_out(folder, sizes, way):
    for root in (folder, sizes):
        damage(root, 2)
        data = Data(open_source(root), max_bad=0.2, **WAYS[way])
        batches = list(data.stream([[1, 2, 3], [2, 2, 0]], replace=False))
        assert [b["index"].tolist() for b in batches] == [[1, 3], [0]]
        assert [len(b["image"]) for b in batches] == [2, 1] and [len(b["key"]) for b in batches] == [2, 1]


@pytest.mark.parametrize("way", WAYS)
def test_too_many_bad_files(folder, way):
    damage(folder, *range(0, 24, 2))
    data = Data(open_source(folder), max_bad=0.25, **WAYS[way])
    message = r"^7 of 24 samples of .* cannot be read, more than the 25% that are allowed; the last is .*png \(.*\)"
    with pytest.raises(UserError, match=message) as caught:
        list(data.stream([np.arange(8), np.arange(8, 16), np.arange(16, 24)]))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    allowed = Data(open_source(folder), max_bad=0.5, **WAYS[way])
    assert len(list(allowed.stream([np.arange(24)]))) == 1 and len(allowed.bad) == 12


@pytest.mark.parametrize("way", WAYS)
def test_no_good_file_at_all(folder, way):
    damage(folder, *range(24))
    with pytest.raises(UserError, match=r"cannot be read|can be read"):
        list(Data(open_source(folder), max_bad=1.0, **WAYS[way]).stream([np.arange(4)]))


def test_file_that_vanishes(folder):
    source = open_source(folder)
    data = Data(source)
    (folder / "a" / "00.png").unlink()
    assert data.batch([0])["index"].tolist() == [1] and data.bad[source.path(0)] == "no such file or directory"


def test_wrong_channels_are_bad(folder, pictures):
    pictures.write(folder, {"a/00.npy": np.zeros((20, 24, 7), np.uint8)})
    data = Data(open_source(folder))
    assert data.channels == 3 and data.batch([0])["index"].tolist() == [1]
    assert list(data.bad.values()) == ["has 7 channels where 3 are asked for"]


# --- channels and types ---------------------------------------------------------------------------------------
def test_channels(tmp_path, pictures):
    colour, grey = pictures.picture(), pictures.picture()[..., 0]
    cases = {
        "grey": ({"1.png": grey, "2.jpg": grey}, 1),
        "mixed": ({"1.png": grey, "2.png": colour}, 3),
        "bands": ({"1.npy": np.zeros((9, 9, 6), np.uint8), "2.npy": np.zeros((9, 9, 6), np.uint16)}, 6),
    }
    for name, (files, channels) in cases.items():
        root = pictures.write(tmp_path / name, files)
        assert Data(open_source(root)).channels == channels
        image = Data(open_source(root)).batch([0, 1])["image"]
        assert all(x.shape[0] == channels for x in image)
    mixed = tmp_path / "mixed"
    for channels in (1, 3, 4):
        data = Data(open_source(mixed), channels=channels)
        assert data.channels == channels and {x.shape[0] for x in data.batch([0, 1])["image"]} == {channels}
    with pytest.raises(UserError, match="number of channels is 0"):
        Data(open_source(mixed), channels=0)


def test_deep_pictures_make_the_batch_float(tmp_path, pictures):
    deep = pictures.smooth(20, 24, 1, 65535).astype(np.uint16)
    root = pictures.write(tmp_path, {"1.png": pictures.png16(deep), "2.png": pictures.picture()[..., 0]})
    for way in WAYS.values():
        batch = next(Data(open_source(root), **way).stream([[0, 1]]))
        assert batch["image"].dtype == torch.float32 and batch["image"].shape == (2, 1, 20, 24)
        np.testing.assert_allclose(batch["image"][0, 0].numpy(), deep[..., 0] / 65535, atol=1e-6)
        np.testing.assert_allclose(batch["image"][1, 0].numpy(), pictures.picture()[..., 0] / 255, atol=1e-6)


# --- plans ----------------------------------------------------------------------------------------------------
def test_plans(sizes):
    plans = [{"region": (1, 2, 5, 6)}, None, {"short_side": 6}]
    batches = [
        next(Data(open_source(sizes), **way).stream([Request(np.arange(3), plans=plans)])) for way in WAYS.values()
    ]
    whole = Data(open_source(sizes)).batch([0, 1, 2])["image"]
    assert torch.equal(batches[0]["image"][0], whole[0][:, 1:6, 2:8])
    assert torch.equal(batches[0]["image"][1], whole[1]) and min(batches[0]["image"][2].shape[1:]) == 6
    assert all(same(batches[0], b) for b in batches[1:])


def test_short_side(tmp_path, pictures):
    pictures.write(tmp_path, {f"{k}.png": pictures.picture(k, 60, 90 + k) for k in range(4)})
    data = Data(open_source(tmp_path), short_side=30)
    for batch in (data.batch([0, 1]), next(data.stream([[0, 1]]))):
        assert [x.shape[1] for x in batch["image"]] == [30, 30]
    assert data.cached and data._cache.bytes < 4 * 3 * 31 * 50
    planned = data.batch([0], plans=[{"region": (40, 0, 20, 20)}])  # a plan is about the whole picture
    assert torch.equal(planned["image"][0], open_source(tmp_path).load(0)[:, 40:60, :20])


# --- memory ---------------------------------------------------------------------------------------------------
def test_budget(folder, sizes):
    need = 24 * 3 * 20 * 24
    assert Data(open_source(folder), cache_bytes=need).fill()
    assert not Data(open_source(folder), cache_bytes=need - 1).fill()
    data = Data(open_source(sizes), cache_bytes=12 * 3 * 31 * 31)
    assert data.fill() and data._cache.block is None
    assert Data(open_source(folder))._cache is None  # nothing is decoded before it is needed


def test_cache_of_one_size_is_one_block(folder):
    damage(folder, 0)
    data = Data(open_source(folder))
    assert data.fill() and data._cache.block.shape == (24, 3, 20, 24)
    assert data.batch([0, 1])["index"].tolist() == [1, 1]


def test_estimate_that_was_too_low(sizes, monkeypatch):
    data = Data(open_source(sizes), cache_bytes=2000, workers=0)
    data._shapes = [(3, 4, 4, False)]
    assert not data.fill() and not data.cached
    assert next(data.stream([[0]]))["image"].shape == (1, 3, 10, 30)


def test_small_shared_memory_goes_through_the_pipe(folder, sizes, monkeypatch):
    for root in (folder, sizes):
        expected = Data(open_source(root)).batch([0, 5, 2])
        monkeypatch.setattr("eyespot.data.workers.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        got = next(Data(open_source(root), cache_bytes=0, workers=1).stream([[0, 5, 2]]))
        monkeypatch.undo()
        assert same(expected, got)


# --- statistics -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["memory", "here"])
def test_statistics(folder, way):
    data = Data(open_source(folder), **WAYS[way])
    if way == "memory":
        data.fill()
    mean, std = data.statistics()
    pixels = torch.stack([open_source(folder).load(i) for i in range(24)]).double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(std).double(), pixels.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)
    assert isinstance(mean, tuple) and all(isinstance(v, float) for v in mean + std)
    assert data.statistics(most=3) != (mean, std)


def test_one_sample(tmp_path, pictures):
    pictures.write(tmp_path, {"1.png": pictures.picture()})
    data = Data(open_source(tmp_path))
    assert len(data) == 1 and data.batch([0, 0])["key"].tolist() == [0, REPEAT]
    assert len(data.statistics()[0]) == 3


def test_real_pictures_of_different_sizes(shared_data):
    source = open_source(shared_data("coco128"))
    order = [np.arange(0, 64), np.arange(64, 128)]
    runs = [list(Data(source, **way).stream(order)) for way in WAYS.values()]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*runs, strict=True))


def test_real_small_set(shared_data):
    data = Data(open_source(shared_data("flowers17"), split="train"))
    batch = next(data.stream([np.arange(64)]))
    assert batch["image"].shape[:2] == (64, 3) and batch["label"].max() < 17 and not data.bad
