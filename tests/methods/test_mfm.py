"""MFM: what its sheet says must hold, for its own task and the three others."""

import pytest
import torch
import torch.nn.functional as F

from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.frequency import focal_weight, keep_frequencies, spectral_distance, spectrum
from eyespot.methods.image.mfm import MFM, MFMConfig, blur, lower_resolution
from eyespot.nets.backbones import backbone
from eyespot.views.masks import frequency_mask

TASKS = ["mfm", "sr", "deblur", "denoise"]


def method(net="resnet8", size=32, channels=3, **config):
    torch.manual_seed(0)
    options = {"width": 8} if net == "resnet8" else {}
    return MFM(backbone(net, image_size=size, channels=channels, **options), MFMConfig(image_size=size, **config))


def pixels(n=4, channels=3, size=32):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("net", ["resnet8", "vit_nano"])
@pytest.mark.parametrize("task", TASKS)
def test_plain_use_and_gradients_everywhere(net, task):
    mfm = method(net, task=task)
    terms = mfm({"image": pixels()})
    assert list(terms) == ["frequency"]
    terms["frequency"].backward()
    assert [n for n, p in mfm.named_parameters() if p.requires_grad and p.grad is None] == []
    assert mfm.embed(pixels(2)).shape == (2, mfm.backbone.embed_dim)


def test_views_are_crops_of_the_asked_size():
    batch = {"image": torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8), "index": torch.arange(4)}
    views = method().views(batch, Draws(index=range(4)))
    assert views["image"].shape == (4, 3, 32, 32)
    assert views["image"].min() >= 0 and views["image"].max() <= 1


class Wanted(torch.nn.Module):
    """A decoder that gives a fixed picture."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, features):
        return self.out


def test_loss_is_the_mean_over_removed_frequencies_of_the_batch():
    mfm = method(radius=5.0, low_pass=0.5, gamma=1.5).double()
    x, rebuilt = pixels().double(), torch.randn(4, 3, 32, 32).double()
    mfm.decoder = Wanted(rebuilt)
    draws = Draws(index=range(2, 6))
    loss = mfm({"image": x}, draws)["frequency"]
    low = draws.coin("low_pass", 0.5)
    assert 0 < int(low.sum()) < 4, "the test needs both kinds"
    total, count = 0.0, 0
    target = mfm.backbone.normalize(x)
    for n in range(4):
        removed = frequency_mask(32, 5.0, 999, low[n : n + 1])[0, 0] == 0
        gap = torch.fft.fftshift(torch.fft.fft2(rebuilt[n] - target[n], norm="ortho"), dim=(-2, -1))
        d = (gap.abs().square() + 1e-12).sqrt() ** 1.5
        total, count = total + float(d[:, removed].sum()), count + int(removed.sum())
    assert float(loss) == pytest.approx(total / (3 * count))
    with torch.no_grad():
        seen = mfm.backbone.normalize(keep_frequencies(x, frequency_mask(32, 5.0, 999, low)))
        torch.testing.assert_close(mfm.watch["identity"], mfm._loss(seen, target, frequency_mask(32, 5.0, 999, low)))


def test_a_perfect_prediction_costs_a_millionth():
    mfm = method().double()
    x = pixels().double()
    mfm.decoder = Wanted(mfm.backbone.normalize(x))
    assert float(mfm({"image": x})["frequency"]) == pytest.approx(1e-6)


def test_kept_frequencies_do_not_count():
    mfm = method(low_pass=1.0).double()
    x = pixels().double()
    target = mfm.backbone.normalize(x)
    mask = frequency_mask(32, 4, 999, torch.ones(4, dtype=torch.bool))
    noise = keep_frequencies(torch.randn(4, 3, 32, 32).double(), mask, clamp=False)
    mfm.decoder = Wanted(target + noise)
    assert float(mfm({"image": x})["frequency"]) == pytest.approx(1e-6, rel=1e-3)


def test_encoder_sees_the_clamped_part_on_plain_pixels():
    mfm = method(low_pass=0.0)
    seen = []
    mfm.backbone.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    mfm.backbone.forward_dense = lambda x: (seen.append(x), type(mfm.backbone).forward_dense(mfm.backbone, x))[1]
    x = pixels()
    mfm({"image": x})
    high = frequency_mask(32, 4, 999, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(seen[-1], keep_frequencies(x, high))
    assert seen[-1].min() == 0


def test_defaults_follow_net_and_size():
    assert method("resnet8").low_pass == 0.3 and method("vit_nano").low_pass == 0.5
    draws = Draws(index=range(2))
    for size, radius in ((32, 4), (224, 16)):
        mfm = method(size=size, low_pass=1.0)
        mask = mfm.corrupt(pixels(2, size=size), draws)[1]
        assert mask.shape == (2, 1, size, size)
        assert torch.equal(mask, frequency_mask(size, radius, 999, torch.ones(2, dtype=torch.bool)))
    outer = method(radius=3.0, outer_radius=10.0, low_pass=1.0).corrupt(pixels(2), draws)[1]
    assert torch.equal(outer, frequency_mask(32, 3, 10, torch.ones(2, dtype=torch.bool)))


def test_masks_follow_the_draws_and_their_probability():
    mfm = method(low_pass=0.3)
    mask = mfm.corrupt(pixels(1).expand(4000, -1, -1, -1)[:, :, :8, :8], Draws(index=range(4000)))[1]
    assert abs(float(mask[:, 0, 4, 4].mean()) - 0.3) < 0.03
    x = pixels(2)
    again = [mfm.corrupt(x, Draws(index=[5, 6], epoch=1))[0] for _ in range(2)]
    torch.testing.assert_close(again[0], again[1])


def test_one_batch_is_the_weighted_mean_of_its_halves():
    mfm = method("vit_nano").double().eval()
    x, draws = pixels(8).double(), Draws(index=range(8))
    whole = mfm({"image": x}, draws)["frequency"]
    parts, counts = [], []
    for rows in (slice(0, 4), slice(4, 8)):
        part = draws.rows(rows.start, rows.stop)
        parts.append(mfm({"image": x[rows]}, part)["frequency"])
        counts.append((mfm.corrupt(x[rows], part)[1] == 0).sum())
    assert counts[0] != counts[1], "the test needs unequal counts"
    torch.testing.assert_close(whole, sum(p * c for p, c in zip(parts, counts, strict=True)) / sum(counts))


def test_running_statistics_are_those_of_clean_pictures():
    mfm, clean = method().double().train(), method().double().train()
    x = pixels(8).double()
    mfm({"image": x}, Draws(index=range(8), step=8))
    with torch.no_grad():
        clean.backbone.forward_dense(x)
    before = dict(mfm.backbone.named_buffers())
    for name, buffer in clean.backbone.named_buffers():
        if "running" in name:
            torch.testing.assert_close(before[name], buffer)
    kept = mfm.backbone.net.bn.running_mean.clone()
    mfm({"image": x}, Draws(index=range(8), step=9))
    torch.testing.assert_close(mfm.backbone.net.bn.running_mean, kept)
    assert mfm.backbone.net.bn.momentum == 0.1


# --- the other tasks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["sr", "deblur", "denoise"])
def test_restoration_counts_all_frequencies(task):
    mfm = method(task=task, gamma=2.0).double()
    x, rebuilt = pixels().double(), torch.randn(4, 3, 32, 32).double()
    mfm.decoder = Wanted(rebuilt)
    loss = mfm({"image": x})["frequency"]
    torch.testing.assert_close(loss, (rebuilt - mfm.backbone.normalize(x)).square().mean())  # Parseval
    seen, mask = mfm.corrupt(x, Draws(index=range(4)))
    assert mask is None and seen.shape == x.shape and seen.min() >= 0 and seen.max() <= 1
    assert (seen - x).abs().mean() > 0.05


def test_lower_resolution():
    x = pixels(2, size=33)
    assert lower_resolution(x, 4).shape == x.shape
    flat = torch.full((1, 3, 32, 32), 0.4)
    torch.testing.assert_close(lower_resolution(flat, 8), flat)
    torch.testing.assert_close(lower_resolution(x, 1), x)
    smooth = torch.linspace(0.2, 0.8, 32).expand(1, 3, 32, 32).contiguous()
    assert (lower_resolution(smooth, 4) - smooth).abs().max() < 0.05
    assert method(task="sr").config.sr_factor is None


def test_blur_against_a_dense_kernel():
    x = pixels(3, size=24).double()
    radius = torch.tensor([3, 10, 5])
    out = blur(x, radius, 10, 5.0)
    for n, r in enumerate(radius.tolist()):
        line = torch.exp(-(torch.arange(-r, r + 1).double() ** 2) / 50)
        kernel = torch.outer(line, line) / line.sum() ** 2
        padded = F.pad(x[n : n + 1], (r,) * 4, mode="reflect").transpose(0, 1)
        expected = F.conv2d(padded, kernel[None, None]).transpose(0, 1)
        torch.testing.assert_close(out[n : n + 1], expected)
    assert blur(x[..., :4, :4], radius, 10, 5.0).shape == (3, 3, 4, 4), "a mirror reaches no further than the picture"


def test_kernel_sides_are_drawn_among_the_odd_numbers():
    mfm = method(task="deblur", blur_kernel=(1, 5))
    draws = Draws(index=range(300))
    x = torch.zeros(300, 1, 9, 9)
    x[:, :, 4, 4] = 1
    width = (mfm.corrupt(x, draws)[0][:, 0, 4] > 0).sum(1)
    assert sorted(set(width.tolist())) == [1, 3, 5]
    assert method(task="deblur").config.blur_kernel == (7, 21)


def test_noise():
    mfm = method(task="denoise")
    x = torch.full((4, 3, 32, 32), 0.5)
    seen, _ = mfm.corrupt(x, Draws(index=range(4)))
    inside = (seen > 0) & (seen < 1)
    assert 0.85 < float(inside.float().mean()) < 0.95, "1.7 sigma of the noise fit"
    small = method(task="denoise", noise_sigma=10.0).corrupt(x, Draws(index=range(4)))[0]
    assert float((small - x).std()) == pytest.approx(10 / 255, rel=0.05)


# --- options ---------------------------------------------------------------------------------------------------------
def test_focal_weights_enter():
    plain, focal = (method(focal=f, focal_alpha=1.5).double() for f in (False, True))
    x, rebuilt = pixels().double(), torch.randn(4, 3, 32, 32).double()
    plain.decoder = focal.decoder = Wanted(rebuilt)
    a, b = spectrum(rebuilt), spectrum(plain.backbone.normalize(x))
    removed = (plain.corrupt(x, Draws(index=range(4)))[1] == 0).expand(-1, 3, -1, -1)
    d = spectral_distance(a, b)
    torch.testing.assert_close(plain({"image": x})["frequency"], d[removed].mean())
    torch.testing.assert_close(focal({"image": x})["frequency"], (d * focal_weight(a, b, 1.5))[removed].mean())


def test_patch_factor_and_average_spectrum():
    x, rebuilt = pixels().double(), torch.randn(4, 3, 32, 32).double()
    cut = method(count="all", patch_factor=4, gamma=2.0).double()
    cut.decoder = Wanted(rebuilt)
    target = cut.backbone.normalize(x)
    torch.testing.assert_close(cut({"image": x})["frequency"], (rebuilt - target).square().mean())
    mean = method(count="all", average_spectrum=True, gamma=2.0).double()
    mean.decoder = Wanted(rebuilt)
    torch.testing.assert_close(mean({"image": x})["frequency"], (rebuilt - target).mean(0).square().mean())


def test_deeper_decoder_and_odd_sizes():
    deep = method("vit_nano", decoder_depth=1, decoder_dim=16, decoder_heads=2)
    deep({"image": pixels(2)})["frequency"].backward()
    assert len(deep.decoder.blocks) == 1
    odd = method(size=36)  # stride 8: the decoder gives 40 pixels
    assert torch.isfinite(odd({"image": pixels(2, size=36)})["frequency"])
    many = method(channels=5)
    assert torch.isfinite(many({"image": pixels(2, channels=5)})["frequency"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: method(patch_factor=2), "patch_factor and average_spectrum .* set count to all"),
        (lambda: method(average_spectrum=True), "set count to all"),
        (lambda: method(task="sr", count="removed"), "no meaning for task=sr"),
        (lambda: method(low_pass=1.5), "low_pass=1.5 is out of range"),
        (lambda: method(blur_kernel=(9, 5)), r"blur_kernel=\(9, 5\)"),
        (lambda: method(gamma=0.0), "gamma=0.0"),
        (lambda: MFM(backbone(torch.nn.Flatten(), image_size=8)), "needs a feature map"),
    ],
)
def test_mistakes(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_stays_finite_in_mixed_precision():
    mfm = method()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mfm({"image": pixels()})["frequency"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in mfm.parameters() if p.grad is not None)


@pytest.mark.parametrize("net", ["resnet8", "vit_nano"])
def test_learns(net):
    mfm = method(net, low_pass=1.0)
    place = torch.arange(4, 28, 3)[:, None, None, None]  # edges: what is left shows where, not how sharp
    x = (torch.arange(32) < place).float().expand(8, 3, 32, 32)
    optimizer = torch.optim.AdamW(mfm.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        loss = mfm({"image": x}, Draws(index=range(8), epoch=step))["frequency"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
