"""Every sample exactly once an epoch: any source, number of processes and workers, batch size, and after a resume."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eyespot.data import Data, Request, open_source
from eyespot.data.batches import REPEAT
from eyespot.draws import Draws
from eyespot.train.plan import Order, Plan, epoch_steps, schedule_batches, steps_of

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import run_processes
from toy import Toy

N = 23
KINDS = ("folder", "list", "parquet", "copied parquet", "tars", "datasets", "objects")


def flat(i: int) -> np.ndarray:
    """A picture whose pixels say which it is."""
    return np.full((8, 8, 3), 10 * i, np.uint8)


@pytest.fixture
def make(tmp_path, pictures, tars):
    """Sources of N pictures in the order of their numbers."""
    encoded = [pictures.encode(flat(i), "PNG") for i in range(N)]

    def folder():
        return pictures.write(tmp_path / "folder", {f"{i:02d}.png": raw for i, raw in enumerate(encoded)})

    def parquet():
        for k, part in enumerate(np.array_split(np.arange(N), 3)):
            table = pa.table({"image": [encoded[i] for i in part]})
            (tmp_path / "parquet").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "parquet" / f"train-{k:05d}-of-00003.parquet", row_group_size=4)
        return tmp_path / "parquet"

    def shards():
        for k, part in enumerate(np.array_split(np.arange(N), 3)):
            tars.write(tmp_path / "tars" / f"train-{k:06d}.tar", {f"{i:04d}.png": encoded[i] for i in part})
        return f"{tmp_path}/tars/train-{{000000..000002}}.tar"

    def build(kind: str):
        if kind == "list":
            (tmp_path / "list.txt").write_text("".join(f"{f}\n" for f in sorted(folder().iterdir())))
            return open_source(tmp_path / "list.txt")
        if kind == "copied parquet":
            source = open_source(parquet())
            source.memory = 1
            return source
        if kind == "datasets":
            library = pytest.importorskip("datasets")
            rows = [{"bytes": raw, "path": None} for raw in encoded]
            return open_source(library.Dataset.from_dict({"image": rows}).cast_column("image", library.Image()))
        if kind == "objects":
            return open_source([flat(i) for i in range(N)])
        return open_source({"folder": folder, "parquet": parquet, "tars": shards}[kind]())

    return build


def read(data: Data, plan: Plan, start: int, stop: int, world: int) -> list[list[int]]:
    """What the loader gives for each step, all ranks together in the order of the global batch."""
    whole = [[] for _ in range(stop - start)]
    for rank in range(world):
        wheres = list(schedule_batches(Toy(), N, plan, start, stop, rank, world))
        batches = list(data.stream(Request(w.rows, w.keys) for w in wheres))
        assert len(batches) == len(wheres)
        for step, batch in enumerate(batches):
            assert (batch["image"][:, 0, 0, 0] == 10 * batch["index"]).all(), "the picture is another sample's"
            whole[step] += batch["index"].tolist()
    return whole


def assert_once(steps: list[list[int]], epochs: int) -> None:
    order = [i for step in steps for i in step]
    assert len(order) >= epochs * N
    for e in range(epochs):
        assert sorted(order[e * N : (e + 1) * N]) == list(range(N)), f"epoch {e}"


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_through_the_loader(make, kind, workers):
    data = Data(make(kind), workers=workers, cache_bytes=0)
    assert len(data) == N
    for world, batch in ((1, 5), (2, 6)):
        steps = steps_of(2, N / batch)
        plan = Plan(Toy.recipe, 1e-3, batch, N / batch, steps, 2.0)
        whole = read(data, plan, 0, steps, world)
        assert_once(whole, 2)
        resumed = read(data, plan, 3, steps, world)  # in the middle of the first epoch
        assert whole[3:] == resumed


def test_the_order_is_the_same_for_any_number_of_processes_and_parts():
    def order(world, accumulate):
        plan = Plan(Toy.recipe, 1e-3, 8, N / 8, 9, None, accumulate=accumulate)
        parts = [list(schedule_batches(Toy(), N, plan, 0, 9, r, world)) for r in range(world)]
        shape = (accumulate, 8 // (world * accumulate))
        return [np.stack([p[s].rows.reshape(shape) for p in parts], 1).reshape(-1).tolist() for s in range(9)]

    expected = order(1, 1)
    assert_once(expected, 3)
    assert all(order(*split) == expected for split in ((2, 1), (4, 1), (1, 2), (2, 2)))


@pytest.mark.parametrize("batch", [1, 2, 5, 22, 23])
def test_any_batch_size(batch):
    order = Order(Toy(), N, Plan(Toy.recipe, 1e-3, batch, N / batch, 1, None))
    steps = [order.step(s) for s in range(steps_of(4, N / batch))]
    assert_once([rows.tolist() for _, rows, _ in steps], 4)
    assert [e for e, _, _ in steps] == [s * batch // N for s in range(len(steps))]
    drawn = [(e, key) for e, _, keys in steps for key in keys.tolist()]
    assert len(set(drawn)) == len(drawn), "two views of one sample would be drawn alike"
    assert all((keys % REPEAT == rows).all() for _, rows, keys in steps)


def test_epochs_differ():
    order = Order(Toy(), N, Plan(Toy.recipe, 1e-3, N, 1.0, 1, None))
    assert order.step(0)[1].tolist() != order.step(1)[1].tolist()


def test_steps_of_an_epoch():
    assert epoch_steps(Toy(), N, 5, 0) == 4.6
    assert [steps_of(e, 4.6) for e in (0.01, 1, 2, 5, 10)] == [1, 5, 10, 23, 46]
    assert steps_of(3, 300 / 7 * 7 / 100) == 9  # no step more by rounding


def test_a_methods_own_order_is_taken_as_it_is():
    class Own(Toy):
        def batches(self, n, epoch, draws):
            assert isinstance(draws, Draws)
            return np.arange(8).reshape(2, 4) + epoch

    order = Order(Own(), 20, Plan(Toy.recipe, 1e-3, 4, 2.0, 1, None))
    assert epoch_steps(Own(), 20, 4, 0) == 2.0
    assert [order.step(s)[1].tolist() for s in (0, 1, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 2, 3, 4]]


@pytest.mark.slow
def test_interrupted_on_two_processes_and_resumed_on_one(make, tmp_path):
    """A run of three epochs, stopped within the second, goes on elsewhere: together they read everything once."""
    path = make("tars").name
    out = tmp_path / "run"
    out.mkdir()
    job = Path(__file__).parent / "once_job.py"
    run_processes(job, [str(out), path, "2", "5"], 2, tmp_path)
    run_processes(job, [str(out), path, "1", "99"], 1, tmp_path)
    first = [json.loads((out / f"read.5.{r}.json").read_text()) for r in range(2)]
    second = json.loads((out / "read.99.0.json").read_text())
    assert sorted(map(int, first[0])) == [0, 1, 2, 3, 4] and sorted(map(int, second)) == list(range(5, 12))
    whole = [first[0][str(s)][0] + first[1][str(s)][0] for s in range(5)] + [second[str(s)][0] for s in range(5, 12)]
    assert_once(whole, 3)
    for part in (*first, second):
        for index, pixel, _ in part.values():
            assert pixel == [10 * i for i in index]
