"""Square views: inside the picture, at any place, of the sample alone."""

from __future__ import annotations

import numpy as np
import torch

from eyespot.draws import Draws
from eyespot.views.image import clean
from eyespot.views.square import square_boxes, square_view


def test_squares_lie_inside_and_keep_their_area():
    source = np.tile([[30, 40], [50, 20], [7, 7]], (100, 1))
    boxes = square_boxes(Draws(index=range(300)), source, 0.5)
    top, left, height, width = boxes.T
    assert (height == width).all() and (boxes >= 0).all()
    assert (top + height <= source[:, 0]).all() and (left + width <= source[:, 1]).all()
    share = (height / source.min(1)) ** 2
    assert share.min() > 0.4 and share.max() <= 1 and share.std() > 0.1
    whole = square_boxes(Draws(index=range(300)), source, 1.0)
    assert (whole[:, 2] == source.min(1)).all()
    wide = whole[::3]
    assert (wide[:, 0] == 0).all() and set(wide[:, 1]) == set(range(11))


def test_a_square_picture_whole_is_its_clean_view():
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(square_view(images, Draws(index=range(3)), 12), clean(images, 12), atol=3 / 255, rtol=0)
    mirrored = square_view(images, Draws(index=range(3)), 24, flip=1.0)
    torch.testing.assert_close(mirrored, images.flip(3) / 255, atol=1e-6, rtol=0)


def test_a_view_depends_on_its_sample_alone():
    images = [torch.randint(0, 256, (3, 20 + k, 24), dtype=torch.uint8) for k in range(4)]
    whole = square_view(images, Draws(index=range(4)), 16, 0.3, 0.5)
    part = square_view(images[2:3], Draws(index=[2]), 16, 0.3, 0.5)
    torch.testing.assert_close(part[0], whole[2])
    assert float(whole.min()) >= 0 and float(whole.max()) <= 1
