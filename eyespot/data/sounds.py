"""Sounds: audio files as samples, one channel at one rate.

a folder        .wav, .flac, .ogg, .mp3 ... at any depth; class folders become labels, train/ and test/ are splits
a text list     one path a line, with an optional label after a tab
a tar           (or a folder of tars), read without unpacking; its folders are the classes
a Parquet file  with a column of encoded sounds, as the Hugging Face hub exports it

data = open_sounds("sounds/", rate=16000)
data.record(0)["audio"]                                  # float32 [S] in [-1, 1], the whole sound
data.record(0, {"start": 0.3, "samples": 16000})         # one second, from 0.3 of what can be left out
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from eyespot.data.batches import Plan
from eyespot.data.decode import BadFile, reason_of
from eyespot.data.media import FOLD, Kind, MediaFiles, find, fold_rows, path_and_split
from eyespot.data.parquet import ParquetSource, is_encoded
from eyespot.data.records import Record, RecordSource
from eyespot.data.sources import PARQUET
from eyespot.errors import MissingExtra, UserError, nearest

SOUNDS = Kind(
    "sound", "audio files", (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
)
SILENT = 1e-4
"""A sound whose largest sample is smaller is silence, and no sample."""
SHORTEST = 0.025
"""Seconds: one frame of a spectrogram."""


class SoundSource(RecordSource):
    """Sounds, decoded to one channel (the mean of all) at one rate.

    Args:
        files: the encoded sounds.
        rate: samples a second that sounds are brought to.
        rows: int64, the sounds of `files` that are meant; None for all.
        name: what they are called together.
    """

    fields = ("audio",)
    keeps = True

    def __init__(
        self, files: MediaFiles | ParquetSource, *, rate: int = 16000, rows: np.ndarray | None = None, name: str = ""
    ):
        if rate < 1000:
            raise UserError(f"A rate of {rate} samples a second is too low for sound; give 8000 or more.")
        self.files, self.rate, self.name = files, rate, name or files.name
        self.rows = np.arange(len(files)) if rows is None else rows
        self.labels = None if files.labels is None else files.labels[self.rows]
        self.class_names, self.refused = files.class_names, files.refused

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, i: int) -> str:
        return self.files.path(int(self.rows[i]))

    def prepare(self) -> None:
        self.files.prepare()

    def seconds(self, i: int) -> float:
        """How long sound i lasts. Raises BadFile."""
        return seconds_of(self.files.raw(int(self.rows[i])), self.path(i))

    def record(self, i: int, plan: Plan | None = None) -> dict[str, Any]:
        """{"audio": float32 [S] in [-1, 1]}. Raises BadFile: damaged, silent or too short.

        Args:
            plan: {"samples": S, "start": share of what is left out that lies before}; a shorter sound is repeated.
                None: the whole sound.
        """
        try:
            wave = decode_sound(self.files.raw(int(self.rows[i])), self.path(i), self.rate)
        except BadFile as error:
            raise BadFile(self.path(i), error.reason) from error
        whole = {"audio": wave}
        return whole if plan is None else self.planned(whole, plan)

    def planned(self, record: Record, plan: Plan) -> Record:
        return {"audio": cut(record["audio"], plan["samples"], plan["start"])}


def decode_sound(raw: bytes | Path, name: str, rate: int) -> Tensor:
    """A sound as float32 [S] in [-1, 1]: the mean of its channels, resampled to `rate`. Raises BadFile."""
    soundfile = _soundfile()
    try:
        wave, own = soundfile.read(io.BytesIO(raw) if isinstance(raw, bytes) else raw, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise BadFile(name, reason_of(error)) from error
    mono = wave.mean(1)
    if not np.isfinite(mono).all():
        raise BadFile(name, "has samples that are not finite")
    if len(mono) < SHORTEST * own:
        raise BadFile(name, f"lasts {1000 * len(mono) / own:.0f} ms, less than {1000 * SHORTEST:.0f}")
    if np.abs(mono).max() < SILENT:
        raise BadFile(name, "is silent")
    return torch.from_numpy(resampled(mono, own, rate))


def seconds_of(raw: bytes | Path, name: str) -> float:
    """How long a sound lasts, by its header. Raises BadFile."""
    soundfile = _soundfile()
    try:
        return float(soundfile.info(io.BytesIO(raw) if isinstance(raw, bytes) else raw).duration)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise BadFile(name, reason_of(error)) from error


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtra("soundfile", "audio", "Reading sound") from error
    return soundfile


def resampled(wave: np.ndarray, own: int, rate: int) -> np.ndarray:
    """float32 [S] at another rate, through a low-pass filter (scipy's polyphase resampling)."""
    if own == rate:
        return wave
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    return resample_poly(wave, rate // common, own // common).astype(np.float32)


def cut(wave: Tensor, samples: int, start: float) -> Tensor:
    """`samples` of a sound [S], repeated where it is shorter; `start` is the share, 0..1, of what is left out that lies
    before them."""
    spare = len(wave) - samples
    if spare <= 0:
        return wave.repeat(-(-samples // len(wave)))[:samples]
    first = min(spare, int(start * (spare + 1)))
    return wave[first : first + samples]


def open_sounds(data: Any, *, split: str | None = None, column: str | None = None, **options: Any) -> SoundSource:
    """The sounds of a path, see the head of this file; `PATH:SPLIT` names the split too.

    Args:
        split: the part of the data, see `eyespot.data.media.find`; for Parquet the value of its column `split`, or
            fold1/5, rest1/5.
        column: of the encoded sounds in Parquet files; None finds it. `label_column` among the options is Parquet's.
        options: of `SoundSource`.

    Raises:
        UserError: there are no sounds, with the reason and the remedy.
    """
    if isinstance(data, SoundSource):
        return data
    label_column = options.pop("label_column", None)
    path, part = path_and_split(data, split, SOUNDS)
    files = _parquets(path)
    if not files:
        found, name = find(data, split, SOUNDS)
        return SoundSource(MediaFiles(found, name), **options)
    fold = FOLD.fullmatch(part or "")
    name = f"{path}:{part}" if part else str(path)
    column = column or _sound_column(files[0])
    stored = ParquetSource(
        files, split=None if fold else part, image_column=column, label_column=label_column, name=name
    )
    rows = None if not fold else fold_rows(fold, stored.labels, len(stored), SOUNDS.unit)
    return SoundSource(stored, rows=rows, **options)


def _parquets(path: Path) -> list[Path]:
    """The Parquet files of a path that holds no sounds of its own."""
    if path.is_file():
        return [path] if path.suffix.lower() in PARQUET else []
    names = [name for _, _, found in os.walk(path) for name in found]
    if any(SOUNDS.has(name) for name in names):
        return []
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in PARQUET and not p.name.startswith("."))


def _sound_column(file: Path) -> str:
    schema = pq.read_schema(file)
    fit = [f.name for f in schema if is_encoded(f.type)]
    named = [name for name in fit if "audio" in name.lower() or "sound" in name.lower() or "wav" in name.lower()]
    if len(named) == 1 or len(fit) == 1:
        return (named or fit)[0]
    raise UserError(
        f"{file} has no column 'audio'; name the one with encoded sounds (--image-column): {nearest('audio', fit)}"
        if fit
        else f"{file} has no column of encoded sounds, only {', '.join(schema.names)}."
    )
