"""The pairs of views that many papers share."""

import pytest

from eyespot.views.recipes import asymmetric, blur_probability, symmetric


@pytest.mark.parametrize(
    ("blur", "size", "expected"), [(None, 32, 0.0), (None, 64, 0.0), (None, 65, 0.5), (0.3, 32, 0.3)]
)
def test_small_pictures_are_not_blurred_unless_asked(blur, size, expected):
    assert blur_probability(blur, size, 0.5) == expected
    assert symmetric(size, 0.2, 0.5, blur=blur).blur_p == expected


def test_the_strength_scales_the_jitter():
    assert symmetric(32, 0.2, 0.5).jitter == pytest.approx((0.4, 0.4, 0.4, 0.1))
    assert symmetric(32, 0.2, 1.0).jitter == pytest.approx((0.8, 0.8, 0.8, 0.2))
    assert symmetric(32, 0.2, 0.0).jitter is None
    assert asymmetric(32, 0.2)[0].jitter == pytest.approx((0.4, 0.4, 0.2, 0.1))


def test_the_asymmetric_pair_differs_in_blur_and_solarisation():
    first, second = asymmetric(224, 0.08)
    assert (first.blur_p, first.solarize_p) == (1.0, 0.0)
    assert (second.blur_p, second.solarize_p) == (0.1, 0.2)
    assert first.scale == second.scale == (0.08, 1.0)
