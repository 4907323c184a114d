"""I-JEPA's predictor: shapes, positions, and blocks that do not see each other."""

import pytest
import torch

from eyespot.errors import UserError
from eyespot.nets.decoders import BlockPredictor


def predictor(grid=4, **options):
    torch.manual_seed(0)
    return BlockPredictor(12, grid, **({"dim": 16, "depth": 2, "heads": 2} | options)).double().eval()


def inputs(b=3, length=5, blocks=2, n=4, places=16):
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(places) for _ in range(b)])
    targets = torch.stack([order[:, length + i : length + i + n] for i in range(blocks)], 1)
    return torch.randn(b, length, 12).double(), order[:, :length], targets


def test_shapes_and_gradients_everywhere():
    net = predictor().train()
    out = net(*inputs())
    assert out.shape == (3, 2, 4, 12)
    out.square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_blocks_are_predicted_one_apart_from_the_other():
    net, (tokens, keep, targets) = predictor(), inputs()
    whole = net(tokens, keep, targets)
    for i in range(2):
        torch.testing.assert_close(net(tokens, keep, targets[:, i : i + 1])[:, 0], whole[:, i])
    torch.testing.assert_close(net(tokens, keep, targets.flip(1)), whole.flip(1))


def test_positions_count_on_both_sides_and_order_does_not():
    net, (tokens, keep, targets) = predictor(), inputs()
    whole = net(tokens, keep, targets)
    torch.testing.assert_close(net(tokens.flip(1), keep.flip(1), targets), whole)
    torch.testing.assert_close(net(tokens, keep, targets.flip(2)), whole.flip(2))
    for moved in ((tokens, keep.flip(1), targets), (tokens, keep, (targets + 1) % 16)):
        assert (net(*moved) - whole).abs().max() > 1e-3


def test_every_sample_for_itself():
    net, (tokens, keep, targets) = predictor(), inputs()
    torch.testing.assert_close(net(tokens[1:2], keep[1:2], targets[1:2])[0], net(tokens, keep, targets)[1])


def test_other_grids():
    net = predictor(grid=4)
    tokens, keep, targets = inputs(places=12)
    assert net(tokens, keep, targets[:, :, :2], (3, 4)).shape == (3, 2, 2, 12)
    torch.testing.assert_close(net(tokens, keep, targets, (4, 4)), net(tokens, keep, targets))


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="width 18"):
        predictor(dim=18, heads=4)
