# SPDX-License-Identifier: Apache-2.0
"""Two captures compared function by function: before, after, and what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from textpoke.report.measured import Numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from textpoke.report.measured import Measured, Name

DiffSort = Literal["total", "self", "calls", "avg"]
DIFF_SORTS: tuple[DiffSort, ...] = ("total", "self", "calls", "avg")
Presence = Literal["both", "new", "gone", "only traced after", "only traced before"]
_SAME_LENGTH = 0.01
"""Recordings whose lengths differ by no more are compared as they are."""
_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Change:
    """One number of a function, before and after."""

    before: float
    after: float

    @property
    def absolute(self) -> float:
        """What it has grown by."""
        return self.after - self.before

    @property
    def percent(self) -> float | None:
        """The same in percent of what it was; None where that was 0."""
        return 100 * self.absolute / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """A function's numbers before and after.

    Attributes:
        name: Module and function.
        presence: "both"; "new" or "gone": it was traced in both recordings and called in one;
            "only traced ...": in the other it could not have been seen.
        calls, total_ns, self_ns: Per second of recording where the difference says so.
        average_ns: Of a call.
        raw_before, raw_after: The sums themselves.
    """

    name: Name
    presence: Presence
    calls: Change
    total_ns: Change
    self_ns: Change
    average_ns: Change
    raw_before: Numbers
    raw_after: Numbers


@dataclass(frozen=True, slots=True)
class Difference:
    """Two captures compared.

    Attributes:
        per_second: The recordings have other lengths, so that rates are compared.
        has_times: Both have durations; else only `calls` means anything.
        time_known: False when a time is really TSC ticks.
        functions: All that were called in one of them.
    """

    per_second: bool
    has_times: bool
    time_known: bool
    functions: list[FunctionChange]


_SORTERS: dict[str, Callable[[FunctionChange], float]] = {
    "total": lambda row: abs(row.total_ns.absolute),
    "self": lambda row: abs(row.self_ns.absolute),
    "calls": lambda row: abs(row.calls.absolute),
    "avg": lambda row: abs(row.average_ns.absolute),
}


def difference(before: Measured, after: Measured) -> Difference:
    """Compare two captures by the names of their functions."""
    lengths = before.duration_ns, after.duration_ns
    per_second = min(lengths) > 0 and max(lengths) > (1 + _SAME_LENGTH) * min(lengths)
    scale = tuple(_NS_PER_S / length if per_second else 1.0 for length in lengths)
    return Difference(
        per_second,
        before.has_times and after.has_times,
        before.time_known and after.time_known,
        [
            _change(name, before, after, scale)
            for name in dict.fromkeys([*before.functions, *after.functions])
        ],
    )


def ordered(
    found: Difference, sort: DiffSort = "total", limit: int | None = None
) -> list[FunctionChange]:
    """Functions by how much one of their numbers has changed, up or down; at most `limit`."""
    key = _SORTERS[sort]
    rows = sorted(found.functions, key=lambda r: (-key(r), -abs(r.calls.absolute), r.name))
    return rows[:limit]


def _change(
    name: Name, before: Measured, after: Measured, scale: tuple[float, ...]
) -> FunctionChange:
    was, now = before.functions.get(name, Numbers()), after.functions.get(name, Numbers())

    def scaled(part: str) -> Change:
        return Change(getattr(was, part) * scale[0], getattr(now, part) * scale[1])

    return FunctionChange(
        name,
        _presence(name, before, after),
        scaled("calls"),
        scaled("total_ns"),
        scaled("self_ns"),
        Change(was.average_ns, now.average_ns),
        was,
        now,
    )


def _presence(name: Name, before: Measured, after: Measured) -> Presence:
    if name not in before.functions:
        return "new" if name in before.traced else "only traced after"
    if name not in after.functions:
        return "gone" if name in after.traced else "only traced before"
    return "both"
