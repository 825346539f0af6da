# SPDX-License-Identifier: Apache-2.0
"""What every format is made of: the calls of a capture, thread by thread.

The calls of one thread are in memory at a time (60 bytes each); of threads without exits a part.
What is made of them is made piece by piece.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from textpoke._errors import NothingToExport
from textpoke._native import ffi, lib
from textpoke.calls import UNFINISHED, Calls, Pairing, has_exits, site_names
from textpoke.decode import ENTRY, Decoder
from textpoke.report.names import escape, function_labels, program_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from textpoke.capture import Capture
    from textpoke.decode import Events

PIECE = 1 << 18
"""Calls of a piece; it ends where a call has no caller, so that a piece may be larger."""
PART = 1 << 16
"""Rows that are turned into text or packets at once."""


class Source:
    """The calls of one open capture.

    Attributes:
        capture: The capture.
        decoder: Of the same capture.
        has_exits: Whether calls have ends; without them they are moments, and nothing is known of
            who called whom.
        labels: By site index, functions outside of the main program with their module in brackets;
            the last one is of index -1.
        program: Basename of the target's program.
        pid: Of the target.

    Args:
        capture: Open.
        progress: Told how many calls were written since the last time.

    Raises:
        NothingToExport: the capture holds counts and no events.
    """

    def __init__(self, capture: Capture, progress: Callable[[int], None] | None = None) -> None:
        tracer = capture.meta.tracer
        if tracer in ("profile", "branch") and not capture.events:
            raise NothingToExport(capture.path, tracer)
        self.capture = capture
        self.decoder = Decoder(capture)
        self.has_exits = has_exits(capture)
        self.labels = function_labels(capture)
        self.program = program_name(capture)
        self.pid = capture.meta.pid
        self._progress = progress

    def tids(self) -> tuple[int, ...]:
        """Threads with events, in order of appearance."""
        return self.decoder.tids

    def thread_name(self, tid: int) -> str:
        """A thread's name; the program's for a thread whose name nobody knows."""
        return escape(self.capture.threads.get(tid) or self.program)

    def calls(self, tid: int) -> Iterator[Calls]:
        """The calls of one thread in order of their start, in pieces with all callers in them.

        Raises:
            KeyError: no such thread.
            CaptureFormat: the file changed while it was read.
        """
        if self.has_exits:
            calls = Pairing(self.capture, self.decoder).columns([tid])
            yield from _pieces(_without_stale(calls, self._losses_ns(tid)))
            return
        names = site_names(self.capture)
        for events in self.decoder.thread(tid):
            yield _moments(events, names)

    def parts(self, rows: int) -> Iterator[slice]:
        """Slices of so many rows, `PART` at a time; each is reported as written."""
        for start in range(0, rows, PART):
            stop = min(start + PART, rows)
            yield slice(start, stop)
            self.wrote(stop - start)

    def wrote(self, calls: int) -> None:
        """Report so many calls as written."""
        if self._progress:
            self._progress(calls)

    @property
    def lost(self) -> int:
        """Events that are missing, as END says, or as the blocks say if that is more."""
        end = self.capture.end
        lost = sum(block.lost for block in self.capture.events)
        return max(lost, end.lost) + end.lost_no_ring if end else lost

    def losses(self) -> list[tuple[int, int]]:
        """(time in ns, events lost) by time, of all threads."""
        lossy = {block.tid for block in self.capture.events if block.lost}
        return sorted(
            (loss.ts_ns, loss.count)
            for tid in lossy
            for events in self.decoder.thread(tid)
            for loss in events.losses
        )

    def _losses_ns(self, tid: int) -> NDArray[np.int64]:
        if not any(block.lost for block in self.capture.events if block.tid == tid):
            return np.empty(0, np.int64)
        found = [loss.ts_ns for events in self.decoder.thread(tid) for loss in events.losses]
        return np.sort(np.array(found, np.int64))


def _pieces(calls: Calls) -> Iterator[Calls]:
    tops = np.flatnonzero(calls.depth == 0)
    cuts = tops[np.searchsorted(tops, np.arange(PIECE, tops[-1] + 1, PIECE))] if len(tops) else tops
    bounds = np.unique([0, *cuts.tolist(), len(calls)]).tolist()
    for start, stop in pairwise(bounds):
        part = slice(start, stop)
        parent = calls.parent[part]
        yield replace(
            calls,
            tid=calls.tid[part],
            site=calls.site[part],
            start_ns=calls.start_ns[part],
            end_ns=calls.end_ns[part],
            self_ns=calls.self_ns[part],
            depth=calls.depth[part],
            parent=np.where(parent < 0, parent, parent - start),
            entry_data=calls.entry_data[part],
            exit_data=calls.exit_data[part],
        )


def _moments(events: Events, names: list[str]) -> Calls:
    rows = np.flatnonzero(events.type == ENTRY)
    none = np.full(len(rows), -1, np.int64)
    return Calls(
        tid=events.tid[rows],
        site=events.site[rows],
        start_ns=events.ts_ns[rows],
        end_ns=np.full(len(rows), UNFINISHED, np.int64),
        self_ns=np.zeros(len(rows), np.int64),
        depth=np.zeros(len(rows), np.uint32),
        parent=none,
        entry_data=none,
        exit_data=none,
        words=np.empty(0, np.uint64),
        names=names,
    )


def _without_stale(calls: Calls, losses_ns: NDArray[np.int64]) -> Calls:
    # A call without an end that began before a loss may have ended in it: the calls behind the
    # loss stand under the nearest caller whose end is known, not under it. Else every loss would
    # leave a call open for ever, and the stacks would grow by one storey at each.
    if not len(losses_ns) or not len(calls):
        return calls
    parent = calls.parent
    # Clocks of two cores may differ: what is behind a loss stays behind it.
    era = np.maximum.accumulate(np.searchsorted(losses_ns, calls.start_ns, side="right"))
    is_open = calls.end_ns == UNFINISHED
    is_stale = (parent >= 0) & is_open[parent] & (era[parent] != era)
    finished = _nearest(parent, ~is_open)
    parent = np.where(is_stale, finished, parent)
    depth = np.empty(len(calls), np.uint32)
    lib.tp_call_depths(
        ffi.from_buffer("int64_t[]", parent),
        ffi.from_buffer("uint32_t[]", depth, require_writable=True),
        len(parent),
    )
    return replace(calls, parent=parent, depth=depth)


def _nearest(parent: NDArray[np.int64], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    # Of each row the nearest ancestor that is wanted, -1 for none: every step doubles its length.
    found = parent.copy()
    waiting = np.flatnonzero((found >= 0) & ~wanted[found])
    while len(waiting):
        found[waiting] = found[found[waiting]]
        chosen = found[waiting]
        waiting = waiting[(chosen >= 0) & ~wanted[chosen]]
    return found
