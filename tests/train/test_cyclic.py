"""The cyclic rate."""

import numpy as np
import pytest

from eyespot.train.cyclic import cyclic_factor


@pytest.mark.golden
def test_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("grounded_sentences__cyclic_lr")
    low = p["min_lr"] / p["max_lr"]
    found = [1e6 * p["max_lr"] * cyclic_factor(int(i), p["period_iterations"], low) for i in arrays["iteration"]]
    np.testing.assert_allclose(found, arrays["lr_x1e6"], rtol=1e-5)


def test_begins_and_ends_low_and_is_whole_halfway():
    assert [cyclic_factor(s, 40, 0.1) for s in (0, 20, 40, 60)] == pytest.approx([0.1, 1, 0.1, 1])
