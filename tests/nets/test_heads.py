"""Heads and decoders against slow rules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eyespot.errors import UserError
from eyespot.nets.decoders import MapDecoder, TokenDecoder
from eyespot.nets.heads import DinoHead, PixelShuffleDecoder, Prototypes, WeightNormLinear, conv_mlp, mlp


def kinds(head):
    return [type(m).__name__ for m in head]


def test_layers_of_an_mlp():
    assert kinds(mlp(4, 8, 6)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(mlp(4, 8, 6, last_norm=True)) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert kinds(mlp(4, 8, 6, norm=None, act="gelu")) == ["Linear", "GELU", "Linear"]
    assert kinds(mlp(4, 8, norm="layer", last_norm=True)) == ["Linear", "LayerNorm"]
    assert kinds(conv_mlp(4, 8, 6)) == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]


def test_biases():
    head = mlp(4, 8, 8, 6, last_norm="plain")
    assert [m.bias is None for m in head if isinstance(m, nn.Linear)] == [True, True, True]
    assert head[-1].weight is None
    assert mlp(4, 8, 6)[-1].bias is not None
    assert mlp(4, 8, 6, last_bias=False)[-1].bias is None
    assert mlp(4, 8, 6, norm="layer")[0].bias is not None
    assert all(m.bias is None for m in mlp(4, 8, 6, norm=None, bias=False) if isinstance(m, nn.Linear))


@pytest.mark.parametrize("norm", ["batch", "layer", None])
def test_conv_mlp_is_the_mlp_at_every_place(norm):
    dense = conv_mlp(4, 8, 6, norm=norm, last_norm=norm is not None).double()
    flat = mlp(4, 8, 6, norm=norm, last_norm=norm is not None).double()
    flat.load_state_dict({k: v.flatten(1) if v.dim() == 4 else v for k, v in dense.state_dict().items()})
    x = torch.rand(2, 4, 3, 5, dtype=torch.float64)
    places = flat(x.permute(0, 2, 3, 1).reshape(-1, 4)).view(2, 3, 5, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(dense(x), places)


def test_head_mistakes():
    for wrong in ({"norm": "group"}, {"act": "tanh"}):
        with pytest.raises(UserError, match="not known"):
            mlp(4, 8, 6, **wrong)
    with pytest.raises(UserError, match="two widths"):
        mlp(4)
    with pytest.raises(UserError, match="feature map"):
        PixelShuffleDecoder(4, 0)
    with pytest.raises(UserError, match="divisible"):
        MapDecoder(4, 2, 3, dim=6, depth=1, heads=4)


def test_dino_head_is_cosine_with_unit_prototypes():
    head = DinoHead(6, 9, hidden=8, bottleneck=4).double()
    x = torch.rand(2, 5, 6, dtype=torch.float64)
    out = head(x)
    assert out.shape == (2, 5, 9) and out.abs().max() <= 1 + 1e-9
    rows = F.normalize(head.last.weight, dim=1)
    torch.testing.assert_close(out[1, 3], rows @ F.normalize(head.mlp(x[1, 3]), dim=0))
    before = out.detach()
    with torch.no_grad():
        head.last.weight.mul_(3)  # the length of a row means nothing
    torch.testing.assert_close(head(x), before)
    assert kinds(DinoHead(6, 9, hidden=8, bottleneck=4, norm="batch").mlp)[1] == "BatchNorm1d"
    assert kinds(head.mlp) == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_prototypes_are_cosines():
    layer, x = Prototypes(3, 4), torch.rand(5, 3)
    expected = F.cosine_similarity(x[:, None], layer.weight[None], dim=-1)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(Prototypes(3, 4, normalize_input=False)(x).shape, torch.Size([5, 4]))
    assert WeightNormLinear(3, 4)(x).shape == (5, 4)


def test_pixel_shuffle_puts_channels_into_place():
    decoder = PixelShuffleDecoder(4, 2, channels=3).double()
    x = torch.rand(1, 4, 2, 3, dtype=torch.float64)
    out, flat = decoder(x), decoder[0](x)
    assert out.shape == (1, 3, 4, 6)
    for c, r, s in [(0, 0, 1), (2, 1, 0)]:
        torch.testing.assert_close(out[0, c, 2 + r, 4 + s], flat[0, c * 4 + r * 2 + s, 1, 2])
    torch.testing.assert_close(MapDecoder(4, 2, 3).double()(x).shape, out.shape)
    assert MapDecoder(4, 2, 3, dim=8, depth=1, heads=2)(x.float()).shape == (1, 3, 4, 6)


def decoder(depth=1):
    torch.manual_seed(0)
    return TokenDecoder(6, 5, grid=3, dim=8, depth=depth, heads=2, prefix=1).double()


def test_token_decoder_does_not_mind_the_order_of_visible_tokens():
    net = decoder()
    tokens = torch.rand(2, 1 + 4, 6, dtype=torch.float64)
    order = torch.stack([torch.randperm(9) for _ in range(2)])  # kept first
    out = net(tokens, order.argsort(1))
    swapped = order.clone()
    swapped[:, [0, 1, 2, 3]] = order[:, [2, 0, 3, 1]]
    torch.testing.assert_close(net(tokens[:, [0, 3, 1, 4, 2]], swapped.argsort(1)), out)
    assert out.shape == (2, 9, 5)


def test_token_decoder_places_tokens_masks_and_positions():
    net = decoder(depth=0)
    net.norm, net.head = nn.Identity(), nn.Identity()
    tokens = torch.rand(1, 1 + 2, 6, dtype=torch.float64)
    order = torch.tensor([[4, 1, 0, 2, 3, 5, 6, 7, 8]])
    out = net(tokens, order.argsort(1)) - net.positions[:, 1:]
    torch.testing.assert_close(out[0, 4], net.embed(tokens[0, 1]))
    torch.testing.assert_close(out[0, 1], net.embed(tokens[0, 2]))
    for hidden in (0, 2, 3, 5, 8):
        torch.testing.assert_close(out[0, hidden], net.mask_token[0, 0])


def test_token_decoder_at_another_shape():
    net = decoder()
    tokens = torch.rand(1, 1 + 2, 6, dtype=torch.float64)
    restore = torch.randperm(8)[None].argsort(1)
    assert net(tokens, restore, (2, 4)).shape == (1, 8, 5)
    assert "positions" not in net.state_dict()
