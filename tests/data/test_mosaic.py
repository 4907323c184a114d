"""Mosaics: every picture once, masks that say which picture is seen, the same scenes always."""

import numpy as np
import pytest
import torch

from eyespot.data.dataset import DatasetSource
from eyespot.data.mosaic import CELL, SHIFT, SIDE, TILE, MosaicSource
from eyespot.data.sources import open_source
from eyespot.errors import UserError


class Flat:
    """Pictures of one grey each, which is 10 times their label."""

    def __init__(self, count=21, size=32):
        self.targets = [i % 20 for i in range(count)]
        self.size = size

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((3, self.size, self.size + 5), 10 * self.targets[i], dtype=torch.uint8), self.targets[i]


def test_every_picture_is_used_once():
    scenes = MosaicSource(DatasetSource(Flat()))
    assert len(scenes) == 5
    assert len(set(scenes.rows.flatten().tolist())) == 20


@pytest.mark.parametrize("size", [16, 32, 50])
def test_mask_and_pixels_agree(size):
    scenes = MosaicSource(DatasetSource(Flat(size=size)))
    for i in range(len(scenes)):
        picture, mask = scenes.load(i), scenes.mask(i)
        assert picture.shape == (3, SIDE, SIDE) and mask.shape == (SIDE, SIDE)
        assert torch.equal(picture[1].long(), 10 * mask)
        assert set(mask.unique().tolist()) <= {scenes.source.labels[r] for r in scenes.rows[i]}


def test_tiles_cover_all_and_lie_near_their_cells():
    scenes = MosaicSource(DatasetSource(Flat(400)))
    shifts, firsts = [], []
    for i in range(len(scenes)):
        covered = np.zeros((SIDE, SIDE), bool)
        places = scenes.places(i)
        for tile, top, left in places:
            covered[max(0, top) : top + TILE, max(0, left) : left + TILE] = True
            shifts += [top - (tile // 2 * CELL - 4), left - (tile % 2 * CELL - 4)]
        firsts.append(places[0][0])
        assert covered.all()
    assert set(shifts) == set(range(-SHIFT, SHIFT + 1))
    assert set(firsts) == {0, 1, 2, 3}


def test_the_same_scenes_always_and_others_for_another_seed():
    one, two = (MosaicSource(DatasetSource(Flat())) for _ in range(2))
    assert torch.equal(one.load(3), two.load(3)) and torch.equal(one.mask(3), two.mask(3))
    other = MosaicSource(DatasetSource(Flat()), seed=1)
    assert not np.array_equal(one.rows, other.rows)


def test_labels_are_needed():
    with pytest.raises(UserError, match=r"four labelled pictures each and .* has 0; give labelled pictures"):
        MosaicSource(DatasetSource([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 9))


def test_by_name(shared_data):
    path = shared_data("cifar10") / "test.parquet"
    scenes = open_source(f"mosaic:{path}")
    assert isinstance(scenes, MosaicSource) and len(scenes) == 2500 and scenes.labels is None
    assert scenes.mask(0).unique().numel() >= 2
