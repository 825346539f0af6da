# SPDX-License-Identifier: Apache-2.0
"""The begins and ends of one thread's calls in their order, properly nested, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.calls import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.export.source import Source

_EARLIEST = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Timeline:
    """Begins and ends, two for every call; times never go back.

    A call whose end is not known ends at the last moment that anything is known of inside of it.

    Attributes:
        row: int64, row of the call in `Calls`, by order of begins and ends.
        is_end: bool, whether it ends there.
        time_ns: int64, when.
        begin_ns: int64, by row of the call: when it begins.
        end_ns: int64, by row of the call: when it ends.
        is_open: bool, by row of the call: its end is not known.
    """

    row: NDArray[np.int64]
    is_end: NDArray[np.bool_]
    time_ns: NDArray[np.int64]
    begin_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    is_open: NDArray[np.bool_]


def timelines(source: Source, tid: int) -> Iterator[tuple[Calls, Timeline]]:
    """The calls of one thread, piece by piece, with their begins and ends.

    Raises:
        KeyError: no such thread.
        CaptureFormat: the file changed while it was read.
    """
    last_ns = _EARLIEST
    for calls in source.calls(tid):
        if len(calls):
            line = timeline(calls, last_ns)
            last_ns = int(line.time_ns[-1])
            yield calls, line


def timeline(calls: Calls, since_ns: int = _EARLIEST) -> Timeline:
    """The begins and ends of calls of one thread, none of them before `since_ns`."""
    count = len(calls)
    rows = np.arange(count, dtype=np.int64)
    depth = calls.depth.astype(np.int64)
    # Before a call begins, all calls before it have begun, and all but its callers have ended.
    # Before it ends, all that are inside of it have done both.
    begins = 2 * rows - depth
    ends = 2 * (rows + _sizes(calls)) - depth - 1
    row = np.empty(2 * count, np.int64)
    row[begins] = row[ends] = rows
    is_end = np.zeros(2 * count, bool)
    is_end[ends] = True
    is_open = calls.end_ns == UNFINISHED
    time_ns = np.empty(2 * count, np.int64)
    time_ns[begins] = calls.start_ns
    time_ns[ends] = np.where(is_open, _EARLIEST, calls.end_ns)
    # Clocks of two cores may differ by some nanoseconds: what comes later is not earlier.
    time_ns[:1] = np.maximum(time_ns[:1], since_ns)
    np.maximum.accumulate(time_ns, out=time_ns)
    return Timeline(row, is_end, time_ns, time_ns[begins], time_ns[ends], is_open)


def _sizes(calls: Calls) -> NDArray[np.int64]:
    # Calls inside of each, itself included: they are the rows from it on. From the inside out.
    size = np.ones(len(calls), np.int64)
    inner = np.flatnonzero(calls.parent >= 0)
    depth = calls.depth[inner]
    order = inner[np.argsort(depth, kind="stable")[::-1]]
    bounds = np.flatnonzero(np.diff(calls.depth[order])) + 1
    for level in np.split(order, bounds):
        np.add.at(size, calls.parent[level], size[level])
    return size
