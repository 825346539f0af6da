# SPDX-License-Identifier: Apache-2.0
"""Calls per function, or per thread and function, and how long they took, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from textpoke.report.layout import columns, time_text
from textpoke.report.names import site_label, thread_label
from textpoke.report.times import ordered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.capture import Capture
    from textpoke.report.counts import Counts
    from textpoke.report.times import FunctionTimes, SortKey, Times

_MOST_THREAD_COLUMNS = 4


def table(
    capture: Capture,
    counts: Counts,
    *,
    by: Literal["function", "thread"] = "function",
    limit: int | None = None,
) -> Iterator[str]:
    """The lines of the table, the header first; functions that were never called are left out.

    Args:
        capture: Gives the names.
        counts: Gives the numbers.
        by: "function" for a row per function, with a column per thread when there are two to
            four; "thread" for a row per thread and function.
        limit: At most so many rows (per thread); None for all.
    """
    if by == "thread":
        return _by_thread(capture, counts, limit)
    return _by_function(capture, counts, limit)


def times_table(
    capture: Capture,
    found: Times,
    *,
    by: Literal["function", "thread"] = "function",
    sort: SortKey = "total",
    limit: int | None = None,
) -> Iterator[str]:
    """The lines of the table of a capture with exits, the header first.

    Args:
        capture: Gives the names.
        found: Gives the numbers.
        by: "function" for all threads together, "thread" for a row per thread and function.
        sort: The column that decides the order.
        limit: At most so many rows (per thread); None for all.
    """
    titles = ["CALLS", "TOTAL", "SELF", "AVG", "P50", "P99", "MAX", "STDDEV", "FUNCTION"]
    if by == "function":
        rows = [_times(capture, f, found) for f in ordered(found.functions, sort, limit)]
        return columns(titles, rows, left=["FUNCTION"])
    rows = [
        [thread_label(capture, tid), *_times(capture, function, found)]
        for tid, functions in found.threads.items()
        for function in ordered(functions, sort, limit)
    ]
    return columns(["THREAD", *titles], rows, left=["THREAD", "FUNCTION"])


def _times(capture: Capture, function: FunctionTimes, found: Times) -> list[str]:
    numbers = (
        function.total_ns,
        function.self_ns,
        function.average_ns,
        function.p50_ns,
        function.p99_ns,
        function.max_ns,
        function.stddev_ns,
    )
    is_known = function.calls > function.unfinished
    cells = [time_text(ns, known=found.known) if is_known else "-" for ns in numbers]
    return [f"{function.calls:,}", *cells, site_label(capture, function.site)]


def _by_function(capture: Capture, counts: Counts, limit: int | None) -> Iterator[str]:
    called = [thread for thread in counts.threads if thread.calls.total]
    shown = called if 1 < len(called) <= _MOST_THREAD_COLUMNS else []
    labels = [thread_label(capture, thread.tid) for thread in shown]
    per_thread = [thread.calls.by_site() for thread in shown]
    header = ["CALLS", "SHARE", "CALLS/S", "FIRST", "LAST", *labels, "FUNCTION"]
    rows = [
        [
            *_cells(counts, calls, first_ns, last_ns),
            *(f"{of_thread.get(site, 0):,}" for of_thread in per_thread),
            site_label(capture, site),
        ]
        for site, calls, first_ns, last_ns in counts.everyone.rows(limit)
    ]
    return columns(header, rows, left=["FUNCTION"])


def _by_thread(capture: Capture, counts: Counts, limit: int | None) -> Iterator[str]:
    header = ["THREAD", "CALLS", "SHARE", "CALLS/S", "FIRST", "LAST", "FUNCTION"]
    rows = [
        [
            thread_label(capture, thread.tid),
            *_cells(counts, calls, first_ns, last_ns),
            site_label(capture, site),
        ]
        for thread in counts.threads
        for site, calls, first_ns, last_ns in thread.calls.rows(limit)
    ]
    return columns(header, rows, left=["THREAD", "FUNCTION"])


def _cells(counts: Counts, calls: int, first_ns: int, last_ns: int) -> list[str]:
    rate = counts.rate(calls)
    return [
        f"{calls:,}",
        f"{calls / counts.calls:.2%}",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        f"{first_ns / 1e9:.6f}",
        f"{last_ns / 1e9:.6f}",
    ]
