"""W-MSE: its loss from its parts, the blocks, and what cannot be whitened."""

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.whitening import w_mse, whiten
from eyespot.methods.image.w_mse import WMSE, WMSEConfig
from eyespot.nets.backbones import backbone


def build(name="resnet8", **settings):
    torch.manual_seed(0)
    return WMSE(backbone(name, image_size=32), WMSEConfig(**{"hidden": 32, "out": 4, **settings}))


def views(n=12, count=2):
    generator = torch.Generator().manual_seed(1)
    return {f"view{i + 1}": torch.rand(n, 3, 32, 32, generator=generator) for i in range(count)}


@pytest.mark.parametrize("name", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("count", [2, 4])
def test_one_block_is_the_distance_of_whitened_views(name, count):
    method = build(name, positives=count, shrinkage=1e-3)
    z = method.projector(torch.cat([method.backbone(v) for v in views(count=count).values()])).chunk(count)
    expected = w_mse([whiten(v, 1e-3) for v in z])
    torch.testing.assert_close(method(views(count=count))["w_mse"], expected)


def by_hand(method, z1, z2, order, cuts):
    """The loss [] of two views whose rows are whitened in the blocks that cut the order."""
    white = []
    for z in (z1, z2):
        rows = torch.empty_like(z)
        for block in order.split(cuts):
            rows[block] = whiten(z[block], method.config.shrinkage)
        white.append(rows)
    return w_mse(white)


def test_the_batch_is_cut_into_blocks_in_the_order_of_the_step():
    method, z = build(block=5), torch.randn(2, 17, 4, dtype=torch.float64)
    for step in (0, 3):
        draws = Draws(seed=1, step=step, index=range(17))
        expected = by_hand(method, *z, draws.permutation("partition0", 17), [6, 6, 5])
        torch.testing.assert_close(method.loss({"embedding": z}, draws)["w_mse"], expected)
    first, second = (method.loss({"embedding": z}, Draws(step=s, index=range(17)))["w_mse"] for s in (0, 1))
    assert first != second


def test_partitions_are_averaged():
    method, z = build(block=6, partitions=2), torch.randn(2, 12, 4, dtype=torch.float64)
    draws = Draws(index=range(12))
    each = [by_hand(method, *z, draws.permutation(f"partition{i}", 12), [6, 6]) for i in range(2)]
    assert each[0] != each[1]
    torch.testing.assert_close(method.loss({"embedding": z}, draws)["w_mse"], sum(each) / 2)


def test_the_length_of_embeddings_does_not_matter_and_independent_views_give_the_plateau():
    method, z = build(block=400, shrinkage=0.0), torch.randn(2, 400, 4, dtype=torch.float64)
    loss = method.loss({"embedding": z})["w_mse"]
    torch.testing.assert_close(method.loss({"embedding": 100 * z + 5})["w_mse"], loss)
    assert loss.item() == pytest.approx(method.plateau(400)["w_mse"], abs=0.2)


def test_views_of_a_picture():
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    made = build(positives=3).views({"image": images}, Draws(index=range(4)))
    assert list(made) == ["view1", "view2", "view3"]
    assert len({float(v.sum()) for v in made.values()}) == 3


def test_every_parameter_learns():
    method = build()
    method(views())["w_mse"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_equal_pictures_give_finite_gradients():
    method = build()
    same = torch.full((12, 3, 32, 32), 0.5)
    method({"view1": same, "view2": same})["w_mse"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_too_few_pictures_and_too_small_blocks_are_named():
    with pytest.raises(UserError, match=r"4 pictures cannot whiten 4 dimensions.*at least 8.*out=2"):
        build()(views(4))
    with pytest.raises(UserError, match=r"block=4 is too small for out=4"):
        build(block=4)
