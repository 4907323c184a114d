"""MAE: what its sheet says must hold."""

import pytest
import torch

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.masked import normalise_patches, patchify
from eyespot.methods.image.mae import MAE, MAEConfig, decoder_shape
from eyespot.nets.backbones import backbone


def method(**config):
    torch.manual_seed(0)
    net = backbone(config.pop("net", "vit_nano"), image_size=32, channels=config.pop("channels", 3))
    return MAE(net, MAEConfig(**config))


def pixels(n=4, channels=3):
    return torch.rand(n, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def test_plain_use_and_gradients_everywhere():
    mae = method()
    terms = mae({"image": pixels()})
    assert list(terms) == ["pixels"] and terms["pixels"].dim() == 0
    terms["pixels"].backward()
    assert [n for n, p in mae.named_parameters() if p.requires_grad and p.grad is None] == []


def test_views_are_crops_and_mirrors_of_the_asked_size():
    mae = method()
    batch = {"image": torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8), "index": torch.arange(4)}
    views = mae.views(batch, Draws(index=range(4)))
    assert views["image"].shape == (4, 3, 32, 32)
    assert views["image"].min() >= 0 and views["image"].max() <= 1


def test_encoder_sees_a_quarter_and_the_loss_reads_only_the_rest():
    mae = method(norm_pix=False).double()
    seen, predicted = [], []
    mae.backbone.net.blocks[0].register_forward_hook(lambda m, i, o: seen.append(i[0].shape[1]))
    mae.decoder.register_forward_hook(lambda m, i, o: predicted.append((o, i[1])))
    x = pixels().double()
    loss = mae({"image": x}, Draws(index=range(4)))["pixels"]
    assert seen == [1 + 16], "64 patches, 16 kept, and the class token"
    out, restore = predicted[0]
    removed = restore >= 16
    assert removed.sum(1).tolist() == [48] * 4
    target = patchify(mae.backbone.normalize(x), mae.backbone.patch)
    torch.testing.assert_close(loss, (out - target)[removed].square().mean())


def test_removed_patches_cannot_be_seen():
    mae = method().double().eval()
    out = []
    mae.decoder.register_forward_hook(lambda m, i, o: out.append((o, i[1])))
    x = pixels(1).double()
    draws = Draws(index=[3])
    mae({"image": x}, draws)
    removed = (out[0][1] >= 16)[0].view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    mae({"image": torch.where(removed, 1 - x, x)}, draws)
    torch.testing.assert_close(out[1][0], out[0][0])


def test_masks_follow_the_draws():
    mae = method().double().eval()
    x = pixels().double()

    def loss(**draws):
        return mae({"image": x}, Draws(index=range(4), **draws))["pixels"]

    assert loss(epoch=1) == loss(epoch=1) and loss(epoch=1) != loss(epoch=2)
    whole = loss(epoch=1)
    halves = [mae({"image": x[i : i + 2]}, Draws(index=[i, i + 1], epoch=1))["pixels"] for i in (0, 2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_plateau_is_what_a_constant_prediction_costs():
    mae = method().double()
    mae.decoder.head.weight.data.zero_()
    mae.decoder.head.bias.data.zero_()
    loss = mae({"image": pixels(16).double()})["pixels"]
    assert float(loss.detach()) == pytest.approx(mae.plateau(16)["pixels"], abs=1e-3)
    target = normalise_patches(patchify(pixels().double(), 4))
    assert float(target.square().mean()) == pytest.approx(1 - 1 / 48, abs=1e-3)
    assert method(norm_pix=False).plateau(16) == {}


@pytest.mark.parametrize(("net", "channels"), [("vit_nano", 1), ("test_vit", 5), ("vit_tiny_patch16_224", 3)])
def test_other_nets_channels_and_decoders(net, channels):
    mae = method(net=net, channels=channels, decoder_depth=1, decoder_dim=16, decoder_heads=2, mask_ratio=0.5)
    mae({"image": pixels(2, channels)})["pixels"].backward()
    assert mae.embed(pixels(2, channels)).shape == (2, mae.backbone.embed_dim)
    assert mae.dense(pixels(2, channels)).shape[1] == mae.backbone.embed_dim


def test_decoder_defaults_are_the_papers_at_its_sizes():
    config = MAEConfig()
    assert decoder_shape(config, 768, 12) == decoder_shape(config, 1024, 24) == (512, 8, 16)
    assert decoder_shape(config, 128, 4) == (64, 2, 2)
    assert decoder_shape(MAEConfig(decoder_dim=96, decoder_depth=3, decoder_heads=4), 768, 12) == (96, 3, 4)
    mae = method()
    assert (mae.decoder.dim, len(mae.decoder.blocks), mae.decoder.blocks[0].attn.num_heads) == (32, 2, 1)


def test_pooling_is_the_mean_unless_asked():
    mae, native = method(), method(pooling="native")
    x = pixels(2)
    torch.testing.assert_close(mae.embed(x), mae.backbone.tokens(x)[:, 1:].mean(1))
    torch.testing.assert_close(native.embed(x), native.backbone.tokens(x)[:, 0])


def test_a_net_that_norms_after_pooling_trains_all_it_has():
    net = backbone("vit_tiny_patch16_224", image_size=32, global_pool="avg", class_token=False, depth=1)
    mae = MAE(net, MAEConfig(mask_ratio=0.5, decoder_depth=1))
    mae({"image": pixels(2)})["pixels"].backward()
    assert [n for n, p in mae.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: MAE(backbone("resnet8", image_size=32)), "needs a vision transformer .* not 'resnet8'"),
        (lambda: method(mask_ratio=1.0), "mask_ratio=1.0 leaves none or all"),
        (lambda: method(mask_ratio=0.0), "mask_ratio=0.0"),
        (lambda: method(mask_ratio=0.99), "mask_ratio=0.99 leaves none or all of 64 patches"),
        (lambda: method(decoder_depth=0), "decoder_depth=0 is out of range"),
        (lambda: method(decoder_dim=18, decoder_heads=4), "width of 18|width 18"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_learns():
    mae = method(decoder_depth=1)
    x = pixels(8).mean((2, 3), keepdim=True) * torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(8, 3, 32, 32)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=2e-3)
    losses = []
    for step in range(25):
        loss = mae({"image": x}, Draws(index=range(8), epoch=step))["pixels"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
