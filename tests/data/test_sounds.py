"""Sounds from folders, tars and Parquet files: one channel, one rate, and what is no sample."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import eyespot
from eyespot.data.decode import BadFile
from eyespot.data.records import RecordData
from eyespot.data.sounds import cut, decode_sound, open_sounds, resampled
from eyespot.errors import UserError
from eyespot.modality import Reading, audio

soundfile = pytest.importorskip("soundfile", reason="needs eyespot[audio]")


def tone(hertz=440.0, seconds=0.5, rate=16000, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave] * channels, 1).astype(np.float32)


def encoded(wave, rate=16000, kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name, hertz in (("low", 200.0), ("high", 2000.0)):
            (tmp_path / split / name).mkdir(parents=True)
            for k, seconds in enumerate((0.3, 0.6)):
                soundfile.write(tmp_path / split / name / f"{k}.wav", tone(hertz, seconds), 16000)
    return tmp_path


def test_class_folders_are_labels_and_train_is_taken(folder):
    source = open_sounds(folder)
    assert len(source) == 4 and source.class_names == ("high", "low") and source.labels.tolist() == [0, 0, 1, 1]
    assert all("/train/" in source.path(i) for i in range(4))
    assert len(open_sounds(folder, split="all")) == 8 and len(open_sounds(f"{folder}:test")) == 4
    assert source.record(1)["audio"].shape == (9600,) and source.seconds(1) == pytest.approx(0.6)


def test_channels_are_averaged_and_rates_made_one(tmp_path):
    left = tone(440, 0.5, 8000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([left, np.zeros_like(left)], 1), 8000)
    wave = open_sounds(tmp_path, rate=16000).record(0)["audio"]
    wanted = torch.from_numpy(tone(440, 0.5, 16000)[:, 0]) / 2
    assert wave.shape == (8000,) and wave.dtype == torch.float32
    assert (wave - wanted)[400:-400].abs().max() < 2e-3  # the filter rings at both ends


def test_a_rate_change_keeps_no_pitch_that_the_new_rate_cannot_hold():
    high = tone(7000, 0.5, 16000)[:, 0]
    assert np.abs(resampled(high, 16000, 8000)[200:-200]).max() < 0.01
    assert np.array_equal(resampled(high, 16000, 16000), high)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("cut.wav", encoded(tone(), kind="WAV")[:30], ""),
        ("empty.flac", b"", ""),
        ("text.mp3", b"no sound at all", ""),
        ("silent.wav", encoded(np.zeros((8000, 1), np.float32), kind="WAV"), "is silent"),
        ("short.wav", encoded(tone(seconds=0.02), kind="WAV"), "lasts 20 ms, less than 25"),
    ],
)
def test_what_is_no_sound_is_left_out_and_listed(tmp_path, name, content, reason):
    for k in range(30):
        soundfile.write(tmp_path / f"good{k:02d}.wav", tone(200 + 10 * k, 0.1), 16000)
    (tmp_path / name).write_bytes(content)
    data = RecordData(open_sounds(tmp_path), channels=1, workers=0)
    batch = data.batch(range(31))
    assert len(batch["audio"]) == 31 and list(data.bad) == [str(tmp_path / name)]
    assert reason in data.bad[str(tmp_path / name)] and data.bad[str(tmp_path / name)]


def test_a_plan_cuts_and_short_sounds_are_repeated():
    wave = torch.arange(10.0)
    assert cut(wave, 4, 0.0).tolist() == [0, 1, 2, 3] and cut(wave, 4, 0.999).tolist() == [6, 7, 8, 9]
    assert cut(wave, 4, 1.0).tolist() == [6, 7, 8, 9] and cut(wave, 4, 0.5).tolist() == [3, 4, 5, 6]
    assert cut(wave, 23, 0.7).tolist() == [*range(10), *range(10), 0, 1, 2]
    starts = {int(cut(wave, 4, s)[0]) for s in np.linspace(0, 0.9999, 700)}
    assert starts == set(range(7))  # every place is reached


def test_kept_sounds_are_cut_as_read_ones(folder):
    source = open_sounds(folder)
    plan = {"samples": 1000, "start": 0.4}
    read = RecordData(source, channels=1, workers=0, cache_bytes=0).batch([1], plans=[plan])["audio"]
    kept = RecordData(source, channels=1, workers=0)
    assert kept.fill() and torch.equal(kept.batch([1], plans=[plan])["audio"], read)


def test_tars_and_lists(tmp_path):
    with tarfile.open(tmp_path / "sounds.tar", "w") as tar:
        for name in ("dog/1.flac", "dog/2.flac", "rain/1.flac"):
            content = encoded(tone(seconds=0.2))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_sounds(tmp_path / "sounds.tar")
    assert source.class_names == ("dog", "rain") and source.labels.tolist() == [0, 0, 1]
    assert source.record(2)["audio"].shape == (3200,)
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    (tmp_path / "list.txt").write_text("a.wav\tbeep\na.wav\tboop\n")
    assert open_sounds(tmp_path / "list.txt").labels.tolist() == [0, 1]


def test_parquet_columns_and_splits(tmp_path):
    rows = {
        "audio": [{"bytes": encoded(tone(200 + 100 * k, 0.1)), "path": f"{k}.flac"} for k in range(10)],
        "label": [k % 2 for k in range(10)],
        "split": ["train"] * 6 + ["test"] * 4,
    }
    pq.write_table(pa.table(rows), tmp_path / "sounds.parquet")
    source = open_sounds(tmp_path / "sounds.parquet", split="test")
    assert len(source) == 4 and source.labels.tolist() == [0, 1, 0, 1] and source.record(0)["audio"].shape == (1600,)
    assert len(open_sounds(f"{tmp_path / 'sounds.parquet'}:fold1/5")) == 2
    assert len(open_sounds(tmp_path, split="rest1/5")) == 8
    with pytest.raises(UserError, match="no column 'sound'"):
        open_sounds(tmp_path / "sounds.parquet", column="sound")


def test_mistakes_get_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no sound .* it is empty; give a folder of audio files"):
        open_sounds(tmp_path)
    with pytest.raises(UserError, match="There is no path"):
        open_sounds(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"only other files \(1 .png\)"):
        open_sounds(tmp_path)
    for k in range(4):
        soundfile.write(tmp_path / f"{k}.wav", tone(), 16000)
    with pytest.raises(UserError, match="one channel, not 3"):
        audio.open_data(tmp_path, Reading(channels=3))
    with pytest.raises(UserError, match="resnet8 takes pictures, but apc learns from sounds"):
        eyespot.pretrain("apc", data=tmp_path, out=tmp_path / "run", backbone="resnet8", epochs=1)


def test_bytes_that_are_damaged_inside_are_a_bad_file():
    content = bytearray(encoded(tone(seconds=1.0)))
    content[200:] = bytes(len(content) - 200)
    try:
        assert decode_sound(bytes(content), "x", 16000).isfinite().all()
    except BadFile as error:
        assert error.path == "x" and error.reason
