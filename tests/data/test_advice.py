"""What helps a run that waits for its data: only what is true of it, and only options that exist."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eyespot.data import Data, advice, open_source
from eyespot.data.advice import remedies
from eyespot.declare import option_fields
from eyespot.options import PretrainOptions


@pytest.fixture
def machine(monkeypatch):
    def of(cores: int, free: float):
        monkeypatch.setattr(advice, "cores", lambda: cores)
        monkeypatch.setattr(advice, "free_memory", lambda: int(free))

    of(8, 0)
    return of


@pytest.fixture
def folder(tmp_path, pictures):
    return pictures.write(tmp_path / "set", {f"{k}.png": pictures.picture(k, 40, 50) for k in range(6)})


def data_of(source, workers: int = 8, **options) -> Data:
    return Data(open_source(source), workers=workers, **{"cache_bytes": 0, **options})


def test_each_remedy_when_it_is_true(folder, machine):
    loose = "Parquet or tars instead of loose files, where the disk is slow or far away"
    assert remedies(data_of(folder)) == [loose]
    assert remedies(data_of(folder, workers=2)) == ["more workers (--workers 8)", loose]
    smaller = data_of(folder, short_side=20)
    assert remedies(smaller) == ["smaller pictures on disk (no view needs a shorter side of more than 20 px)", loose]
    big = data_of(folder)
    big._shapes = [(3, 4000, 5000, False)]  # 6 x 60 MB
    machine(8, 1e9)
    assert remedies(big) == ["decoded pictures in memory (--cache 0.4, of 1 GB that are free)", loose]
    machine(8, 0.5e9)
    assert remedies(big) == [loose]


def test_nothing_helps_pictures_in_memory(folder, machine):
    data = Data(open_source(folder))
    data.fill()
    assert remedies(data) == [] and remedies(object()) == []


def test_cores_are_the_limit(tmp_path, pictures, machine):
    raw = pictures.encode(pictures.picture(), "PNG")
    pq.write_table(pa.table({"image": [raw] * 3}), tmp_path / "a.parquet")
    assert remedies(data_of(tmp_path / "a.parquet")) == ["more cores, for 8 workers decode on 8 already"]


def test_processes_share_the_cores(folder, machine, monkeypatch):
    monkeypatch.setattr(advice, "world_size", lambda: 4)
    assert remedies(data_of(folder, workers=2))[0].startswith("Parquet")
    assert remedies(data_of(folder, workers=1))[0] == "more workers (--workers 2)"


def test_options_that_are_named_exist(folder, machine):
    machine(64, 1e12)
    flags = {f.flag for f in option_fields(PretrainOptions)}
    data = data_of(folder, workers=0, short_side=20)
    data._shapes = [(3, 4000, 5000, False)]
    named = re.findall(r"--[a-z-]+", " ".join(remedies(data)))
    assert named == ["--workers", "--cache"] and set(named) <= flags


def test_the_cache_that_is_advised_is_large_enough(folder, machine):
    machine(8, 1e12)
    data = data_of(folder)
    data._shapes = [(3, 4000, 5000, False)]
    gigabytes = float(re.findall(r"--cache ([0-9.]+)", remedies(data)[0])[0])
    assert gigabytes * 1e9 >= 6 * 3 * 4000 * 5000
    assert np.isclose(gigabytes, 0.4)
