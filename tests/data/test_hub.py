"""`datasets.Dataset` of the Hugging Face library, and the folder it was saved to."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eyespot.data import BadFile, Data, open_source
from eyespot.data.decode import decode
from eyespot.data.hub import HubSource, is_hub
from eyespot.errors import MissingExtra, UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quietly():
    datasets.disable_progress_bars()


def encoded(pictures, n: int, seed: int = 0) -> list[bytes]:
    return [pictures.encode(pictures.picture(seed + k), "PNG") for k in range(n)]


def table(images: list, labels=None, names=("cat", "dog", "eel"), **columns):
    features = {"image": datasets.Image()}
    rows = {"image": [{"bytes": raw, "path": None} if isinstance(raw, bytes) else raw for raw in images]}
    if labels is not None:
        rows["label"], features["label"] = labels, datasets.ClassLabel(names=list(names))
    for name, (values, feature) in columns.items():
        rows[name], features[name] = values, feature
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_pictures_and_class_names(pictures):
    images = encoded(pictures, 4)
    source = open_source(table(images, [1, 0, 2, 1]))
    assert isinstance(source, HubSource) and len(source) == 4
    assert source.class_names == ("cat", "dog", "eel") and source.labels.tolist() == [1, 0, 2, 1]
    for i in (3, 0):
        assert torch.equal(source.load(i), decode(images[i])) and source.shape(i) == (3, 20, 24, False)
    assert source.path(2) == f"{source.name}#2"


def test_pillow_pictures_and_selected_rows(pictures):
    data = table([Image.fromarray(pictures.picture(k)) for k in range(6)], [0, 1, 2, 0, 1, 2])
    source = open_source(data.shuffle(seed=1).select([4, 1, 3]))
    order = [int(i) for i in data.add_column("n", range(6)).shuffle(seed=1).select([4, 1, 3])["n"]]
    assert source.labels.tolist() == [k % 3 for k in order]
    for i, k in enumerate(order):
        assert (source.load(i).permute(1, 2, 0).numpy() == pictures.picture(k)).all()


def test_pictures_are_decoded_here(pictures):
    """16 bits and opacity as from any other source, and a damaged picture is a bad file, not an error."""
    deep = pictures.png16(pictures.smooth(9, 9, 1, 65535).astype(np.uint16))
    half = encoded(pictures, 1)[0][:60]
    source = open_source(table([deep, half]))
    assert source.shape(0)[3] and torch.equal(source.load(0), decode(deep))
    with pytest.raises(BadFile) as caught:
        source.load(1)
    assert caught.value.path == source.path(1)


def test_rows_that_only_name_a_file(pictures, tmp_path):
    pictures.write(tmp_path, {"1.png": pictures.picture()})
    source = open_source(
        table([{"bytes": None, "path": str(tmp_path / "1.png")}, {"bytes": None, "path": "gone.png"}, None])
    )
    assert source.load(0).shape == (3, 20, 24)
    for i, reason in ((1, "names 'gone.png', which is no file"), (2, "holds no picture")):
        with pytest.raises(BadFile, match=reason):
            source.load(i)


def test_which_columns(pictures):
    images, other = encoded(pictures, 2), encoded(pictures, 2, 50)
    data = table(images, [0, 1], photo=([{"bytes": b, "path": None} for b in other], datasets.Image()))
    data = data.add_column("species", ["bee", "ant"]).add_column("weight", [0.1, 0.2])
    assert torch.equal(open_source(data).load(0), decode(images[0]))
    assert torch.equal(open_source(data, image_column="photo").load(0), decode(other[0]))
    assert open_source(data, label_column="species").class_names == ("ant", "bee")
    assert open_source(data.remove_columns(["image", "label"])).labels is None
    with pytest.raises(UserError, match="has no column 'spezies'; did you mean 'species'"):
        open_source(data, label_column="spezies")
    with pytest.raises(UserError, match="has no column 'img'"):
        open_source(data, image_column="img")
    with pytest.raises(UserError, match=r"column 'weight' of .* not integers or words"):
        open_source(data, label_column="weight")
    pair = data.rename_columns({"image": "left", "photo": "right"})
    with pytest.raises(UserError, match="several columns of pictures; name one: left, right"):
        open_source(pair)
    with pytest.raises(UserError, match="has no key 'image'"):
        open_source(data.select_columns(["species"]))


def test_a_column_of_another_name_and_missing_labels(pictures):
    data = table(encoded(pictures, 3), [0, None, 1]).rename_columns({"image": "scan", "label": "finding"})
    source = open_source(data)
    assert source.labels.tolist() == [0, -1, 1] and source.class_names == ("cat", "dog", "eel")


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_bytes_without_the_librarys_notes(pictures, form):
    images = encoded(pictures, 3)
    column = images if form == "bytes" else [{"bytes": raw, "path": "x.png"} for raw in images]
    source = open_source(datasets.Dataset.from_dict({"image": column, "label": [0, 1, 1]}))
    assert isinstance(source, HubSource) and source.labels.tolist() == [0, 1, 1] and source.class_names == ("0", "1")
    assert torch.equal(source.load(2), decode(images[2]))


def test_parts(pictures):
    parts = datasets.DatasetDict(
        train=table(encoded(pictures, 3), [0, 1, 2]), test=table(encoded(pictures, 2, 9), [2, 2])
    )
    assert is_hub(parts) and len(open_source(parts)) == 3
    assert open_source(parts, split="test").labels.tolist() == [2, 2] and len(open_source(parts, split="all")) == 5
    with pytest.raises(UserError, match="no split 'tset' in the data set; did you mean 'test'"):
        open_source(parts, split="tset")
    with pytest.raises(UserError, match="has the parts a, b; name one as the split"):
        open_source(datasets.DatasetDict(a=parts["test"], b=parts["test"]))
    with pytest.raises(UserError, match="has no splits"):
        open_source(parts["train"], split="test")
    with pytest.raises(UserError, match="has no parts"):
        open_source(datasets.DatasetDict())
    with pytest.raises(UserError, match="is empty"):
        open_source(parts["train"].select([]))


def test_a_transform_of_its_own_is_kept(pictures):
    data = table(encoded(pictures, 2), [0, 1])
    data.set_transform(lambda rows: {"image": [x.resize((5, 7)) for x in rows["image"]], "label": rows["label"]})
    source = open_source(data)
    assert not isinstance(source, HubSource) and source.load(0).shape == (3, 7, 5)


def test_other_formats_make_no_difference(pictures):
    images = encoded(pictures, 2)
    for form in ("numpy", "torch"):
        source = open_source(table(images, [1, 0]).with_format(form))
        assert torch.equal(source.load(1), decode(images[1])) and source.labels.tolist() == [1, 0]
        assert source.class_names == ("cat", "dog", "eel")


def test_a_stream_is_refused(pictures):
    with pytest.raises(UserError, match="cannot be read by sample number"):
        open_source(table(encoded(pictures, 2)).to_iterable_dataset())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(pictures, workers):
    images = encoded(pictures, 6)
    data = Data(open_source(table(images, [0, 1, 2] * 2)), workers=workers, cache_bytes=0)
    batches = list(data.stream([[5, 0], [3, 3]]))
    assert [b["index"].tolist() for b in batches] == [[5, 0], [3, 3]]
    assert torch.equal(batches[0]["image"][0], decode(images[5]))
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch([2])["image"][0], decode(images[2]))


# --- saved folders --------------------------------------------------------------------------------------------
def test_saved_folders(pictures, tmp_path):
    images = encoded(pictures, 5)
    data = table(images, [0, 1, 2, 1, 0])
    data.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=data, test=data.select([4])).save_to_disk(tmp_path / "parts")
    source = open_source(tmp_path / "one")
    assert len(source) == 5 and source.class_names == ("cat", "dog", "eel") and source.name == str(tmp_path / "one")
    assert torch.equal(source.load(4), decode(images[4])) and source.path(4) == f"{tmp_path / 'one'}#4"
    assert len(open_source(tmp_path / "parts")) == 5 and len(open_source(f"{tmp_path / 'parts'}:test")) == 1


def test_a_damaged_saved_folder(pictures, tmp_path):
    table(encoded(pictures, 2)).save_to_disk(tmp_path / "a")
    for name in ("data-00000-of-00001.arrow", "state.json"):
        (tmp_path / "a" / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"The saved data set .* cannot be read: .*; save it again") as caught:
            open_source(tmp_path / "a")
        assert "\n" not in str(caught.value)


def test_the_library_is_optional(pictures, tmp_path, monkeypatch):
    table(encoded(pictures, 2)).save_to_disk(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'datasets': install it with pip install 'eyespot\[datasets"
    ):
        open_source(tmp_path / "a")


def test_the_library_is_not_imported_by_itself(pictures, tmp_path):
    pictures.write(tmp_path, {"1.png": pictures.picture()})
    code = (
        "import sys; from eyespot.data import open_source; open_source(sys.argv[1]); open_source([__import__('numpy')"
        ".zeros((4, 4, 3), 'uint8')]); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
