"""Changes of pose: the maps that are drawn, and pictures seen through them."""

import numpy as np
import pytest
import torch

from eyespot.draws import Draws
from eyespot.views.resample import rotate
from eyespot.views.warp import homographies, warp


def pictures(n=4, side=12):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_identity_leaves_pictures_as_they_are():
    x = pictures()
    assert torch.allclose(warp(x, torch.eye(3).expand(4, 3, 3)), x, atol=1e-12)


def test_a_quarter_turn_moves_pixels_exactly():
    x, draws = pictures(), Draws(index=range(4))
    maps = homographies(draws, 0.0, 0.0)
    maps[:, :2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned = warp(x, maps)
    assert torch.allclose(turned, x.rot90(1, (2, 3)), atol=1e-6) or torch.allclose(
        turned, x.rot90(-1, (2, 3)), atol=1e-6
    )


def test_turns_inside_the_circle_as_rotate():
    x = pictures(side=15)
    maps = homographies(Draws(index=range(4)), 40.0, 0.0)
    angle = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert float(angle.abs().max()) <= 40.0
    middle = (..., slice(4, 11), slice(4, 11))
    assert torch.allclose(warp(x, maps)[middle], rotate(x, angle.double())[middle], atol=1e-5)


def test_perspective_is_bounded_and_stays_finite():
    maps = homographies(Draws(index=range(500)), 40.0, 0.9)
    corners = torch.tensor([[x, y, 1.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    assert float((maps[:, 2] @ corners.T).min()) > 0.09  # nothing comes from behind
    out = warp(pictures(), maps[:4])
    assert float(out.min()) >= 0.0 and float(out.max()) <= 1.0


@pytest.mark.parametrize("rows", [[2], [3, 0]])
def test_a_map_belongs_to_its_sample(rows):
    whole = homographies(Draws(3, 1, index=range(4)), 40.0, 0.3)
    assert torch.equal(homographies(Draws(3, 1, index=np.array(rows)), 40.0, 0.3), whole[rows])
