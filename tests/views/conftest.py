"""Pictures for the tests of views."""

import pytest
import torch


def make_pictures(batch=6, channels=3, height=32, width=40, dtype=torch.uint8, seed=0):
    """Noise with structure at two scales."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, max(1, height // 5), max(1, width // 5), generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    x = (0.7 * x + 0.3 * torch.rand(batch, channels, height, width, generator=generator)).clamp(0, 1)
    return (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


@pytest.fixture
def pictures():
    """`make_pictures`."""
    return make_pictures
