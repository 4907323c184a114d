"""APC: the loss, causality, learning to predict, one run from the command line's function."""

import numpy as np
import pytest
import torch

import eyespot
from eyespot.draws import Draws
from eyespot.errors import UserError
from eyespot.losses.speech import apc
from eyespot.methods.audio.apc import APC, APCConfig
from eyespot.nets.audio import RATE
from eyespot.nets.backbones import backbone, load_backbone, save_backbone
from eyespot.views.spectrogram import samples_of

FRAMES = 40


def build(name="gru_micro", **settings):
    torch.manual_seed(0)
    net = backbone(name, channels=1, image_size=FRAMES, bands=20, **({"width": 16} if name.startswith("gru") else {}))
    return APC(net, APCConfig(image_size=FRAMES, **settings))


def waves(n=4, seed=0):
    return 0.1 * torch.randn(n, samples_of(FRAMES, RATE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
def test_the_loss_agrees_with_recorded_numbers(golden):
    recorded, params = golden("speech_review__objectives")
    prediction, frames = (torch.from_numpy(recorded[k]) for k in ("apc_pred", "apc_input"))
    found = apc(prediction, frames, params["apc_shift"])
    torch.testing.assert_close(found, torch.from_numpy(recorded["apc_l1_shift3"]), rtol=1e-4, atol=1e-6)


def test_the_loss_is_a_slow_loop_and_zero_for_what_repeats():
    generator = torch.Generator().manual_seed(1)
    y, x = (torch.randn(2, 9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    slow = [abs(x[b, t + 2, d] - y[b, t, d]) for b in range(2) for t in range(7) for d in range(3)]
    assert apc(y, x, 2) == pytest.approx(float(sum(slow) / len(slow)))
    periodic = torch.randn(1, 4, 5, generator=generator).repeat(1, 3, 1)
    assert float(apc(periodic, periodic, 4)) == 0 < float(apc(periodic, periodic, 3))
    with pytest.raises(ValueError, match="9 frames ahead"):
        apc(y, x, 9)


@pytest.mark.parametrize("name", ["gru_micro", "gru_base"])
def test_nothing_looks_ahead(name):
    method = build(name).eval()
    wave = waves(1)
    changed = wave.clone()
    changed[:, samples_of(25, RATE) :] = 0.3  # later than frame 25
    with torch.no_grad():
        one, two = (method.backbone.features(w) for w in (wave, changed))
    assert torch.equal(one[:, :25], two[:, :25]) and not torch.equal(one[:, 30:], two[:, 30:])


def test_features_do_not_depend_on_the_batch_and_come_back(tmp_path):
    net = build().backbone.eval()
    wave = waves()
    with torch.no_grad():
        whole = net(wave)
        assert torch.allclose(whole[2:3], net(wave[2:3]), atol=1e-5)
        assert net.forward_dense(wave).shape == (4, 16, FRAMES, 1)
        save_backbone(net, tmp_path)
        assert torch.equal(load_backbone(tmp_path).eval()(wave), whole)
        statistics = backbone("log_mel", channels=1, image_size=FRAMES)(wave)
    assert whole.shape == (4, 16) and statistics.shape == (4, 160)


def test_views_belong_to_the_sample():
    method = build(gain=1.0)
    batch = {"audio": waves()}
    whole = method.views(batch, Draws(0, index=range(4)))["audio"]
    single = method.views({"audio": batch["audio"][2:3]}, Draws(0, index=[2]))["audio"]
    assert torch.equal(whole[2:3], single) and not torch.equal(whole, batch["audio"])
    assert torch.equal(build().views(batch, Draws(0, index=range(4)))["audio"], batch["audio"])
    plans = [method.read({}, Draws(0, 1, 0, [i])) for i in range(50)]
    assert len({p["start"] for p in plans}) == 50 and plans[0]["samples"] == samples_of(FRAMES, RATE)


def test_learns_to_predict_a_tone_that_rises():
    method = build(ahead=5)
    times = torch.arange(samples_of(FRAMES, RATE)) / RATE
    start = torch.linspace(200, 1000, 8)[:, None]
    sweeps = 0.3 * torch.sin(2 * torch.pi * (start * times + 2000 * times.square()))
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        loss = method({"audio": sweeps})["apc"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    copied = float(apc(method.backbone.spectrogram(sweeps), method.backbone.spectrogram(sweeps), 5))
    assert losses[-1] < 0.5 * losses[0] and losses[-1] < 0.8 * copied  # better than saying that nothing changes


@pytest.mark.parametrize("settings, sentence", [({"ahead": 40}, "not within 40 frames"), ({"ahead": 0}, "ahead=0")])
def test_wrong_settings_get_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(**settings)
    with pytest.raises(UserError, match="takes pictures"):
        APC(backbone("resnet8", image_size=32))


def test_a_run_from_a_folder(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs eyespot[audio]")
    for k in range(24):
        folder = tmp_path / "data" / ("low" if k % 2 else "high")
        folder.mkdir(parents=True, exist_ok=True)
        hertz = 300 + 10 * k if k % 2 else 2000 + 50 * k
        soundfile.write(folder / f"{k:02d}.wav", 0.4 * np.sin(2 * np.pi * hertz * np.arange(8000) / 16000), 16000)
    run = eyespot.pretrain("apc", data=tmp_path / "data", out=tmp_path / "run", epochs=2, batch_size=8, workers=0)
    assert run.config["image_size"] == 48 and run.config["backbone"]["name"] == "gru_micro"
    assert (tmp_path / "run" / "pictures" / "spectrograms.png").is_file()
    result = eyespot.evaluate(run, data=tmp_path / "data", workers=0)
    assert result["top1"] == 100 and result["classes"] == 2
    told = eyespot.embed(run, data=tmp_path / "data", out=tmp_path / "vectors.parquet", workers=0)
    assert told["rows"] == 24 and told["embed_dim"] == 128
