# SPDX-License-Identifier: Apache-2.0
"""What triggers have done, read back from a capture's notes: also where these are damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import captures
import pytest
from captures import Recipe

from textpoke.capture import Capture
from textpoke.trigger_notes import StackTrace, left_out, resumptions, stack_traces

if TYPE_CHECKING:
    from pathlib import Path


def opened(tmp_path: Path, notes: object) -> Capture:
    return Capture(captures.write(tmp_path / "x.tptrace", Recipe(meta=captures.meta(notes=notes))))


def turn(command: str, tsc: object) -> dict[str, object]:
    return {"command": command, "tsc": tsc}


def test_recording_goes_on_where_it_was_off_before(tmp_path: Path) -> None:
    notes = [
        turn("traceoff", 10),
        turn("traceon", 20),
        turn("traceon", 40),
        turn("traceoff", 30),
        turn("traceoff", 50),
        turn("traceon", 50),
    ]
    with opened(tmp_path, notes) as capture:
        assert resumptions(capture) == [20, 40]


def test_stacks_come_by_time(tmp_path: Path) -> None:
    note = {"trigger": "f:stacktrace", "command": "stacktrace", "tid": 7, "open_calls": True}
    notes = [{**note, "tsc": 9, "frames": [[5, 8], [4, 3]]}, {**note, "tsc": 2, "frames": []}]
    with opened(tmp_path, notes) as capture:
        assert stack_traces(capture) == [
            StackTrace("f:stacktrace", 7, 2, (), open_calls=True),
            StackTrace("f:stacktrace", 7, 9, ((5, 8), (4, 3)), open_calls=True),
        ]


@pytest.mark.parametrize(
    "notes",
    [
        None,
        {"command": "traceon", "tsc": 1},
        ["traceon", None],
        [turn("traceon", value) for value in (None, True, "7", -1, 1 << 64, 1.5)],
        [{"command": ["traceon"], "tsc": 1}],
        [{"command": "stacktrace", "tid": -1, "tsc": 1, "frames": []}],
        [{"command": "stacktrace", "tid": 1, "tsc": 1, "frames": {}}],
        [{"command": "stacktrace", "tid": 1, "frames": []}],
    ],
)
def test_what_has_another_shape_is_left_out(tmp_path: Path, notes: object) -> None:
    with opened(tmp_path, notes) as capture:
        assert resumptions(capture) == []
        assert stack_traces(capture) == []


def test_frames_of_another_shape_are_left_out(tmp_path: Path) -> None:
    frames = [[1], [2, 3], 4, ["5", 6], [7, 1 << 64], [8, 9]]
    note = {"command": "stacktrace", "tid": 1, "tsc": 1, "frames": frames}
    with opened(tmp_path, [note]) as capture:
        assert [one.frames for one in stack_traces(capture)] == [((2, 3), (8, 9))]


def test_what_left_calls_out_is_told_once(tmp_path: Path) -> None:
    notes = [{"governor": "!f off: it cost too much"}, {"governor": "f on again"}, turn("dump", 1)]
    meta = captures.meta(notes=notes, partial=["thread w*", "one of 10 calls", "thread w*"])
    with Capture(captures.write(tmp_path / "x.tptrace", Recipe(meta=meta))) as capture:
        assert left_out(capture) == [
            "partial: recorded with thread w*, one of 10 calls",
            "partial: functions were off at times, for the budget (2 steps)",
        ]


@pytest.mark.parametrize("partial", [None, [], "thread w*", {"a": 1}])
def test_a_capture_that_left_nothing_out_says_nothing(tmp_path: Path, partial: object) -> None:
    meta = captures.meta(partial=partial)
    with Capture(captures.write(tmp_path / "x.tptrace", Recipe(meta=meta))) as capture:
        assert left_out(capture) == []
