"""Glyphs: marks that differ, each where its box says, on backgrounds that stay."""

import numpy as np
import pytest
import torch

from eyespot.data.dataset import DatasetSource
from eyespot.data.glyphs import CLASSES, GLYPH, SIDE, GlyphSource, glyphs
from eyespot.data.sources import open_source


class Flat:
    def __init__(self, count=400, size=32):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return torch.full((3, self.size, self.size + 5), 10 + i % 200, dtype=torch.uint8), 0


def test_marks_differ_and_are_alike_when_mirrored():
    marks = glyphs()
    assert marks.shape == (CLASSES, GLYPH, GLYPH) and set(marks.unique().tolist()) == {0, 255}
    assert torch.equal(marks, marks.flip(-1))
    assert bool(((marks == 255).sum((1, 2)) == GLYPH * GLYPH // 2).all())
    apart = (marks[:, None] != marks).sum((2, 3)) + GLYPH * GLYPH * torch.eye(CLASSES, dtype=torch.long)
    assert int(apart.min()) >= 24


@pytest.mark.parametrize("size", [20, 32])
def test_a_mark_lies_in_its_box_and_the_rest_stays(size):
    source = GlyphSource(DatasetSource(Flat(12, size)))
    for i in range(len(source)):
        picture, (top, left, side) = source.load(i), source.box(i)
        assert picture.shape == (3, SIDE, SIDE) and picture.dtype == torch.uint8
        inside = picture[:, top : top + side, left : left + side]
        assert torch.equal(inside, glyphs()[source.labels[i]].expand(3, -1, -1))
        outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
        outside[top : top + side, left : left + side] = False
        assert set(picture[:, outside].unique().tolist()) == {10 + i}


def test_classes_and_places_are_spread_and_always_the_same():
    source, again = GlyphSource(DatasetSource(Flat())), GlyphSource(DatasetSource(Flat()))
    assert np.array_equal(source.labels, again.labels) and np.array_equal(source.places, again.places)
    assert np.bincount(source.labels, minlength=CLASSES).min() > 5
    assert source.places.min() == 0 and source.places.max() == SIDE - GLYPH
    assert not np.array_equal(source.labels, GlyphSource(DatasetSource(Flat()), seed=1).labels)
    assert not np.array_equal(source.places[:300], GlyphSource(DatasetSource(Flat(300))).places)
    assert source.load(3).data_ptr() != source.source.load(3).data_ptr()


def test_opens_by_name(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (40, 30), (i, 5, 9)).save(tmp_path / f"{i}.png")
    source = open_source(f"glyphs:{tmp_path}")
    assert isinstance(source, GlyphSource) and len(source) == 3 and len(source.class_names) == CLASSES
    assert source.load(1, channels=3, plan=None).shape == source.shape(1)[:3]
