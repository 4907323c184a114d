"""Scenes of objects: the masks say what is painted, every object is seen, the same scenes always."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eyespot.data import objects
from eyespot.data.decode import BadFile
from eyespot.data.masks import open_masked
from eyespot.data.objects import SIDE, SPLITS, VISIBLE, ObjectSource, seen, visible
from eyespot.data.sources import open_source
from eyespot.errors import UserError


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_object_is_seen_and_numbers_are_those_of_the_split(split):
    source = ObjectSource(split, count=40)
    _, low, high = SPLITS[split]
    counts = set()
    for i in range(len(source)):
        layers, mask = source.layers(i), source.mask(i)
        assert layers.shape[1:] == mask.shape == (SIDE, SIDE)
        counts.add(len(layers))
        assert mask.unique().tolist() == list(range(len(layers) + 1))
        for k, layer in enumerate(layers):
            shown = mask == k + 1
            assert not (shown & ~layer).any()
            assert shown.sum() > 0.9 * VISIBLE * layer.sum()  # pixels at the edge are counted whole
    assert counts == set(range(low, high + 1))


def test_the_first_layer_hides_the_others():
    layers = np.zeros((3, 4, 4), bool)
    layers[0, :2], layers[1, :, :2], layers[2, :2] = True, True, True
    assert seen(layers).tolist() == [[1, 1, 1, 1]] * 2 + [[2, 2, 0, 0]] * 2
    assert visible(layers).tolist() == [1.0, 0.5, 0.0]


def test_pixels_and_mask_agree():
    """Objects are bright in one channel at least, backgrounds dark in all; edges are mixed."""
    source, right = ObjectSource(count=20), []
    for i in range(20):
        bright = source.load(i).max(0).values > 128
        right.append((bright == (source.mask(i) > 0)).float().mean())
    assert min(right) > 0.95


def test_the_same_scenes_always_and_others_for_another_seed_or_split():
    one, two, other = ObjectSource(), ObjectSource(), ObjectSource(seed=1)
    assert torch.equal(one.load(3), two.load(3)) and torch.equal(one.layers(3), two.layers(3))
    assert not torch.equal(one.load(3), other.load(3))
    assert not torch.equal(one.load(3), ObjectSource("test").load(3))
    assert torch.equal(ObjectSource(count=9).load(7), one.load(7))


def test_objects_that_stay_hidden_are_left_out(monkeypatch):
    monkeypatch.setattr(objects, "TRIES", 1)
    monkeypatch.setattr(objects, "RADII", (0.5,))
    source = ObjectSource("general", count=10)
    for i in range(10):
        layers = source.layers(i)
        assert 1 <= len(layers) < 5
        assert (visible(layers.numpy()) > 0.8 * VISIBLE).all()


def test_by_name():
    source = open_source("objects:test")
    assert isinstance(source, ObjectSource) and len(source) == SPLITS["test"][0]
    assert len(open_source("objects")) == SPLITS["train"][0]
    assert len(open_source("objects", split="general")) == SPLITS["general"][0]
    assert source.shape(0) == (3, SIDE, SIDE, False) and source.path(4) == "objects:test#4"
    masked = open_masked("objects:test")
    assert torch.equal(masked.mask(2), source.mask(2)) and torch.equal(masked.load(2), source.load(2))
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        open_source("objects:tset")
    with pytest.raises(BadFile, match="has 3 channels where 1 are asked for"):
        source.load(0, channels=1)
