"""Tracks of moving objects in video, without any learned part: two views of one object, mined from each clip.

    tracks("clips/", "tracks/")      # tracks/VIDEO#000/0.png and 1.png: an object, and the same some frames later

1. A box is put where a clip moves most against its background: the shift of the whole picture between two frames is
   found by phase correlation and taken away, and the square window whose mean difference stands out most is taken.
2. The box is followed by template matching: normalised correlation of grey patches at three sizes around the last
   place, the template renewed in each frame (so that a turning object is followed).
3. The track is kept when following it back from its end returns to the box it began with, and both views differ.

The functions from frames to tracks are pure functions of numpy arrays; only reading a clip needs PyAV (`video` extra).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from eyespot.errors import MissingExtra, UserError
from eyespot.options import TracksOptions
from eyespot.runs import write_json

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
PATCH = 24  # side of the grey patches that are correlated, in pixels
SCALES = (1.0, 0.95, 1.05)  # sizes that a step may change a box by; first the one that wins a tie
LEAST_FRAMES = 4
PEAKS = 4  # of the phase correlation that are tried


@dataclass(frozen=True)
class Track:
    """One object at two times of a clip. Boxes are (top, left, side) in pixels."""

    start: int
    end: int
    """Frames of the two views."""
    box: tuple[float, float, float]
    last: tuple[float, float, float]
    returned: float
    """Overlap (intersection over union) of the first box with where following it back ends."""
    match: float
    """Least correlation of a step, at most 1."""


# --- from frames to tracks --------------------------------------------------------------------------------------------
def grey(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] as float32 [T, H, W] in [0, 1]."""
    return frames.astype(np.float32) @ (np.array([0.299, 0.587, 0.114], np.float32) / 255)


def shift_between(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How far the ground of the picture b [H, W] has moved down and right against a, in whole pixels.

    Of the highest peaks of the phase correlation, and no shift at all, the one that leaves the least median difference:
    a large object has a peak of its own.
    """
    window = np.hanning(a.shape[0])[:, None] * np.hanning(a.shape[1])[None, :]
    fa, fb = (np.fft.rfft2((x - x.mean()) * window) for x in (a, b))
    cross = fb * fa.conj()
    peaks = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=a.shape).ravel()
    places = np.unravel_index(np.argpartition(-peaks, PEAKS)[:PEAKS], a.shape)
    down, right = (np.where(v > n // 2, v - n, v).tolist() for v, n in zip(places, a.shape, strict=True))
    shifts = [(0, 0), *zip(down, right, strict=True)]
    return min(shifts, key=lambda shift: float(np.median(np.abs(_apart(a, b, shift)))))


def _apart(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """b - a where a is moved down and right, in the part of b that a shows; a shift out of the picture leaves 1."""
    (down, right), (h, w) = shift, a.shape
    if abs(down) > h // 2 or abs(right) > w // 2:
        return np.ones((1, 1), np.float32)
    part = b[max(0, down) : h + min(0, down), max(0, right) : w + min(0, right)]
    return part - a[max(0, -down) : h + min(0, -down), max(0, -right) : w + min(0, -right)]


def motion(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How much each place of b [H, W] differs from a beyond the shift of the ground: float32 [H, W]; places that a does
    not show are 0."""
    down, right = shift_between(a, b)
    out, (h, w) = np.zeros(b.shape, np.float32), b.shape
    inside = out[max(0, down) : h + min(0, down), max(0, right) : w + min(0, right)]
    inside[:] = np.abs(_apart(a, b, (down, right)))
    return out


def moving_box(
    a: np.ndarray, b: np.ndarray, share: float = 0.5, contrast: float = 1.5, least: float = 0.01
) -> tuple[float, float, float] | None:
    """The window of b that moves most, (top, left, side), or None where nothing stands out.

    Args:
        a, b: grey frames [H, W] in [0, 1], a little apart.
        share: side of the window as a share of the shorter side.
        contrast: how many times the mean motion of the whole picture the window must have.
        least: mean difference that the window must have at least.
    """
    energy = motion(a, b)
    side = max(4, round(share * min(b.shape)))
    sums = np.pad(energy.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    mean = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    top, left = np.unravel_index(int(mean.argmax()), mean.shape)
    if mean[top, left] < max(least, contrast * energy.mean()):
        return None
    return float(top), float(left), float(side)


def _patch(frame: np.ndarray, top: float, left: float, side: float, cells: int) -> np.ndarray:
    """A square of a frame [H, W] sampled at cells x cells places, bilinear; what lies outside repeats the border."""
    along = (np.arange(cells) + 0.5) * side / cells - 0.5
    r, c = (np.clip(at + along, 0, n - 1) for at, n in zip((top, left), frame.shape, strict=True))
    r0, c0 = r.astype(int).clip(max=frame.shape[0] - 2), c.astype(int).clip(max=frame.shape[1] - 2)
    fr, fc = (r - r0)[:, None].astype(np.float32), (c - c0)[None, :].astype(np.float32)
    upper = frame[r0][:, c0] * (1 - fc) + frame[r0][:, c0 + 1] * fc
    lower = frame[r0 + 1][:, c0] * (1 - fc) + frame[r0 + 1][:, c0 + 1] * fc
    return upper * (1 - fr) + lower * fr


def follow(
    frames: np.ndarray, box: tuple[float, float, float], reach: float = 0.25
) -> tuple[list[tuple[float, float, float]], float]:
    """Where a box goes in the frames that follow the first one.

    Args:
        frames: grey [T, H, W].
        box: (top, left, side) in the first frame.
        reach: how far a step may go, as a share of the side.

    Returns:
        The box in every frame, T of them, and the least correlation of a step (1 for a single frame).
    """
    boxes, least = [box], 1.0
    for before, after in pairwise(frames):
        place, score = _step(before, after, boxes[-1], reach)
        boxes.append(place)
        least = min(least, score)
    return boxes, least


def _step(
    before: np.ndarray, after: np.ndarray, box: tuple[float, float, float], reach: float
) -> tuple[tuple[float, float, float], float]:
    """The place of `after` [H, W] most like the box of `before`, and its correlation in [-1, 1]."""
    template = _patch(before, *box, PATCH)
    template = template - template.mean()
    cells = max(1, round(reach * PATCH))
    best, found = -np.inf, box
    for scale in SCALES:
        side = box[2] * scale
        unit = side / PATCH
        top, left = box[0] + (box[2] - side) / 2, box[1] + (box[2] - side) / 2
        wide = PATCH + 2 * cells
        area = _patch(after, top - cells * unit, left - cells * unit, wide * unit, wide)
        windows = sliding_window_view(area, (PATCH, PATCH)).reshape(-1, PATCH * PATCH)
        flat = windows - windows.mean(1, keepdims=True)
        scores = flat @ template.ravel() / (np.linalg.norm(flat, axis=1) * np.linalg.norm(template) + 1e-6)
        # of equal places the nearest: on a plain ground all are alike
        down, right = np.divmod(np.arange(len(scores)), 2 * cells + 1) - np.array(cells)
        scores = scores - 1e-3 * np.hypot(down, right) / cells - 1e-3 * abs(scale - 1)
        k = int(scores.argmax())
        if scores[k] > best + 1e-4:
            y, x = _peak(scores.reshape(2 * cells + 1, -1), k)
            best, found = float(scores[k]), (top + (y - cells) * unit, left + (x - cells) * unit, side)
    return found, best


def _peak(scores: np.ndarray, k: int) -> tuple[float, float]:
    """Row and column of the highest score, entry k of [h, w], by a parabola through its neighbours."""
    place = np.unravel_index(k, scores.shape)
    fine = []
    for line, at in ((scores[:, place[1]], int(place[0])), (scores[place[0]], int(place[1]))):
        bend = 2 * line[at] - line[at - 1] - line[at + 1] if 0 < at < len(line) - 1 else 0.0
        fine.append(at + (float((line[at + 1] - line[at - 1]) / (2 * bend)) if bend > 1e-6 else 0.0))
    return fine[0], fine[1]


def overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Intersection over union of two boxes (top, left, side)."""
    high = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    wide = max(0.0, min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1]))
    return high * wide / (a[2] ** 2 + b[2] ** 2 - high * wide)


def find_tracks(
    frames: np.ndarray,
    *,
    span: int = 30,
    most: int = 1,
    gap: int = 2,
    share: float = 0.5,
    least_match: float = 0.5,
    least_return: float = 0.5,
    least_texture: float = 0.04,
) -> list[Track]:
    """Tracks of what moves in a clip.

    Args:
        frames: uint8 [T, H, W, 3].
        span: frames from the first view to the second, at least 4; shorter clips take what there is.
        most: tracks a clip; they begin at evenly spaced frames.
        gap: frames between the two pictures that motion is found from.
        share: side of a box as a share of the shorter side.
        least_match, least_return: least correlation of a step, and least overlap on the way back.
        least_texture: least standard deviation of the first view's brightness, of 1; plain ground is no object.
    """
    light = grey(frames)
    span = min(span, len(light) - 1)
    if span < LEAST_FRAMES:
        return []
    gap = max(1, min(gap, len(light) - 1))
    found = []
    for start in np.unique(np.linspace(0, len(light) - 1 - span, most).round().astype(int)).tolist():
        box = moving_box(light[start + gap], light[start], share)
        if box is None or _patch(light[start], *box, PATCH).std() < least_texture:
            continue
        part = light[start : start + span + 1]
        boxes, match = follow(part, box)
        if match < least_match or not _inside(boxes[-1], light.shape[1:]):
            continue
        back, _ = follow(part[::-1], boxes[-1])
        returned = overlap(box, back[-1])
        if returned >= least_return:
            found.append(Track(start, start + span, box, boxes[-1], returned, match))
    return found


def _inside(box: tuple[float, float, float], size: tuple[int, ...]) -> bool:
    """Whether at least three quarters of each side of a box are in the picture."""
    parts = [min(n, at + box[2]) - max(0.0, at) for at, n in zip(box[:2], size, strict=True)]
    return min(parts) >= 0.75 * box[2]


def cut_out(frame: np.ndarray, box: tuple[float, float, float]) -> Image.Image:
    """What a box (top, left, side) shows of a frame uint8 [H, W, 3]; shifted into the picture where it stands out."""
    side = max(1, min(round(box[2]), *frame.shape[:2]))
    top, left = (min(max(0, round(at)), n - side) for at, n in zip(box[:2], frame.shape[:2], strict=True))
    return Image.fromarray(frame[top : top + side, left : left + side])


# --- from files to a folder of tracks ---------------------------------------------------------------------------------
def read_frames(path: str | Path) -> np.ndarray:
    """All frames of a clip: uint8 [T, H, W, 3].

    Raises:
        MissingExtra: PyAV is not installed.
        UserError: the file is no video that can be decoded.
    """
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError as error:
        raise MissingExtra("av", "video", "Reading video") from error
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (FFmpegError, IndexError, OSError) as error:
        raise UserError(f"{path} cannot be decoded as video ({error}); remove it or convert it to MP4.") from error
    if not frames:
        raise UserError(f"{path} holds no frames; remove it.")
    return np.stack(frames)


def video_files(path: str | Path) -> list[Path]:
    """Video files below a folder, in the order of their names, or the one file."""
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is no path {path}; give a video file or a folder of them.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEOS)
    if not files:
        raise UserError(f"{path} holds no video ({', '.join(VIDEOS)}); give a folder of video files.")
    return files


def tracks(
    videos: Any,
    out: Any,
    *,
    span: int = 30,
    per_clip: int = 1,
    same: Literal["file", "folder"] = "file",
    size: float = 0.5,
    least_match: float = 0.5,
) -> dict[str, Any]:
    """Mine tracks from video files into a folder that `transitive_invariance` reads with `tracks=folders`.

    Args:
        videos: a folder of video files, searched in depth, or one file.
        out: new folder; OUT/VIDEO#NUMBER/0.png and 1.png are the two views of a track, OUT/tracks.json says where they
            come from.
        span, per_clip, size, least_match: as `span`, `most`, `share` and `least_match` of `find_tracks`.
        same: what counts as one video, whose tracks are never linked with each other: a file, or all clips of a folder.

    Returns:
        {"out", "clips", "tracks", "bad": {path: reason}}.

    Raises:
        UserError: there are no videos, `out` is there already, or no object was found in any clip.
    """
    TracksOptions(videos=videos, out=out, span=span, per_clip=per_clip, same=same, size=size, least_match=least_match)
    root, folder, files = Path(videos).expanduser(), Path(out).expanduser(), video_files(videos)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another one for the tracks.")
    records: list[dict[str, Any]] = []
    bad: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for path, frames in _clips(files, bad):
        name = _video_name(path, root, same)
        for track in find_tracks(frames, span=span, most=per_clip, share=size, least_match=least_match):
            number = numbers[name] = numbers.get(name, -1) + 1
            place = folder / f"{name}#{number:03d}"
            place.mkdir(parents=True)
            for k, (at, box) in enumerate(((track.start, track.box), (track.end, track.last))):
                cut_out(frames[at], box).save(place / f"{k}.png")
            records.append({"folder": place.name, "clip": str(path), **asdict(track)})
    if len(bad) == len(files):
        raise UserError(
            f"None of the {len(files)} clips of {videos} can be read; the first: {next(iter(bad.values()))}"
        )
    if not records:
        raise UserError(f"Nothing that moves was followed in {len(files)} clips of {videos}; lower least_match.")
    write_json(folder / "tracks.json", {"version": 1, "tracks": records, "bad": bad})
    return {"out": str(folder), "clips": len(files), "tracks": len(records), "bad": bad}


def _clips(files: list[Path], bad: dict[str, str]) -> Iterator[tuple[Path, np.ndarray]]:
    """Clips one at a time; those that cannot be read are noted."""
    for path in files:
        try:
            frames = read_frames(path)
        except MissingExtra:
            raise
        except UserError as error:
            bad[str(path)] = str(error)
            continue
        yield path, frames


def _video_name(path: Path, root: Path, same: str) -> str:
    """A folder's name that stands for a video."""
    place = path if path == root else path.relative_to(root)
    place = place.with_suffix("") if same == "file" or len(place.parts) < 2 else place.parent
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(p for p in place.parts if p != place.anchor)) or "video"
