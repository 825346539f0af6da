# SPDX-License-Identifier: Apache-2.0
"""Which line of Python every thread was at, and when: what calls of native functions are put below.

Every line that is begun, and every return to a caller, is noted with the time stamp counter, the
clock of the events (sys.settrace; some 500 ns a line).
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from textpoke._native import lib

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from numpy.typing import NDArray

MOST_NOTES = 20_000_000
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Line(NamedTuple):
    """A place in Python code."""

    file: str
    line: int
    function: str


NOWHERE = Line("", 0, "")


@dataclass(slots=True)
class Noted:
    """Lines of one thread, in order of time.

    Attributes:
        tsc: uint64, when each was begun.
        index: int32, into `lines`.
        lines: The places.
    """

    tsc: NDArray[np.uint64]
    index: NDArray[np.int32]
    lines: list[Line]


class _Notes(list[tuple[int, "CodeType", int]]):
    """Of one thread; a list, since threads append to it in the midst of anything."""


class LineNotes:
    """Notes lines between `start` and `stop`.

    The calling thread and threads that begin later are seen; from Python 3.12 on all threads.

    Attributes:
        skip: Folders, each with a separator at its end, whose code is not looked at: a call into
            it stands at the line that led there.
        why_not: A reason when nothing is noted; else "".
        dropped: Lines that were not noted because there were too many.
    """

    def __init__(self, most: int = MOST_NOTES) -> None:
        self.skip: tuple[str, ...] = (_HERE,)
        self.why_not = ""
        self.dropped = 0
        self._most = self._left = most
        self._notes: dict[int, _Notes] = {}
        self._own = threading.local()
        self._is_on = False

    def start(self) -> None:
        """Begin; does nothing, and says why, where a debugger or a coverage tool is at work."""
        other = sys.gettrace()
        if other is not None:
            self.why_not = f"sys.settrace is taken by {other!r}"
            return
        self._is_on = True
        everyone = getattr(threading, "settrace_all_threads", threading.settrace)
        everyone(self._begin)
        sys.settrace(self._begin)
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way
        while frame is not None:  # those that run already
            if not frame.f_code.co_filename.startswith(self.skip):
                frame.f_trace = self._go_on
            frame = frame.f_back

    def stop(self) -> None:
        """End; other threads end with the next line that they begin."""
        if not self._is_on:
            return
        self._is_on = False
        if hasattr(threading, "settrace_all_threads"):
            threading.settrace_all_threads(None)
        else:
            threading.settrace(None)
        sys.settrace(None)

    @property
    def remark(self) -> str:
        """What is missing, why, and what to do about it; "" where nothing is."""
        if self.why_not:
            return f"no line of Python was seen: {self.why_not}; trace without that tool"
        if self.dropped:
            return (
                f"{self.dropped:,} lines of Python were not noted: more than {self._most:,} came; "
                "calls below them stand at an earlier line; trace less at a time"
            )
        return ""

    def noted(self) -> dict[int, Noted]:
        """What was noted, by thread id of the kernel."""
        return {tid: _packed(notes) for tid, notes in list(self._notes.items())}

    def _begin(self, frame: FrameType, _event: str, _arg: Any) -> Any:  # noqa: ANN401
        if frame.f_code.co_filename.startswith(self.skip):
            return None
        self._note(frame)
        return self._go_on

    def _go_on(self, frame: FrameType, event: str, _arg: Any) -> Any:  # noqa: ANN401
        if event == "line":
            self._note(frame)
        elif event == "return":
            self._note_caller(frame)
        return self._go_on if self._is_on else None

    def _note_caller(self, frame: FrameType) -> None:
        back = frame.f_back
        while back is not None and back.f_code.co_filename.startswith(self.skip):
            back = back.f_back
        if back is not None:
            self._note(back)

    def _note(self, frame: FrameType) -> None:
        try:
            notes = self._own.notes
        except AttributeError:
            notes = self._own.notes = self._notes.setdefault(threading.get_native_id(), _Notes())
        if self._left <= 0:
            self.dropped += 1
            return
        self._left -= 1
        notes.append((lib.tp_rdtsc(), frame.f_code, frame.f_lineno))


def _packed(notes: _Notes) -> Noted:
    known: dict[tuple[CodeType, int], int] = {}
    kept = notes[:]
    index = np.fromiter(
        (known.setdefault((code, line), len(known)) for _, code, line in kept), np.int32, len(kept)
    )
    tsc = np.fromiter((at for at, _, _ in kept), np.uint64, len(kept))
    lines = [Line(code.co_filename, line or 0, code.co_qualname) for code, line in known]
    return Noted(tsc, index, lines)
