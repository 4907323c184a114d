"""`eyespot.embed`: the file, its atomic writing, its memory."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import eyespot
from eyespot.data.loader import Data
from eyespot.data.sources import open_source
from eyespot.errors import UserError
from eyespot.evaluate import embed as package
from eyespot.evaluate.features import extract
from eyespot.nets.backbones import backbone

QUICK = {"workers": 0}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return backbone("resnet8", image_size=16)


def test_file_holds_the_features(net, folders, tmp_path):
    out = tmp_path / "new" / "features.parquet"
    summary = eyespot.embed(net, folders[1], out, batch_size=5, **QUICK)
    assert summary | {"seconds": 0} == {
        "out": str(out),
        "rows": 24,
        "embed_dim": net.embed_dim,
        "labels": True,
        "bad_files": 0,
        "seconds": 0,
    }
    file = pq.ParquetFile(out)
    assert [str(f.type) for f in file.schema_arrow] == [
        "int64",
        "string",
        f"fixed_size_list<element: float>[{net.embed_dim}]",
        "int64",
    ]
    about = json.loads(file.schema_arrow.metadata[b"eyespot"])
    assert about["version"] == 1 and about["class_names"] == ["across", "checks", "down"]
    assert about["backbone"] == "resnet8" and about["image_size"] == 16
    table = file.read()
    data = Data(open_source(folders[1]), workers=0)
    vectors, labels = extract(net, data)
    assert table.column("id").to_pylist() == list(range(24))
    assert table.column("label").to_pylist() == labels.tolist()
    assert table.column("path").to_pylist() == [data.source.path(i) for i in range(24)]
    np.testing.assert_allclose(np.array(table.column("vector").to_pylist()), vectors.numpy(), atol=1e-5)


def test_without_labels_and_with_bad_files(net, folders, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    files = sorted(folders[1].rglob("*.png"))
    for i, file in enumerate(files):
        (flat / f"{i:02}.png").write_bytes(file.read_bytes() if i != 3 else b"no picture")
    out = tmp_path / "out.parquet"
    summary = eyespot.embed(net, flat, out, max_bad=0.1, **QUICK)
    assert summary["rows"] == 23 and summary["bad_files"] == 1 and not summary["labels"]
    table = pq.read_table(out)
    assert table.column_names == ["id", "path", "vector"]
    assert table.column("id").to_pylist() == [0, 1, 2, *range(4, 24)]


def test_labels_that_are_missing_are_null(net, folders, tmp_path):
    source = open_source(folders[1])
    source.labels = np.where(np.arange(24) == 2, -1, source.labels)
    out = tmp_path / "out.parquet"
    eyespot.embed(net, Data(source, workers=0), out)
    assert pq.read_table(out).column("label").to_pylist()[:4] == [0, 0, None, 0]
    assert eyespot.evaluate(out)["n_train"] + eyespot.evaluate(out)["n_test"] == 23


def test_rows_are_written_in_groups(net, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "GROUP", 10)
    out = tmp_path / "out.parquet"
    eyespot.embed(net, folders[1], out, batch_size=4, **QUICK)
    file = pq.ParquetFile(out)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert sizes == [12, 12]


def test_a_failure_leaves_the_old_file(net, folders, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")

    def broken(*args):
        raise UserError("too many bad files")

    monkeypatch.setattr(package, "_record", broken)
    with pytest.raises(UserError, match="too many"):
        eyespot.embed(net, folders[1], out, **QUICK)
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_mistakes(net, folders, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        eyespot.embed(net, folders[1], tmp_path, **QUICK)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        eyespot.embed(net, folders[1], tmp_path / "file" / "out.parquet", **QUICK)
    with pytest.raises(UserError, match="--out is missing"):
        eyespot.embed(net, folders[1])
    eyespot.embed(net, folders[1], tmp_path / "a.parquet", **QUICK)
    with pytest.raises(UserError, match="holds embeddings already"):
        eyespot.embed(tmp_path / "a.parquet", folders[1], tmp_path / "b.parquet", **QUICK)
