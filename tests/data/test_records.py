"""Records of several fields in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eyespot.data.batches import Request
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData, RecordSource, collated
from eyespot.errors import UserError


class Words(RecordSource):
    """Sample i: i + 1 numbers (or as many as the plan says), a word, and its number; some are broken."""

    name = "words"
    fields = ("values", "word", "number")

    def __init__(self, n: int = 12, bad: tuple[int, ...] = (), keeps: bool = False):
        self.n, self.broken, self.keeps = n, bad, keeps
        self.labels = np.arange(n) % 3
        self.class_names = ("a", "b", "c")
        self.reads = 0

    def __len__(self):
        return self.n

    def path(self, i):
        return f"words#{i}"

    def record(self, i, plan=None):
        self.reads += 1
        if i in self.broken:
            raise BadFile(self.path(i), "broken")
        whole = {"values": torch.full((i + 1, 2), float(i)), "word": f"w{i}", "number": i}
        return whole if plan is None else self.planned(whole, plan)

    def planned(self, record, plan):
        return record | {"values": record["values"][:1].expand(plan["count"], -1)}


def test_fields_of_one_shape_are_one_tensor_and_of_several_a_list():
    data = RecordData(Words(), workers=0)
    batch = data.batch([0, 3])
    assert [tuple(v.shape) for v in batch["values"]] == [(1, 2), (4, 2)]
    assert batch["word"] == ["w0", "w3"] and batch["number"].tolist() == [0, 3]
    assert batch["label"].tolist() == [0, 0] and batch["index"].tolist() == [0, 3]
    planned = data.batch([0, 3], plans=[{"count": 2}, {"count": 2}])
    assert planned["values"].shape == (2, 2, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_is_replaced_by_the_next_or_left_out(workers):
    data = RecordData(Words(bad=(4,)), workers=workers, max_bad=0.2)
    batches = list(data.stream([np.array([3, 4]), np.array([4, 7])]))
    assert [b["index"].tolist() for b in batches] == [[3, 5], [5, 7]]
    assert [b["word"] for b in batches] == [["w3", "w5"], ["w5", "w7"]]
    assert [v.shape[0] for b in batches for v in b["values"]] == [4, 6, 6, 8]
    assert data.bad == {"words#4": "broken"}
    kept = next(iter(data.stream([np.array([3, 4])], replace=False)))
    assert kept["index"].tolist() == [3] and kept["word"] == ["w3"]


def test_plans_go_to_the_workers():
    data = RecordData(Words(), workers=2)
    request = Request(np.array([1, 2]), plans=[{"count": 3}, {"count": 1}])
    batch = next(iter(data.stream([request])))
    assert [tuple(v.shape) for v in batch["values"]] == [(3, 2), (1, 2)]


def test_small_sets_are_read_once_where_the_source_says_so():
    source = Words(keeps=True, bad=(1,))
    data = RecordData(source, workers=0, max_bad=0.5)
    assert data.fill() and data.cached
    reads = source.reads
    assert data.batch([0, 1, 2])["word"] == ["w0", "w2", "w2"] and source.reads == reads
    assert data.batch([0], plans=[{"count": 9}])["values"].shape == (1, 9, 2) and source.reads == reads
    assert not RecordData(Words(keeps=True), workers=0, cache_bytes=8).fill()


def test_too_many_bad_records_end_with_a_sentence():
    with pytest.raises(UserError, match="3 of 12 samples of words cannot be read, more than the 20%"):
        list(RecordData(Words(bad=(1, 2, 3)), workers=0, max_bad=0.2).stream([np.arange(6)]))


def test_an_empty_source_is_refused():
    with pytest.raises(UserError, match="words holds no samples"):
        RecordData(Words(n=0))


def test_numbers_become_tensors():
    assert collated([1, 2]).dtype == torch.int64 and collated([1, 2.5]).tolist() == [1.0, 2.5]
    assert collated([None, "a"]) == [None, "a"]
