# SPDX-License-Identifier: Apache-2.0
"""What triggers, and people at the switch, have done to a recording, as its capture tells it.

The notes come from a file: what does not have the shape that `docs/formats.md` gives is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke.triggers import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.capture import Capture

_MOST_TICKS = (1 << 64) - 1
_MOST_TID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class StackTrace:
    """What one hit of `stacktrace` has noted.

    Attributes:
        trigger: Its line.
        tid: Thread.
        tsc: When.
        frames: (return address of the site, ticks of its entry), the innermost first.
        open_calls: The frames are open calls; else the last functions that were entered.
    """

    trigger: str
    tid: int
    tsc: int
    frames: tuple[tuple[int, int], ...]
    open_calls: bool


def resumptions(capture: Capture) -> list[int]:
    """When recording went on after a pause, in TSC ticks, sorted; no call reaches over these."""
    turns = sorted(
        (tsc, note["command"] == Command.TRACEON)
        for note in _notes(capture)
        if note.get("command") in (Command.TRACEOFF, Command.TRACEON)
        and (tsc := _number(note.get("tsc"), _MOST_TICKS)) is not None
    )
    found: list[int] = []
    off_tsc = -1
    for tsc, is_on in turns:
        if not is_on:
            off_tsc = tsc
        elif tsc > off_tsc:  # at once: nothing was left out
            found.append(tsc)
    return found


def stack_traces(capture: Capture) -> list[StackTrace]:
    """The stacks that `stacktrace` has noted, by time."""
    found = (
        _stack_trace(note) for note in _notes(capture) if note.get("command") == Command.STACKTRACE
    )
    return sorted((one for one in found if one is not None), key=lambda one: one.tsc)


def left_out(capture: Capture) -> list[str]:
    """What left calls of traced functions out, one line each: filters, a budget."""
    rules: dict[str, None] = {}
    for data in capture.notes:
        found = data.get("partial")
        rules.update(dict.fromkeys(map(str, found if isinstance(found, list) else ())))
    lines = [f"partial: recorded with {', '.join(rules)}"] if rules else []
    steps = sum("governor" in note for note in _notes(capture))
    if steps:
        lines.append(f"partial: functions were off at times, for the budget ({steps:,} steps)")
    return lines


def _notes(capture: Capture) -> Iterator[dict[str, object]]:
    for data in capture.notes:
        notes = data.get("notes")
        for note in notes if isinstance(notes, list) else ():
            if isinstance(note, dict):
                yield note


def _stack_trace(note: dict[str, object]) -> StackTrace | None:
    tid, tsc = _number(note.get("tid"), _MOST_TID), _number(note.get("tsc"), _MOST_TICKS)
    frames = note.get("frames")
    if tid is None or tsc is None or not isinstance(frames, list):
        return None
    found = tuple(frame for row in frames if (frame := _frame(row)) is not None)
    return StackTrace(str(note.get("trigger")), tid, tsc, found, note.get("open_calls") is True)


def _frame(row: object) -> tuple[int, int] | None:
    if not isinstance(row, list) or len(row) != 2:
        return None
    address, tsc = (_number(value, _MOST_TICKS) for value in row)
    return None if address is None or tsc is None else (address, tsc)


def _number(value: object, most: int) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None
