# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows of a trace of its own process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import captures

from textpoke.own_calls import OwnCalls
from textpoke.python_lines import LineNotes

if TYPE_CHECKING:
    from pathlib import Path


def shown(directory: Path, notes: LineNotes) -> str:
    """The table over two calls of the first function that a made-up capture has."""
    recipe = captures.Recipe([captures.Ring([(300, captures.SET), (600, captures.SET)])])
    calls = OwnCalls()
    calls._file = str(captures.write(directory / "own.tptrace", recipe))
    calls._take(0, notes)
    return calls._repr_html_()


def test_without_lines_nothing_is_said_of_them(tmp_path: Path) -> None:
    assert shown(tmp_path, LineNotes()).count("<p>") == 1


def test_why_no_line_was_seen_stands_below_the_table(tmp_path: Path) -> None:
    notes = LineNotes()
    sys.settrace(lambda *_: None)
    try:
        notes.start()
    finally:
        sys.settrace(None)
    after = shown(tmp_path, notes).rpartition("</table>")[2]
    assert "<p>no line of Python was seen: sys.settrace is taken by &lt;function" in after
    assert after.count("\n") == 0


def test_lines_that_were_too_many_are_told_below_the_table(tmp_path: Path) -> None:
    notes = LineNotes(most=0)
    notes.start()
    sum(range(2))
    notes.stop()
    assert f"<p>{notes.dropped:,} lines of Python were not noted" in shown(tmp_path, notes)
