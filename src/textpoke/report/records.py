# SPDX-License-Identifier: Apache-2.0
"""The table's numbers as one JSON object, for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from textpoke.decode import Clock
from textpoke.report.stacks import stack_records
from textpoke.report.times import ordered

if TYPE_CHECKING:
    from textpoke.capture import Capture
    from textpoke.report.counts import Counts
    from textpoke.report.times import SortKey, Times

FORMAT_VERSION = 1
_KNOWN = ("site", "calls")


def records(capture: Capture, counts: Counts, *, limit: int | None = None) -> dict[str, object]:
    """Everything that the table shows, unrounded; times in nanoseconds since the start.

    Args:
        capture: Gives the names.
        counts: Gives the numbers.
        limit: At most so many functions; None for all that were called.
    """
    meta, end = capture.meta, capture.end
    return {
        "version": FORMAT_VERSION,
        "capture": capture.path,
        "pid": meta.pid,
        "exe": meta.exe,
        "command": meta.command,
        "tracer": meta.tracer,
        "mode": meta.mode,
        "reason": end.reason if end else None,
        "cut_off": capture.cut_off,
        "start_realtime_ns": meta.clock.realtime_ns,
        "duration_ns": counts.duration_ns,
        "on_ns": counts.on_ns,
        "time_known": counts.time_known,
        "hold_ns": end.hold_ns if end else None,
        "events": counts.events,
        "calls": counts.calls,
        "unknown": counts.unknown,
        "lost": counts.lost,
        "lost_no_ring": counts.lost_no_ring,
        "threads": _threads(capture, counts),
        "stacks": stack_records(capture, Clock(capture)),
        "functions": _functions(capture, counts, limit),
    }


def times_records(
    capture: Capture,
    counts: Counts,
    found: Times,
    *,
    sort: SortKey = "total",
    limit: int | None = None,
) -> dict[str, object]:
    """The same of a capture with exits: functions have times, and `pairs` says what had no other.

    Args:
        capture: Gives the names.
        counts: Gives the numbers of events.
        found: Gives the calls and their times.
        sort: The number that decides the order.
        limit: At most so many functions; None for all that were called.
    """
    per_thread: dict[int, dict[str, int]] = {}
    for tid, functions in found.threads.items():
        for function in functions:
            per_thread.setdefault(function.site, {})[str(tid)] = function.calls
    rows = [
        {
            **_site(capture, function.site),
            "calls": function.calls,
            "share": function.calls / found.calls,
            "calls_per_s": counts.rate(function.calls),
            **{name: value for name, value in asdict(function).items() if name not in _KNOWN},
            "threads": per_thread[function.site],
        }
        for function in ordered(found.functions, sort, limit)
    ]
    pairs = asdict(found.counts)
    del pairs["lost"]  # is there already, as END says
    return {
        **records(capture, counts, limit=0),
        "calls": found.calls,
        "pairs": pairs,
        "functions": rows,
    }


def _site(capture: Capture, site: int) -> dict[str, object]:
    if site < 0:
        return {"module": None, "function": None, "address": None}
    name = capture.meta.sites[site]
    return {"module": name.module, "function": name.function, "address": name.address}


def _threads(capture: Capture, counts: Counts) -> list[dict[str, object]]:
    return [
        {
            "tid": thread.tid,
            "name": capture.threads.get(thread.tid),
            "calls": thread.calls.total,
            "unknown": thread.unknown,
            "lost": thread.lost,
        }
        for thread in counts.threads
    ]


def _functions(capture: Capture, counts: Counts, limit: int | None) -> list[dict[str, object]]:
    per_thread: dict[int, dict[str, int]] = {}
    for thread in counts.threads:
        for site, calls in thread.calls.by_site().items():
            per_thread.setdefault(site, {})[str(thread.tid)] = calls
    return [
        {
            **_site(capture, site),
            "calls": calls,
            "share": calls / counts.calls,
            "calls_per_s": counts.rate(calls),
            "first_ns": first_ns,
            "last_ns": last_ns,
            "threads": per_thread[site],
        }
        for site, calls, first_ns, last_ns in counts.everyone.rows(limit)
    ]
