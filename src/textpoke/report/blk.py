# SPDX-License-Identifier: Apache-2.0
"""The blk tracer's reports: I/O by file, function, caller or thread; every call as a line; JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from textpoke.blk import sums, transfers
from textpoke.call_rows import UNFINISHED
from textpoke.callers import Callers
from textpoke.descriptors import looks
from textpoke.report.analysed import Analysed, spread_record, us
from textpoke.report.layout import columns
from textpoke.report.names import escape
from textpoke.spread import histogram, spread_of_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from textpoke.blk import Transfers
    from textpoke.capture import Capture

By = Literal["file", "function", "caller", "thread"]
"""What the rows of the table are."""
TABLES: tuple[By, ...] = ("file", "function", "caller", "thread")

_UNKNOWN_FILE = "(unknown)"
_SIGNS = {
    "read": "R",
    "write": "W",
    "copy": "WR",
    "messages": "M",
    "sync": "F",
    "open": "O",
    "close": "C",
    "seek": "S",
    "truncate": "T",
    "connect": "N",
    "accept": "A",
    "socket": "O",
    "dup": "D",
}
"""What a call does, in one letter as blktrace has it: R, W and F (flush) are its own."""
_BAR_WIDTH = 40
_NS_PER_S, _NS_PER_US = 1_000_000_000, 1_000
_MOST_LINES = 4096


@dataclass(frozen=True, slots=True)
class _Report:
    analysed: Analysed
    moved: Transfers

    @classmethod
    def of(cls, capture: Capture, names: Callers) -> _Report:
        analysed = Analysed.of(capture, names)
        seen = looks(capture.notes, capture.meta.clock.monotonic_ns)
        return cls(analysed, transfers(analysed.calls, analysed.functions, seen))

    def file(self, index: int) -> str:
        return escape(self.moved.files[index]) if index >= 0 else _UNKNOWN_FILE

    def keys(self, by: By) -> tuple[NDArray[np.int64], Callable[[int], str]]:
        # What the rows of a table are told apart by, and what they are called.
        rows = self.moved.rows
        if by == "file":
            return self.moved.file, self.file
        if by == "function":
            return rows.function, lambda index: rows.functions[index].name
        if by == "thread":
            return rows.tid, self.analysed.label
        addresses, which = np.unique(self.moved.caller, return_inverse=True)
        callers = [self.analysed.address(address) for address in addresses.tolist()]
        distinct = sorted(set(callers))
        index = np.array([distinct.index(caller) for caller in callers], dtype=np.int64)
        return index[which], distinct.__getitem__

    @property
    def latency_ns(self) -> NDArray[np.int64]:
        every = self.moved.latency_ns
        finished: NDArray[np.int64] = every[every != UNFINISHED]
        return finished


def lines(capture: Capture, *, by: By = "file", limit: int | None = None) -> Iterator[str]:
    """The facts, a table and the histogram of latencies, line by line.

    Args:
        capture: Open; its tracer is "blk".
        by: What the rows are.
        limit: At most so many rows, those with the most time.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    with Callers(capture) as names:
        yield from _lines(_Report.of(capture, names), by, limit)


def _lines(report: _Report, by: By, limit: int | None) -> Iterator[str]:
    moved = report.moved
    taken, put = int(moved.bytes[moved.reads].sum()), int(moved.bytes[moved.writes].sum())
    yield from report.analysed.head(
        f"{len(moved):,} calls, {int(moved.failed.sum()):,} failed, "
        f"{taken:,} bytes read, {put:,} written"
    )
    yield ""
    header = ["CALLS", "FAILED", "READ", "WRITTEN", "TOTAL US", "P50 US", "P99 US", "MAX US"]
    title = by.upper()
    rows = [
        [
            *(f"{number:,}" for number in numbers),
            *(us(value) for value in latency[1:]),
            name,
        ]
        for name, numbers, latency in _rows(report, by, limit)
    ]
    yield from columns([*header, title], rows, left=[title])
    yield ""
    yield from _histogram(report.latency_ns)


def text(capture: Capture) -> Iterator[str]:
    """Every call as a line in the manner of ftrace's blk tracer, by time, many lines at a time.

    `TASK-TID SECONDS.MICROSECONDS: RWBS FUNCTION DESCRIPTOR (FILE) + BYTES [LATENCY us] <-CALLER`

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    with Callers(capture) as names:
        yield from _text(_Report.of(capture, names))


def _text(report: _Report) -> Iterator[str]:
    analysed, moved = report.analysed, report.moved
    yield "# tracer: blk\n#\n"
    yield f"# entries-in-buffer/entries-written: {len(moved)}/{len(moved) + analysed.lost}\n#\n"
    yield (
        f"#{'TASK-PID':>19}     {'TIMESTAMP':^16}   RWBS FUNCTION FD (FILE) + BYTES [US] <-CALLER\n"
    )
    for first in range(0, len(moved), _MOST_LINES):
        yield "".join(
            _line(report, row) for row in range(first, min(first + _MOST_LINES, len(moved)))
        )


def records(capture: Capture, *, limit: int | None = None) -> dict[str, object]:
    """Everything that the tables show, unrounded, as one JSON object.

    Args:
        capture: Open; its tracer is "blk".
        limit: At most so many rows in each table.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    with Callers(capture) as names:
        return _records(_Report.of(capture, names), limit)


def _records(report: _Report, limit: int | None) -> dict[str, object]:
    moved = report.moved
    every = next(spread_of_all(report.latency_ns).rows(), (0, 0, 0, 0, 0, 0))
    return {
        **report.analysed.facts(),
        "io_calls": len(moved),
        "failed": int(moved.failed.sum()),
        "bytes_read": int(moved.bytes[moved.reads].sum()),
        "bytes_written": int(moved.bytes[moved.writes].sum()),
        "latency": spread_record(every[1:]),
        "histogram": [
            {"from_ns": low, "below_ns": high, "calls": calls}
            for low, high, calls in histogram(report.latency_ns)
        ],
        **{f"by_{by}": [_record(*row) for row in _rows(report, by, limit)] for by in TABLES},
    }


_Row = tuple[str, tuple[int, int, int, int], tuple[int, int, int, int, int]]


def _rows(report: _Report, by: By, limit: int | None) -> Iterator[_Row]:
    # Name; calls, failed, bytes read and written; count, total, median, 99 %, maximum.
    key, name = report.keys(by)
    found = sums(report.moved, key)
    numbers = (found.calls, found.failed, found.bytes_read, found.bytes_written)
    table = zip(*(column.tolist() for column in numbers), strict=True)
    for row, (group, *latency) in list(zip(table, found.latency.rows(), strict=True))[:limit]:
        calls, failed, taken, put = row
        count, total, p50, p99, largest = latency
        yield name(group), (calls, failed, taken, put), (count, total, p50, p99, largest)


def _record(
    name: str, numbers: tuple[int, int, int, int], latency: tuple[int, int, int, int, int]
) -> dict[str, object]:
    calls, failed, taken, put = numbers
    return {
        "name": name,
        "calls": calls,
        "failed": failed,
        "bytes_read": taken,
        "bytes_written": put,
        "latency": spread_record(latency),
    }


def _line(report: _Report, row: int) -> str:
    analysed, moved = report.analysed, report.moved
    call = int(moved.rows.row[row])
    function = moved.rows.functions[int(moved.rows.function[row])]
    since_ns = int(analysed.calls.start_ns[call]) + analysed.clock.start_ns
    seconds, rest_ns = divmod(since_ns, _NS_PER_S)
    fd, latency_ns = int(moved.fd[row]), int(moved.latency_ns[row])
    took = f"[{us(latency_ns)} us]" if latency_ns != UNFINISHED else "[did not return]"
    size = f" + {int(moved.bytes[row])}" if function.role in ("read", "write", "copy") else ""
    outcome = " failed" if moved.failed[row] else size
    index = int(moved.file[row])
    file = report.file(index) if index >= 0 else "?"
    name, _, tid = analysed.label(int(analysed.calls.tid[call])).rpartition("-")
    caller = analysed.address(int(moved.caller[row]))
    return (
        f"{name:>16}-{tid:<7} {seconds:>6}.{rest_ns // _NS_PER_US:06d}: "
        f"{_SIGNS[function.role]:>4} {function.name} {fd} ({file})"
        f"{outcome} {took} <-{caller}\n"
    )


def _histogram(latency_ns: NDArray[np.int64]) -> Iterator[str]:
    rows = histogram(latency_ns)
    most = max((calls for _, _, calls in rows), default=1)
    yield from columns(
        ["FROM US", "BELOW US", "CALLS", ""],
        [
            [us(low), us(high), f"{calls:,}", "#" * -(-calls * _BAR_WIDTH // most)]
            for low, high, calls in rows
        ],
        left=[""],
    )
