"""Clouds: files of every kind, folders with classes and splits, sets, made solids, and what is broken."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eyespot.data.cloud_files import read_surface
from eyespot.data.clouds import open_clouds
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.data.solids import NAMES, SIZES
from eyespot.errors import UserError

CUBE = [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
FACES = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4]]
FACES += [[1, 5, 7], [1, 7, 3]]


def some(n=50, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def write_off(path, vertices=CUBE, faces=FACES):
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0", *(" ".join(map(str, v)) for v in vertices)]
    path.write_text("\n".join([*lines, *(f"3 {a} {b} {c}" for a, b, c in faces)]) + "\n")


def write_pcd(path, points, binary):
    head = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nPOINTS {len(points)}\n"
    )
    table = np.concatenate([points, np.arange(len(points), dtype=np.float32)[:, None]], 1)
    body = table.astype("<f4").tobytes() if binary else "\n".join(" ".join(map(str, r)) for r in table).encode()
    path.write_bytes(f"{head}DATA {'binary' if binary else 'ascii'}\n".encode() + body)


def write(path, points):
    kind = path.suffix
    if kind == ".npy":
        np.save(path, points)
    elif kind == ".npz":
        np.savez(path, xyz=points, other=np.zeros(3))
    elif kind == ".bin":
        np.concatenate([points, np.ones((len(points), 1), np.float32)], 1).tofile(path)
    elif kind == ".pcd":
        write_pcd(path, points, "binary" in path.stem)
    else:
        first = f"{len(points)}\n" if kind == ".pts" else ""
        path.write_text(first + "\n".join((", " if kind == ".csv" else " ").join(map(str, p)) for p in points.tolist()))


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.txt", "a.xyz", "a.pts", "a.csv", "a.bin", "text.pcd", "binary.pcd"]
)
def test_files_of_points(tmp_path, name):
    points = some()
    write(tmp_path / name, points)
    found = read_surface(tmp_path / name)
    np.testing.assert_allclose(found.points[:, :3], points, rtol=1e-6)
    record = open_clouds(tmp_path / name).record(0, {"points": 50, "seed": 1})["points"]
    assert record.shape == (50, 3) and record.dtype == torch.float32
    assert float(record.norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    assert float(record.mean(0).abs().max()) < 1e-6
    # every point once, in another order
    whole = (points - points.mean(0)) / np.linalg.norm(points - points.mean(0), axis=1).max()
    assert np.allclose(np.sort(record.numpy(), 0), np.sort(whole, 0), atol=1e-5)


def test_meshes_are_drawn_evenly_by_area(tmp_path):
    pytest.importorskip("trimesh")
    import trimesh

    write_off(tmp_path / "cube.off")
    trimesh.load(tmp_path / "cube.off").export(tmp_path / "cube.ply")
    trimesh.load(tmp_path / "cube.off").export(tmp_path / "cube.stl")
    trimesh.load(tmp_path / "cube.off").export(tmp_path / "cube.obj")
    trimesh.load(tmp_path / "cube.off").export(tmp_path / "cube.glb")
    for kind in ("off", "ply", "stl", "obj", "glb"):
        source = open_clouds(tmp_path / f"cube.{kind}")
        points = source.record(0, {"points": 3000, "seed": 5})["points"].numpy()
        side = np.abs(points).max()
        on = np.isclose(np.abs(points), side, atol=0.02).any(1)
        assert on.mean() > 0.99  # on the surface of a cube
        share = [(points[:, k] * s > 0.98 * side).mean() for k in range(3) for s in (-1, 1)]
        assert max(share) - min(share) < 0.06
    again = open_clouds(tmp_path / "cube.off")
    a, b, c = (again.record(0, {"points": 9, "seed": s})["points"] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


BROKEN = {
    "empty.npy": b"",
    "cut.npy": b"\x93NUMPY\x01\x00v\x00{'descr'",
    "letters.txt": b"1 2 three\n",
    "nothing.xyz": b"# no points\n",
    "odd.bin": b"\0" * 20,
    "cut.pcd": b"FIELDS x y z\nPOINTS 3",
    "packed.pcd": b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 3\nDATA binary_compressed\n",
    "short.pcd": b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 9\nDATA binary\n1234",
    "cut.off": b"OFF\n8 12",
    "empty.ply": b"",
    "cut.ply": b"ply\nformat ascii 1.0\nelement vertex 5\n",
    "cut.stl": b"solid x",
    "cut.glb": b"glTF\x02\0\0\0",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_bad_and_says_why(tmp_path, name):
    if name.endswith((".off", ".ply", ".stl", ".glb")):
        pytest.importorskip("trimesh")
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(BadFile) as caught:
        open_clouds(tmp_path / name).record(0)
    assert caught.value.reason and "\n" not in caught.value.reason


def test_points_that_are_no_places_are_bad(tmp_path):
    for name, values in {
        "nan": some() * np.nan,
        "flat": some(5, 2),
        "same": np.ones((9, 3)),
        "line": some(1, 7)[0],
    }.items():
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(BadFile):
            open_clouds(tmp_path / f"{name}.npy").record(0)
    with pytest.raises(BadFile, match="3 numbers a point where 6"):
        np.save(tmp_path / "xyz.npy", some())
        open_clouds(tmp_path / "xyz.npy", channels=6).record(0)


def test_features_of_points_stay_as_they_are(tmp_path):
    np.save(tmp_path / "six.npy", some(40, 6))
    record = open_clouds(tmp_path / "six.npy", channels=6).record(0, {"points": 40})["points"]
    assert np.allclose(np.sort(record[:, 3:].numpy(), 0), np.sort(some(40, 6)[:, 3:], 0))


@pytest.mark.parametrize("layout", ["{c}/{s}", "{s}/{c}"])
def test_folders_of_classes_and_splits(tmp_path, layout):
    for c in ("chair", "lamp"):
        for s, n in (("train", 3), ("test", 2)):
            folder = tmp_path / layout.format(c=c, s=s)
            folder.mkdir(parents=True)
            for k in range(n):
                np.save(folder / f"{k}.npy", some(seed=k))
    train, test, everything = open_clouds(tmp_path), open_clouds(f"{tmp_path}:test"), open_clouds(tmp_path, split="all")
    assert (len(train), len(test), len(everything)) == (6, 4, 10)
    assert train.class_names == ("chair", "lamp") and sorted(test.labels.tolist()) == [0, 0, 1, 1]
    with pytest.raises(UserError, match=r"no split 'tests'.*'test'"):
        open_clouds(tmp_path, split="tests")


def test_a_list_with_labels(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", some(seed=k))
    (tmp_path / "list.txt").write_text("0.npy\tbox\n1.npy\tball\n2.npy\tbox\n")
    source = open_clouds(tmp_path / "list.txt")
    assert source.class_names == ("ball", "box") and source.labels.tolist() == [1, 0, 1]


def test_a_set_in_one_file(tmp_path):
    clouds, marks = np.stack([some(30, seed=k) for k in range(5)]), np.array(["learn"] * 3 + ["test"] * 2)
    np.savez(tmp_path / "set.npz", xyz=clouds, category=np.array(list("ababa")), split=marks, label=np.zeros((5, 30)))
    train, test = open_clouds(tmp_path / "set.npz"), open_clouds(f"{tmp_path / 'set.npz'}:test")
    assert len(train) == 3 and test.labels.tolist() == [1, 0] and test.path(0).endswith("set.npz#3")
    assert train.count(0) == 30 and train.record(0)["points"].shape == (2048, 3)
    assert len(open_clouds(tmp_path)) == 3  # the only file of the folder


def test_voxels_become_points_on_the_surface(tmp_path):
    full = np.zeros((2, 8, 8, 8), bool)
    full[0, 2:6, 2:6, 2:6] = True
    np.savez(tmp_path / "v.npz", voxels_packed=np.packbits(full.reshape(2, -1), axis=1), label=np.array([4, 1]))
    source = open_clouds(tmp_path / "v.npz")
    assert source.labels.tolist() == [4, 1]
    points = source.record(0, {"points": 500, "seed": 0})["points"]
    largest = points.abs().amax(1)
    assert float(largest.min()) > 0.2 and float(largest.max()) <= 1  # nothing inside the cube
    with pytest.raises(BadFile, match="no points"):
        source.record(1)


def test_clouds_in_parquet(tmp_path):
    nested, flat = [some(4).tolist(), some(6).tolist(), None], [some(4).reshape(-1).tolist(), [1.0] * 7, [0.0] * 9]
    for name, values in (("nested", nested), ("flat", flat)):
        pq.write_table(
            pa.table({"points": values, "label": ["a", "b", "a"], "split": ["train"] * 3}), tmp_path / f"{name}.parquet"
        )
    source = open_clouds(tmp_path / "nested.parquet")
    assert source.labels.tolist() == [0, 1, 0] and source.record(1, {"points": 6})["points"].shape == (6, 3)
    with pytest.raises(BadFile):
        source.record(2)
    other = open_clouds(tmp_path / "flat.parquet")
    assert other.record(0, {"points": 4})["points"].shape == (4, 3)
    for row in (1, 2):
        with pytest.raises(BadFile):
            other.record(row)
    with pytest.raises(UserError, match="no column 'points' among x"):
        pq.write_table(pa.table({"x": [1]}), tmp_path / "none.parquet")
        open_clouds(tmp_path / "none.parquet")


def test_made_solids_are_the_same_every_time_and_all_differ():
    train, test = open_clouds("shapes:train"), open_clouds("shapes:test")
    assert len(train) == SIZES["train"] and len(test) == SIZES["test"] and train.class_names == NAMES
    plan = {"points": 64, "seed": 3}
    seen = [train.record(i, plan)["points"] for i in range(24)]
    assert all(torch.equal(a, train.record(i, plan)["points"]) for i, a in enumerate(seen))
    assert all(bool(a.isfinite().all()) for a in seen)
    assert len({tuple(a[0].tolist()) for a in seen}) == 24
    assert not torch.equal(seen[0], test.record(0, plan)["points"])
    assert not torch.equal(seen[0], train.record(0, {"points": 64, "seed": 4})["points"])
    with pytest.raises(UserError, match="no split 'tests'"):
        open_clouds("shapes:tests")


def test_bad_clouds_are_counted_and_left_out(tmp_path):
    for k in range(8):
        np.save(tmp_path / f"{k}.npy", some(seed=k))
    (tmp_path / "3.npy").write_bytes(b"no")
    data = RecordData(open_clouds(tmp_path), workers=0, max_bad=0.5)
    batch = data.batch(np.arange(8), replace=False)
    assert batch["points"].shape == (7, 2048, 3) and 3 not in batch["index"].tolist() and len(data.bad) == 1


def test_what_is_no_cloud_is_refused_with_a_remedy(tmp_path):
    for value, words in (
        (tmp_path, "holds no shapes"),
        (tmp_path / "no", "There is no path"),
        (7, "not as int"),
        ("", "path"),
    ):
        with pytest.raises(UserError, match=words):
            open_clouds(value)
    with pytest.raises(UserError, match="at least three numbers"):
        open_clouds("shapes:train", channels=2)


@pytest.mark.parametrize(("name", "classes"), [("modelnet_voxels", 2), ("osd_pointclouds", 6)])
def test_real_sets(shared_data, name, classes):
    source = open_clouds(shared_data(name))
    assert len(source.class_names) == classes and len(source) >= 40
    points = source.record(len(source) - 1, {"points": 256, "seed": 0})["points"]
    assert points.shape == (256, 3) and bool(points.isfinite().all())
