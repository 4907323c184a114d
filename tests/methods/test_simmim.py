"""SimMIM: what its sheet says must hold."""

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.masked import simmim_loss
from eyespot.methods.image.simmim import SimMIM, SimMIMConfig, mask_unit
from eyespot.nets.backbones import backbone


def method(size=32, **config):
    torch.manual_seed(0)
    net = backbone(config.pop("net", "vit_nano"), image_size=size, channels=config.pop("channels", 3))
    return SimMIM(net, SimMIMConfig(image_size=size, **config))


def pixels(n=4, channels=3, size=32):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def seen_mask(simmim, x, draws=None):
    """The mask that the encoder gets, and the reconstruction."""
    masks, rebuilt, tokens = [], [], simmim.backbone.tokens
    simmim.backbone.tokens = lambda x, replace: (masks.append(replace[0]), tokens(x, replace=replace))[1]
    handle = simmim.decoder.register_forward_hook(lambda m, i, o: rebuilt.append(o))
    loss = simmim({"image": x}, draws)["pixels"]
    handle.remove()
    simmim.backbone.tokens = tokens
    return masks[0], rebuilt[0], loss


def test_plain_use_and_gradients_everywhere():
    simmim = method()
    terms = simmim({"image": pixels()})
    assert list(terms) == ["pixels"] and terms["pixels"].dim() == 0
    terms["pixels"].backward()
    assert [n for n, p in simmim.named_parameters() if p.requires_grad and p.grad is None] == []
    assert simmim.mask_token.grad.abs().sum() > 0


def test_views_are_crops_and_mirrors_of_the_asked_size():
    batch = {"image": torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8)}
    views = method().views(batch, Draws(index=range(4)))
    assert views["image"].shape == (4, 3, 32, 32)
    assert views["image"].min() >= 0 and views["image"].max() <= 1


def test_all_tokens_enter_and_whole_squares_are_hidden():
    simmim, tokens = method().double(), []
    simmim.backbone.net.blocks[0].register_forward_hook(lambda m, i, o: tokens.append(i[0].shape[1]))
    x = pixels().double()
    mask, rebuilt, loss = seen_mask(simmim, x)
    assert tokens == [1 + 64] and rebuilt.shape == x.shape
    squares = mask.view(4, 4, 2, 4, 2).transpose(2, 3).reshape(4, 16, 4)
    assert (squares.all(2) == squares.any(2)).all() and squares.all(2).sum(1).tolist() == [10] * 4  # ceil(0.6 * 16)
    expected = simmim_loss(rebuilt, simmim.backbone.normalize(x), mask.view(4, 8, 8), 4)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_hidden_pixels_cannot_be_seen_but_count():
    simmim = method().double().eval()
    x, draws = pixels(1).double(), Draws(index=[3])
    mask, rebuilt, loss = seen_mask(simmim, x, draws)
    hidden = mask.view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    _, again, other = seen_mask(simmim, torch.where(hidden, 1 - x, x), draws)
    torch.testing.assert_close(again, rebuilt)
    assert abs(other - loss) > 1e-5
    _, changed, _ = seen_mask(simmim, torch.where(hidden, x, 1 - x), draws)
    assert (changed - rebuilt).abs().max() > 1e-3


def test_masks_follow_the_draws_and_parts_average_to_the_whole():
    simmim = method().double().eval()
    x = pixels().double()

    def loss(rows=range(4), epoch=1):
        return simmim({"image": x[list(rows)]}, Draws(index=list(rows), epoch=epoch))["pixels"]

    assert loss() == loss() and loss() != loss(epoch=2)
    torch.testing.assert_close((loss([0, 1]) + loss([2, 3])) / 2, loss(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("size", "patch", "unit"), [(224, 16, 32), (192, 4, 32), (32, 4, 8), (16, 4, 4), (96, 8, 16), (160, 20, 40)]
)
def test_the_usual_square(size, patch, unit):
    assert mask_unit(size, patch) == unit


def test_192_px_is_six_squares_a_side():
    simmim = method(size=192)
    mask, rebuilt, _ = seen_mask(simmim, pixels(1, size=192))
    assert mask.sum() == 22 * (32 // simmim.backbone.patch) ** 2 and rebuilt.shape[-1] == 192


@pytest.mark.parametrize(("net", "channels"), [("vit_nano", 1), ("test_vit", 5), ("vit_tiny_patch16_224", 3)])
def test_other_nets_and_channels(net, channels):
    simmim = method(net=net, channels=channels, mask_ratio=0.5)
    simmim({"image": pixels(2, channels)})["pixels"].backward()
    assert [n for n, p in simmim.named_parameters() if p.requires_grad and p.grad is None] == []
    assert simmim.embed(pixels(2, channels)).shape == (2, simmim.backbone.embed_dim)


def test_pooling_is_the_mean_unless_asked():
    simmim, native, x = method(), method(pooling="native"), pixels(2)
    torch.testing.assert_close(simmim.embed(x), simmim.backbone.tokens(x)[:, 1:].mean(1))
    torch.testing.assert_close(native.embed(x), native.backbone.tokens(x)[:, 0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: SimMIM(backbone("resnet8", image_size=32)), "needs a vision transformer .* not 'resnet8'"),
        (lambda: method(mask_ratio=1.0), "mask_ratio=1.0 hides none or all of 16 squares"),
        (lambda: method(mask_ratio=0.0), "mask_ratio=0.0"),
        (lambda: method(mask_ratio=0.99), "hides none or all"),
        (lambda: method(mask_unit=6), "mask_unit=6 must divide the picture's 32 px"),
        (lambda: method(mask_unit=12), "mask_unit=12"),
        (lambda: method(crop_min=0.0), "crop_min=0.0 is out of range"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
