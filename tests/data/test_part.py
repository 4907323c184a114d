"""Some samples of a source, under labels of their own."""

import numpy as np
import pytest
import torch

from eyespot.data.decode import BadFile
from eyespot.data.loader import Data
from eyespot.data.part import Part
from eyespot.data.sources import open_source


def test_samples_are_those_of_the_source():
    pictures = [torch.full((3, 8, 8), k, dtype=torch.uint8) for k in range(6)]
    source = open_source([(p, k % 2) for k, p in enumerate(pictures)])
    part = Part(source, np.array([5, 0, 3]), np.array([2, 0, 1]), ("a", "b", "c"))
    assert len(part) == 3 and part.name == source.name and part.threads == source.threads
    assert part.path(0) == source.path(5) and part.shape(2) == source.shape(3)
    batch = Data(part, workers=0).batch(np.array([0, 1, 2]))
    assert batch["image"][:, 0, 0, 0].tolist() == [5, 0, 3]
    assert batch["label"].tolist() == [2, 0, 1] and part.class_names == ("a", "b", "c")
    assert Part(source, np.array([1]), None).labels is None


def test_a_bad_file_is_told_by_its_own_path(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    part = Part(open_source(tmp_path), np.array([0]), None)
    with pytest.raises(BadFile, match=r"bad\.png"):
        part.load(0)
