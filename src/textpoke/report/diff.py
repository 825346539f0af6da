# SPDX-License-Identifier: Apache-2.0
"""The difference of two captures as a table, or as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from textpoke.report.difference import ordered
from textpoke.report.layout import columns, time_text
from textpoke.report.measured import UNKNOWN
from textpoke.report.names import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from textpoke.report.difference import Change, Difference, DiffSort, FunctionChange
    from textpoke.report.measured import Name, Numbers

FORMAT_VERSION = 1
_TITLES = ("TOTAL", "SELF", "AVG")
_MANY = 100


def diff_notes(found: Difference) -> list[str]:
    """What a reader has to know before the table, one line each."""
    lines: list[str] = []
    if not found.has_times:
        lines.append("only calls are compared: durations need function_graph or profile in both")
    if found.per_second:
        lines.append("the recordings have different lengths: calls and times are per second")
    if found.has_times and not found.time_known:
        lines.append("no time scale in one of them: times are TSC ticks where it is missing")
    return lines


def diff_table(
    found: Difference, *, sort: DiffSort = "total", limit: int | None = None
) -> Iterator[str]:
    """The lines of the table, the header first: before, after and change of each number."""
    per_second = "/S" if found.per_second else ""
    titles = [f"CALLS{per_second}", "AFTER", "CHANGE", "%"]
    for title in _TITLES if found.has_times else ():
        titles += [title if title == "AVG" else f"{title}{per_second}", "AFTER", "CHANGE", "%"]
    rows = [_cells(found, row) for row in ordered(found, sort, limit)]
    return columns([*titles, "FUNCTION"], rows, left=["FUNCTION"])


def diff_records(
    found: Difference, *, sort: DiffSort = "total", limit: int | None = None
) -> dict[str, object]:
    """Everything that the table shows, unrounded, and the sums themselves; times in ns."""
    return {
        "version": FORMAT_VERSION,
        "per_second": found.per_second,
        "has_times": found.has_times,
        "time_known": found.time_known,
        "functions": [_record(row) for row in ordered(found, sort, limit)],
    }


def _record(row: FunctionChange) -> dict[str, object]:
    module, function = (None, None) if row.name == UNKNOWN else row.name
    changes = {
        name: {**asdict(change), "change": change.absolute, "percent": change.percent}
        for name in ("calls", "total_ns", "self_ns", "average_ns")
        for change in [getattr(row, name)]
    }
    return {
        "module": module,
        "function": function,
        "presence": row.presence,
        **changes,
        "before": _sums(row.raw_before),
        "after": _sums(row.raw_after),
    }


def _sums(numbers: Numbers) -> dict[str, float]:
    return {name: getattr(numbers, name) for name in ("calls", "total_ns", "self_ns", "average_ns")}


def _cells(found: Difference, row: FunctionChange) -> list[str]:
    def number(value: float) -> str:
        whole = not found.per_second or abs(value) >= _MANY
        return f"{value:,.0f}" if whole else f"{value:,.1f}"

    def duration(ns: float) -> str:
        return time_text(ns, known=found.time_known)

    cells = _four(row, row.calls, number)
    if found.has_times:
        for change in (row.total_ns, row.self_ns):
            cells += _four(row, change, duration)
        cells += _four(row, row.average_ns, duration, is_sum=False)
    return [*cells, _function(row.name, row.presence)]


def _four(
    row: FunctionChange, change: Change, text: Callable[[float], str], *, is_sum: bool = True
) -> list[str]:
    # A sum that has come or gone is a change of its size; an average is none.
    is_both = row.presence == "both"
    is_comparable = is_both or (is_sum and row.presence in ("new", "gone"))
    sign = "+" if change.absolute > 0 else ""
    return [
        text(change.before) if row.presence in ("both", "gone", "only traced before") else "-",
        text(change.after) if row.presence in ("both", "new", "only traced after") else "-",
        f"{sign}{text(change.absolute)}" if is_comparable else "-",
        f"{change.percent:+,.1f}" if is_both and change.percent is not None else "-",
    ]


def _function(name: Name, presence: str) -> str:
    function = name[1] if name == UNKNOWN else "!".join(name)
    return escape(function) + ("" if presence == "both" else f"  ({presence})")
