"""The frame difference of clips, and its probe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eyespot.data.records import RecordData
from eyespot.errors import UserError
from eyespot.evaluate.frame_difference import baseline, frame_difference


def test_by_hand():
    clips = torch.zeros(3, 3, 1, 2, 2)
    clips[1, 1] = 0.5  # up and down again
    clips[2, 2, :, 0] = 1.0  # half of the pixels, once
    assert frame_difference(clips).tolist() == [[0.0], [0.5], [0.25]]
    assert frame_difference(clips[:, :1]).tolist() == [[0.0]] * 3


def test_it_tells_fast_clips_from_slow_ones(tmp_path):
    pytest.importorskip("av")
    from clips import write_folder

    from eyespot.data.clips import open_clips

    root = write_folder(tmp_path / "clips", each=8)
    train, test = (RecordData(open_clips(root, split=s), workers=0) for s in ("rest1/2", "fold1/2"))
    assert baseline(train, test, 2, image_size=32)["top1"] == 100
    flat = write_folder(tmp_path / "one", classes=("fast",), each=3)
    with pytest.raises(UserError, match="use class folders"):
        baseline(RecordData(open_clips(flat), workers=0), test, 2)
