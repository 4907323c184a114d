"""Posed frames: tuples, sequences, the layouts of 7-Scenes and KITTI, Parquet, the made tour, and what is broken."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eyespot.data.decode import BadFile
from eyespot.data.posed import as_pose, cut, open_posed
from eyespot.data.records import RecordData
from eyespot.data.tour import SIZES
from eyespot.errors import UserError


def matrix(k=0, rows=4):
    angle = 0.1 * k
    out = np.eye(4)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    out[:3, 3] = [k, 2 * k, -k]
    return out[:rows]


def picture(k=0, size=(12, 8)):
    return Image.fromarray(np.full((size[1], size[0], 3), 10 * k % 256, np.uint8))


def png(k=0, size=(12, 8)):
    buffer = io.BytesIO()
    picture(k, size).save(buffer, "PNG")
    return buffer.getvalue()


def seven_scenes(root, frames=6):
    for s in (1, 2, 3):
        folder = root / f"seq-{s:02d}"
        folder.mkdir(parents=True)
        for k in range(frames):
            picture(k).save(folder / f"frame-{k:06d}.color.png")
            np.savetxt(folder / f"frame-{k:06d}.pose.txt", matrix(k))
    (root / "TrainSplit.txt").write_text("sequence1\nsequence3\n")
    (root / "TestSplit.txt").write_text("sequence2\n")


def test_a_pose_is_a_place_and_a_quaternion():
    pose = as_pose(matrix(3))
    assert pose[:3].tolist() == [3, 6, -3] and np.allclose(pose[3:], [np.cos(0.15), 0, 0, np.sin(0.15)])
    assert np.allclose(as_pose(matrix(3, 3)), pose) and as_pose(matrix(40))[3] >= 0
    for wrong in (np.zeros(16), np.full(12, np.nan), np.ones(9)):
        with pytest.raises(ValueError, match="pose"):
            as_pose(wrong)


def test_tuples_stay_in_their_sequence(tmp_path):
    seven_scenes(tmp_path)
    source = open_posed(tmp_path)
    assert len(source) == 12 and source.name == str(tmp_path)
    assert source.tuple_of(0, 3, 2).tolist() == [0, 0, 2]
    assert source.tuple_of(5, 3, 2).tolist() == [3, 5, 5]
    assert source.tuple_of(6, 3, 10).tolist() == [6, 6, 11]
    record = source.record(7, {"frames": 3, "spacing": 2})
    assert record["image_pair"].shape == (3, 3, 8, 12) and record["image_pair"].dtype == torch.uint8
    assert record["image_pair"][:, 0, 0, 0].tolist() == [0, 10, 30]
    assert torch.equal(record["image"], record["image_pair"][1])
    assert record["pose"][:, 0].tolist() == [0, 1, 3]
    assert record["place"].tolist() == pytest.approx([0, 1 / 6, 3 / 6])
    assert len(open_posed(f"{tmp_path}:test")) == 6 and len(open_posed(tmp_path, split="all")) == 18
    with pytest.raises(UserError, match="no split 'dev'"):
        open_posed(tmp_path, split="dev")


def test_kitti_layout(tmp_path):
    (tmp_path / "poses").mkdir()
    for s, size in (("00", (20, 10)), ("01", (19, 10))):
        folder = tmp_path / "sequences" / s / "image_0"
        folder.mkdir(parents=True)
        for k in range(4):
            picture(k, size).convert("L").save(folder / f"{k:06d}.png")
        np.savetxt(tmp_path / "poses" / f"{s}.txt", np.stack([matrix(k, 3).reshape(-1) for k in range(4)]))
    source = open_posed(tmp_path)
    assert len(source) == 8 and source.starts.tolist() == [0] * 4 + [4] * 4
    batch = RecordData(source, workers=0).batch([0, 7])
    assert batch["image_pair"].shape == (2, 3, 3, 10, 20)  # all as large as the first frame
    assert batch["pose"][1, 1, :3].tolist() == [3, 6, -3]
    assert open_posed(tmp_path, channels=1).record(0)["image"].shape == (1, 10, 20)


def test_parquet(tmp_path):
    frames = [0, 1, 2, 3, 100, 101, 102, 103]
    table = {"image": [png(k) for k in range(8)], "pose": [matrix(k).reshape(-1).tolist() for k in frames]}
    table |= {"frame": frames, "split": ["train"] * 6 + ["test"] * 2}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_posed(tmp_path / "a.parquet")
    assert len(source) == 6 and source.starts.tolist() == [0, 0, 0, 0, 4, 4]
    assert len(open_posed(tmp_path, split="test")) == 2 and open_posed(f"{tmp_path}:test").path(0).endswith("#6")
    assert source.record(0, {"frames": 2, "spacing": 1, "short_side": 4})["image_pair"].shape == (2, 3, 4, 6)
    with pytest.raises(UserError, match="no column of poses"):
        pq.write_table(pa.table({"image": [png()]}), tmp_path / "b.parquet")
        open_posed(tmp_path / "b.parquet")


def test_sequences_end_where_names_change_or_numbers_jump():
    starts, ends = cut(["a", "a", "b", "b"], None)
    assert starts.tolist() == [0, 0, 2, 2] and ends.tolist() == [2, 2, 4, 4]
    assert cut([0] * 6, [0, 4, 8, 40, 44, 3])[0].tolist() == [0, 0, 0, 3, 3, 5]


def test_broken_frames_and_poses_are_bad(tmp_path):
    seven_scenes(tmp_path)
    (tmp_path / "seq-01" / "frame-000001.color.png").write_bytes(b"no")
    (tmp_path / "seq-01" / "frame-000004.pose.txt").write_text("1 2 three")
    source = open_posed(tmp_path)
    for i in (1, 4):
        with pytest.raises(BadFile):
            source.record(i, {"frames": 1})
    data = RecordData(source, workers=0, max_bad=0.5)
    batch = data.batch(np.arange(12), plans=[{"frames": 1}] * 12, replace=False)
    assert len(batch["index"]) == 10 and len(data.bad) == 2


def test_the_made_tour_is_the_same_every_time_and_its_places_look_different():
    source = open_posed("tour:train")
    assert len(source) == SIZES["train"]
    a, b = source.record(50), source.record(50)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert a["image"].shape == (3, 48, 64)
    other = source.record(250)
    assert float((a["image"].float() - other["image"].float()).abs().mean()) > 10
    near = source.record(51)
    assert float((a["image"].float() - near["image"].float()).abs().mean()) < 20
    assert float((a["pose"][:, 3:].norm(dim=1) - 1).abs().max()) < 1e-6 and float(a["pose"][:, 3].min()) >= 0
    with pytest.raises(UserError, match="no tour 'tests'"):
        open_posed("tour:tests")


def test_what_has_no_poses_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for value, words in (
        (tmp_path, "neither of 7-Scenes"),
        (tmp_path / "no", "no path"),
        (tmp_path / "a.txt", "no posed"),
    ):
        with pytest.raises(UserError, match=words):
            open_posed(value)


@pytest.mark.parametrize(("name", "n"), [("rgbd_posed_scene", 200), ("kitti_odometry_mini", 102), ("nerf_fox", 43)])
def test_real_frames(shared_data, name, n):
    source = open_posed(shared_data(name))
    assert len(source) == n
    record = source.record(5)
    assert record["image_pair"].shape[:2] == (3, 3) and bool(record["pose"].isfinite().all())
