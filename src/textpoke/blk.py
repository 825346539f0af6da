# SPDX-License-Identifier: Apache-2.0
"""The blk tracer's answers: every I/O call's file, bytes, latency and caller, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke import descriptors
from textpoke.call_rows import UNFINISHED, rows_of
from textpoke.spread import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from textpoke.call_rows import CallRows
    from textpoke.calls import Calls
    from textpoke.descriptors import Look
    from textpoke.libc_calls import Function
    from textpoke.spread import Spread

_READ_ROLES = ("read",)
_WRITE_ROLES = ("write", "copy")


@dataclass(frozen=True, slots=True)
class Transfers:
    """The I/O calls of a capture, a row each, in order of their start.

    Attributes:
        rows: The calls and their functions.
        fd: int64, the descriptor; of `open` and its kin the one they made, -1 if none.
        file: int64, index into `files`, -1 where nobody knows.
        files: Names of files.
        bytes: int64, moved by the call; 0 for calls that move none and for failed ones.
        failed: bool, the call returned -1. Why (errno) is not recorded.
        latency_ns: int64, -1 for calls that had not returned when the capture ended.
        caller: uint64, return address.
    """

    rows: CallRows
    fd: NDArray[np.int64]
    file: NDArray[np.int64]
    files: list[str]
    bytes: NDArray[np.int64]
    failed: NDArray[np.bool_]
    latency_ns: NDArray[np.int64]
    caller: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.fd)

    @property
    def reads(self) -> NDArray[np.bool_]:
        """Which of them take bytes in."""
        return self.rows.which(lambda f: f.role in _READ_ROLES)

    @property
    def writes(self) -> NDArray[np.bool_]:
        """Which of them put bytes out."""
        return self.rows.which(lambda f: f.role in _WRITE_ROLES)


@dataclass(frozen=True, slots=True)
class Sums:
    """Columns with one row per group, the most time first.

    Attributes:
        latency: Key, calls that returned, their time, median, 99th percentile, maximum, in ns.
        calls: int64, all calls.
        failed: int64, those that returned -1.
        bytes_read: int64, bytes taken in.
        bytes_written: int64, bytes put out.
    """

    latency: Spread
    calls: NDArray[np.int64]
    failed: NDArray[np.int64]
    bytes_read: NDArray[np.int64]
    bytes_written: NDArray[np.int64]


def transfers(calls: Calls, functions: Sequence[Function], looks: Sequence[Look] = ()) -> Transfers:
    """Everything about the I/O calls of a capture.

    Args:
        calls: All calls.
        functions: The function of each site (`libc_calls.known`).
        looks: Looks at proc/PID/fd, by time.
    """
    rows = rows_of(calls, functions)
    rows = rows.take(rows.which(lambda f: f.family == "io"))
    order = np.argsort(rows.start_ns, kind="stable")
    rows = type(rows)(calls, rows.row[order], rows.function[order], rows.functions)
    files = descriptors.follow(rows, looks)
    result = rows.results()
    makes = rows.which(lambda f: f.role in ("open", "socket"))
    fd = np.where(makes, result, rows.numbers("fd", descriptors.UNKNOWN))
    moves = rows.which(lambda f: f.role in (*_READ_ROLES, *_WRITE_ROLES))
    return Transfers(
        rows=rows,
        fd=fd,
        file=_files(rows, files, fd),
        files=files.names,
        bytes=np.where(moves & (result > 0), result, 0),
        failed=rows.is_finished & (result < 0),
        latency_ns=np.where(rows.is_finished, rows.end_ns - rows.start_ns, UNFINISHED),
        caller=rows.addresses("caller"),
    )


def sums(moved: Transfers, key: NDArray[np.int64]) -> Sums:
    """Add up calls by a key of theirs: `moved.file`, `moved.rows.function`, an index of callers."""
    returned = moved.latency_ns != UNFINISHED
    latency = spread(key, np.where(returned, moved.latency_ns, 0))
    groups, place = np.unique(key, return_inverse=True)
    finished = spread(key[returned], moved.latency_ns[returned])
    columns = [
        np.bincount(place, weights=weight, minlength=len(groups)).astype(np.int64)
        for weight in (
            np.ones(len(key)),
            moved.failed,
            np.where(moved.reads, moved.bytes, 0),
            np.where(moved.writes, moved.bytes, 0),
        )
    ]
    order = np.searchsorted(groups, latency.key)
    return Sums(_complete(finished, latency), *(column[order] for column in columns))


def _complete(finished: Spread, every: Spread) -> Spread:
    # Groups without a call that returned have a row, too.
    place = {key: index for index, key in enumerate(finished.key.tolist())}
    rows = np.array([place.get(key, UNFINISHED) for key in every.key.tolist()], dtype=np.int64)
    known = rows >= 0

    def column(values: NDArray[np.int64]) -> NDArray[np.int64]:
        result = np.zeros(len(rows), dtype=np.int64)
        result[known] = values[rows[known]]
        return result

    of_finished = (finished.count, finished.total, finished.p50, finished.p99, finished.largest)
    return type(every)(every.key, *(column(values) for values in of_finished))


def _files(rows: CallRows, files: descriptors.Files, fd: NDArray[np.int64]) -> NDArray[np.int64]:
    closes = rows.which(lambda f: f.role == "close")  # it is closed from that moment on
    found = files.at(fd, rows.start_ns - closes)
    opens = np.flatnonzero(rows.which(lambda f: f.role in ("open", "socket")))
    found[opens] = descriptors.UNKNOWN
    made = files.at(fd, rows.end_ns)
    found[opens] = made[opens]
    paths = rows.take(rows.which(lambda f: f.role == "open")).texts("path")
    of_open = np.flatnonzero(rows.which(lambda f: f.role == "open"))
    for row, path in zip(of_open.tolist(), paths, strict=True):
        if path is not None:
            found[row] = files.index(path)
    return found
