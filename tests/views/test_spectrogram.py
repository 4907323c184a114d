"""Log-mel spectrograms against Kaldi's recorded numbers and a slow loop."""

import numpy as np
import pytest
import torch

from eyespot.views.spectrogram import filters, frames_in, log_mel, samples_of


@pytest.mark.golden
def test_agrees_with_recorded_numbers(golden):
    recorded, params = golden("speech_review__kaldi_fbank")
    found = log_mel(torch.from_numpy(recorded["waveform"]), params["sample_rate"], params["mel_bins"])
    torch.testing.assert_close(found, torch.from_numpy(recorded["fbank"]), atol=1e-3, rtol=0)
    normalised = (found + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(normalised, torch.from_numpy(recorded["normalised"]), atol=1e-3, rtol=0)


def slow(wave, rate, mels):
    length, shift, size = int(0.025 * rate), int(0.01 * rate), 512
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(rate / 2), mels + 2)
    rows = []
    for start in range(0, len(wave) - length + 1, shift):
        frame = wave[start : start + length] - wave[start : start + length].mean()
        frame = np.array([frame[k] - 0.97 * frame[max(k - 1, 0)] for k in range(length)])
        frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1)))
        power = np.abs(np.fft.rfft(frame, size)) ** 2
        row = []
        for k in range(mels):
            total = 0.0
            for b in range(size // 2):
                at = mel(b * rate / size)
                rise, fall = (
                    (at - edges[k]) / (edges[k + 1] - edges[k]),
                    (edges[k + 2] - at) / (edges[k + 2] - edges[k + 1]),
                )
                total += max(0.0, min(rise, fall)) * power[b]
            row.append(np.log(max(total, np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


def test_agrees_with_a_slow_loop():
    wave = np.random.default_rng(0).normal(size=1200)
    found = log_mel(torch.from_numpy(wave), 16000, 20)
    np.testing.assert_allclose(found.numpy(), slow(wave, 16000, 20), atol=1e-6)


def test_a_batch_is_its_rows_and_a_tone_is_in_its_band():
    times = torch.arange(8000) / 16000
    waves = torch.stack([torch.sin(2 * torch.pi * f * times) for f in (300.0, 1000.0, 4000.0)])
    found = log_mel(waves, 16000, 40)
    assert found.shape == (3, 48, 40) and torch.allclose(found[1], log_mel(waves[1], 16000, 40), atol=1e-4)
    loudest = found.mean(1).argmax(1)
    centres = filters(512, 16000, 40).argmax(0) * 16000 / 512
    assert (centres[loudest] - torch.tensor([300.0, 1000.0, 4000.0])).abs().max() < 150


def test_frames_and_samples_fit():
    for frames in (1, 2, 98):
        assert (
            frames_in(samples_of(frames, 16000), 16000) == frames == frames_in(samples_of(frames, 16000) + 159, 16000)
        )
    assert frames_in(16000, 16000) == 98 and frames_in(399, 16000) == 0
    with pytest.raises(ValueError, match="less than a frame"):
        log_mel(torch.zeros(399), 16000, 20)


def test_silence_is_finite_and_gradients_too():
    wave = torch.zeros(2, 1600, requires_grad=True)
    found = log_mel(wave, 16000, 20)
    found.sum().backward()
    assert bool(found.isfinite().all()) and wave.grad is not None and bool(wave.grad.isfinite().all())
