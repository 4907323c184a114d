"""The progress line."""

from __future__ import annotations

import io

from eyespot.terminal.pages import duration
from eyespot.terminal.progress import Progress, line

RECORD = {
    "kind": "step",
    "step": 50,
    "steps": 200,
    "epoch": 1.25,
    "epochs": 5,
    "loss": 4.5,
    "terms": {"group": 1.5, "slot": 3.0},
    "images_per_s": 1234.4,
    "data_wait": 0.031,
    "seconds_left": 95,
    "verdict": {"state": "learning", "reason": "rank 40 of 128"},
    "knn": 41.25,
    "floor": 30.0,
}


def test_line_holds_what_a_user_wants_to_know():
    shown = line(RECORD).plain
    assert "\n" not in shown
    for part in (
        "25 %",
        "epoch 1.25/5",
        "loss 4.5 (group 1.5 slot 3)",
        "1,234 images/s",
        "data wait 3 %",
        "1:35 left",
        "learning: rank 40 of 128",
        "kNN 41.2 % (random 30.0 %)",
    ):
        assert part in shown


def test_line_of_a_bare_record():
    assert line({"kind": "step", "step": 1, "steps": 4, "epoch": 0.25}).plain == " 25 %  epoch 0.25"


def test_outside_a_terminal_lines_are_plain_and_seldom():
    stream = io.StringIO()
    with Progress(every=3600.0, stream=stream) as progress:
        for step in (10, 20, 30):
            progress(RECORD | {"step": step})
        progress({"kind": "note", "text": "3 files [were] skipped"})
        progress(RECORD | {"step": 200})
        progress({"kind": "done"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # the first, the note, the last step
    assert lines[0].startswith("  5 %")
    assert lines[1] == "3 files [were] skipped"
    assert lines[2].startswith("100 %")
    assert "\x1b" not in stream.getvalue()


def test_lines_follow_one_another_after_the_pause():
    stream = io.StringIO()
    with Progress(every=0.0, stream=stream) as progress:
        for step in (10, 20, 30):
            progress(RECORD | {"step": step})
    assert len(stream.getvalue().splitlines()) == 3


def test_duration():
    assert [duration(s) for s in (0, 59.6, 95, 4000)] == ["0:00", "1:00", "1:35", "1:06:40"]
