# SPDX-License-Identifier: Apache-2.0
"""What the profile tracer has counted, from the end of a capture: a table, or JSON.

As trace_stat/function of the kernel (kernel/trace/ftrace.c, function_stat_headers), with quantiles
from the histograms besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textpoke._capture_json import JsonBlock
from textpoke.decode import Clock
from textpoke.profile_rows import ProfileRow, bucket_range
from textpoke.report.layout import columns, time_text
from textpoke.report.names import escape, program_name
from textpoke.report.summary import table_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from textpoke.capture import Capture

    SortKey = Callable[[ProfileRow], float]

FORMAT_VERSION = 1
_SORT: dict[str, SortKey] = {
    "total": lambda row: row.total,
    "self": lambda row: row.self,
    "calls": lambda row: row.hits,
    "avg": lambda row: row.average,
    "p50": lambda row: row.quantile(0.5),
    "p99": lambda row: row.quantile(0.99),
    "max": lambda row: row.max,
}


def lines(capture: Capture, *, sort: str | None = None, limit: int | None = None) -> Iterator[str]:
    """The lines of the table, facts first. Raises CaptureFormat."""
    found = profile_rows(capture)
    ns = ns_per_tick(capture)
    calls, missed = sum(r.hits for r in found), sum(r.overruns for r in found)
    yield (
        f"{program_name(capture)} (pid {capture.meta.pid}), tracer profile: {calls:,} calls of "
        f"{len(found):,} functions"
    )
    yield from table_notes(capture)
    if missed:
        yield f"not measured: {missed:,} calls, deeper than the shadow stack"
    if _lost(capture):
        yield f"lost: {_lost(capture):,} calls for which a thread's table had no room"
    yield ""
    header = ["CALLS", "TOTAL", "SELF", "AVG", "P50", "P99", "MAX", "STDDEV", "FUNCTION"]
    names = {site.address: escape(f"{site.module}!{site.function}") for site in capture.meta.sites}
    rows = [
        [
            f"{row.hits:,}",
            *(
                time_text(ticks * ns)
                for ticks in (
                    row.total,
                    row.self,
                    row.average,
                    row.quantile(0.5),
                    row.quantile(0.99),
                    row.max,
                    row.deviation,
                )
            ),
            names.get(row.address, hex(row.address)),
        ]
        for row in _ordered(found, sort, limit)
    ]
    yield from columns(header, rows, left=["FUNCTION"])


def records(
    capture: Capture, *, sort: str | None = None, limit: int | None = None
) -> dict[str, object]:
    """Everything that the table shows, unrounded; times in nanoseconds. Raises CaptureFormat."""
    ns = ns_per_tick(capture)
    found = profile_rows(capture)
    sites = {site.address: site for site in capture.meta.sites}
    return {
        "version": FORMAT_VERSION,
        "capture": capture.path,
        "pid": capture.meta.pid,
        "exe": capture.meta.exe,
        "tracer": "profile",
        "calls": sum(row.hits for row in found),
        "lost": _lost(capture),
        "functions": [
            {
                "module": sites[row.address].module if row.address in sites else "",
                "function": sites[row.address].function if row.address in sites else "",
                **row.as_dict(ns),
                "histogram": [
                    [*(edge * ns for edge in bucket_range(number)), count]
                    for number, count in enumerate(row.buckets)
                    if count
                ],
            }
            for row in _ordered(found, sort, limit)
        ],
    }


def _ordered(rows: list[ProfileRow], sort: str | None, limit: int | None) -> list[ProfileRow]:
    key = _SORT[sort or "total"]
    return sorted(rows, key=lambda row: (-key(row), row.address))[:limit]


def ns_per_tick(capture: Capture) -> float:
    """Of the ticks in the rows."""
    clock = Clock(capture)
    if clock.known:
        return clock.ns_per_tick
    rate = _table(capture).get("ns_per_tick")
    return float(rate) if isinstance(rate, (int, float)) and 0 < rate < 100 else 1.0


def _table(capture: Capture) -> dict[str, Any]:
    table = capture.end.raw.get("profile") if capture.end else None
    return table if isinstance(table, dict) else {}


def _lost(capture: Capture) -> int:
    lost = _table(capture).get("lost")
    return lost if type(lost) is int and lost > 0 else 0


def profile_rows(capture: Capture) -> list[ProfileRow]:
    """What was counted, by function. Raises CaptureFormat."""
    bad = JsonBlock(capture.path, 0, b"{}").bad
    rows = _table(capture).get("rows", [])
    if not isinstance(rows, list):
        raise bad("the profile is no list")
    try:
        return [ProfileRow.from_json(row) for row in rows]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as exc:
        raise bad(f"a row of the profile: {exc}") from None
