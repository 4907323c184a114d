"""Clips: video files as samples.

    a folder        video files at any depth and of any mix of formats; class folders become labels, train/ and test/
                    are splits
    a text list     one path a line, with an optional label after a tab
    a tar           of video files (or a folder of tars), read without unpacking; its folders are the classes
    one video file

    data = open_clips("clips/")                     # ClipSource
    data.record(0)["video"]                         # uint8 [16, C, H, W], evenly spaced over the clip
    data.record(0, {"windows": [(10, 8, 2)]})       # only these frames are decoded: [8, C, H, W]

Data without splits can be cut by `split="fold2/5"` and `split="rest2/5"`, see `eyespot.data.media`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eyespot.data.decode import BadFile
from eyespot.data.media import Kind, MediaFiles, find
from eyespot.data.records import RecordSource
from eyespot.data.video import Clip, about, evenly, read_windows, window_frames
from eyespot.errors import UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".ts")
"""Names that are taken for clips in a folder, in lower case. (.gif is a picture.)"""
CLIPS = Kind("clip", "video files", SUFFIXES)
SHORT = 128
"""Frames up to which a clip may be kept decoded."""


class ClipSource(RecordSource):
    """Clips, of which windows of frames are decoded.

    Args:
        files: the encoded clips.
        channels: 3, or 1 for grey.
        frames: frames of a clip that evaluation sees, evenly spaced.
        short_side: frames are shrunk to this shorter side while they are decoded, unless the plan says another;
            None keeps their size.
        keep_bytes: bytes of decoded short clips that a process keeps, so that a small set is decoded once.
    """

    fields = ("video",)

    def __init__(
        self,
        files: MediaFiles,
        *,
        channels: int = 3,
        frames: int = 16,
        short_side: int | None = None,
        keep_bytes: int = 1 << 28,
    ):
        if channels not in (1, 3):
            raise UserError(f"A clip has 3 channels, or 1 of grey, not {channels}; leave the number out.")
        if frames < 1:
            raise UserError(f"Evaluation sees {frames} frames of a clip; give 1 or more.")
        self.files, self.name = files, files.name
        self.labels, self.class_names, self.refused = files.labels, files.class_names, files.refused
        self.channels, self.frames, self.short_side = channels, frames, short_side
        self.keep_bytes = keep_bytes
        self._about: dict[int, Clip] = {}
        self._kept: dict[tuple[int, int | None], Tensor] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        return self.files.path(i)

    def about(self, i: int) -> Clip:
        """Number of frames, rate and size of clip i, from its header; read once. Raises BadFile."""
        if i not in self._about:
            self._about[i] = about(self.files.raw(i), self.path(i))
        return self._about[i]

    def length(self, i: int) -> int:
        """Number of frames of clip i; 0 where the clip cannot be read, which is told when it is decoded."""
        try:
            return self.about(i).frames
        except BadFile:
            return 0

    def record(self, i: int, plan: dict[str, Any] | None = None) -> dict[str, Any]:
        """{"video": uint8 [T, C, H, W]}, or [W, T, C, H, W] when the plan has several windows. Raises BadFile.

        Args:
            plan: {"windows": [(start, frames, stride), ...]} in frame numbers, which wrap around at the end of the
                clip, and {"short_side": s}. None: `frames` evenly spaced ones.
        """
        plan = plan or {}
        side, windows = plan.get("short_side", self.short_side), plan.get("windows")
        kept = self._whole(i, side)
        if kept is None:
            how = {"name": self.path(i), "channels": self.channels, "short_side": side, "frames": self.frames}
            return {"video": read_windows(self.files.raw(i), windows, **how)}
        length = len(kept)
        chosen = evenly(length, self.frames) if windows is None else [window_frames(w, length) for w in windows]
        parts = [kept[torch.from_numpy(numbers)] for numbers in chosen]
        return {"video": parts[0] if len(parts) == 1 else torch.stack(parts)}

    # --- what is behind ---------------------------------------------------------------------------------------
    def _whole(self, i: int, side: int | None) -> Tensor | None:
        """All frames of a short clip, kept from then on; None where there is no room for them."""
        if (i, side) not in self._kept:
            info = self.about(i)
            scale = min(1.0, side / min(info.width, info.height)) if side else 1.0
            size = int(info.frames * self.channels * info.width * info.height * scale**2)
            if info.frames > SHORT or size > self._room:
                return None
            window = (0, info.frames, 1)
            how = {"name": self.path(i), "channels": self.channels, "short_side": side}
            self._kept[i, side] = read_windows(self.files.raw(i), [window], **how)
            self._room -= size
        return self._kept[i, side]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_room": self.keep_bytes}


def open_clips(data: Any, *, split: str | None = None, **options: Any) -> ClipSource:
    """The clips of a path.

    Args:
        data: see the head of this file; `PATH:SPLIT` names the split too. A ClipSource is returned as it is.
        split: see `eyespot.data.media.find`.
        options: of `ClipSource`.

    Raises:
        UserError: there are no clips, with the reason and the remedy.
    """
    if isinstance(data, ClipSource):
        return data
    return ClipSource(MediaFiles(*find(data, split, CLIPS)), **options)
