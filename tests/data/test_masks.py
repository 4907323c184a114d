"""Masks beside pictures: where they are found, how they are read, what is refused."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eyespot.data.decode import BadFile
from eyespot.data.loader import Data
from eyespot.data.masks import mask_folders, open_masked, read_mask
from eyespot.data.sources import open_source
from eyespot.errors import UserError

H, W = 6, 8


def numbers(i):
    return (np.arange(H * W).reshape(H, W) // (4 + i) % 5).astype(np.uint8)


def png(array, **kind):
    out = io.BytesIO()
    image = Image.fromarray(array)
    if kind.get("palette"):
        image = image.convert("L")
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(out, format=kind.get("format", "PNG"))
    return out.getvalue()


def write(root, image="image", mask="mask", count=3, suffix=".png"):
    rng = np.random.default_rng(1)
    for folder in (image, mask):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(root / image / f"p{i}.jpg")
        (root / mask / f"p{i}{suffix}").write_bytes(png(numbers(i)))
    return root


@pytest.mark.parametrize(
    ("image", "mask", "split"),
    [
        ("image", "mask", None),
        ("images", "annotations", None),
        ("train/image", "train/mask", None),
        ("image/train", "mask/train", None),
        ("image/val", "mask/val", "val"),
    ],
)
def test_parallel_folders(tmp_path, image, mask, split):
    root = write(tmp_path, image, mask)
    data = open_masked(root, split=split)
    assert len(data) == 3
    for i in range(3):
        assert data.path(i).endswith(f"{image}/p{i}.jpg")
        assert data.load(i).shape == (3, H, W)
        assert torch.equal(data.mask(i), torch.from_numpy(numbers(i).astype(np.int64)))


def test_masks_are_no_pictures_to_learn_from(tmp_path):
    root = write(tmp_path)
    source = open_source(root)
    assert len(source) == 3 and source.labels is None
    assert all("/image/" in source.path(i) for i in range(3))


def test_pictures_without_a_mask_are_left_out(tmp_path):
    root = write(tmp_path)
    (root / "mask" / "p1.png").unlink()
    data = open_masked(root)
    assert [data.path(i)[-6:] for i in range(len(data))] == ["p0.jpg", "p2.jpg"]
    assert torch.equal(data.mask(1), torch.from_numpy(numbers(2).astype(np.int64)))


def test_folders_of_masks_are_known_by_their_neighbour():
    assert mask_folders(["image/a/", "mask/a/", "mask/b/"]) == {"mask/a/", "mask/b/"}
    assert mask_folders(["train/images/", "train/masks/"]) == {"train/masks/"}
    assert mask_folders(["mask/", "face/"]) == set()  # a class of pictures


def table(split=True, masks=None):
    masks = masks or [png(numbers(i)) for i in range(4)]
    pictures = [png(np.full((H, W, 3), 40 * i, np.uint8)) for i in range(4)]
    columns = {"image": pictures, "mask": masks, "name": [f"n{i}" for i in range(4)]}
    return pa.table(columns | ({"split": ["train", "train", "val", "val"]} if split else {}))


def test_parquet_with_two_columns_of_pictures(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    data = open_masked(tmp_path / "a.parquet", split="val")
    assert len(data) == 2
    assert int(data.load(1)[0, 0, 0]) == 120
    assert torch.equal(data.mask(1), torch.from_numpy(numbers(3).astype(np.int64)))
    named = table(split=False).rename_columns(["image", "parts", "name"])
    pq.write_table(named, tmp_path / "b.parquet")
    assert torch.equal(
        open_masked(tmp_path / "b.parquet", mask_column="parts").mask(2), torch.from_numpy(numbers(2).astype(np.int64))
    )
    with pytest.raises(UserError, match=r"no column 'part'.*parts"):
        open_masked(tmp_path / "b.parquet", mask_column="part")


def test_a_data_set_of_pairs():
    pairs = [(Image.new("RGB", (W, H)), Image.fromarray(numbers(i))) for i in range(3)]
    assert torch.equal(open_masked(pairs).mask(2), torch.from_numpy(numbers(2).astype(np.int64)))
    named = [{"image": image, "mask": np.asarray(mask)} for image, mask in pairs]
    assert torch.equal(open_masked(named).mask(1), torch.from_numpy(numbers(1).astype(np.int64)))


def test_without_masks(tmp_path):
    (tmp_path / "image").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "image" / "a.png")
    with pytest.raises(UserError, match=r"has no masks to evaluate with; give a folder with image/ beside mask/"):
        open_masked(tmp_path)
    with pytest.raises(UserError, match="has no masks"):
        open_masked([(Image.new("RGB", (W, H)), 3)])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255], [7, 1]], np.uint8), [[0, 255], [7, 1]]),
        (np.array([[0, 1], [1, 1]], bool), [[0, 1], [1, 1]]),
        (np.array([[0, 300], [65535, 1]], np.uint16), [[0, 300], [65535, 1]]),
        (np.repeat(np.array([[3, 9]], np.uint8)[:, :, None], 3, 2), [[3, 9]]),
    ],
)
def test_numbers_are_taken_as_they_are_stored(array, expected):
    assert read_mask(png(array), "m").tolist() == expected


def test_a_palette_counts_by_its_entries():
    assert read_mask(png(np.array([[0, 3], [250, 1]], np.uint8), palette=True), "m").tolist() == [[0, 3], [250, 1]]


def test_what_is_no_mask():
    with pytest.raises(BadFile, match="JPEG, which changes the numbers"):
        read_mask(png(numbers(0), format="JPEG"), "m")
    with pytest.raises(BadFile, match="colours where class numbers are needed"):
        read_mask(png(np.random.default_rng(0).integers(0, 9, (4, 4, 3)).astype(np.uint8)), "m")
    with pytest.raises(BadFile, match="not a picture"):
        read_mask(b"nothing", "m")


def test_pictures_are_loaded_through_it(tmp_path):
    data = Data(open_masked(write(tmp_path)), workers=0)
    assert data.batch([0, 2])["image"].shape == (2, 3, H, W)


def test_real_sets(shared_data):
    train = open_masked(f"{shared_data('camvid_240x180') / 'camvid.parquet'}:train")
    assert len(train) == 367 and train.mask(0).shape == train.load(0).shape[1:]
    assert set(train.mask(0).unique().tolist()) <= set(range(12))
    cells = open_masked(shared_data("em_membranes") / "em_membranes.parquet")
    assert cells.load(0).shape == (1, 512, 512) and cells.mask(0).unique().tolist() == [0, 1]
