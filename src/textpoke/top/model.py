# SPDX-License-Identifier: Apache-2.0
"""Rates, times and histories of functions, from counters that somebody reads now and then; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from textpoke.profile_rows import BUCKETS, bucket_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HISTORY_S = 60.0
_FEWEST_POINTS, _MOST_POINTS = 10, 600
_MIDDLES = np.array([sum(bucket_range(number)) / 2 for number in range(BUCKETS)])


class Function(NamedTuple):
    """A function by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}!{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What has been counted up to a moment: columns, a row for each function that was called.

    Attributes:
        at_s: The moment, on a clock that does not jump.
        function: int64, ascending: index into the list of functions, which only grows.
        calls: int64.
        timed: int64, calls of which the time is known.
        total: int64, their time in ticks.
        self: int64, of that, not in calls below.
        buckets: uint32, shape (n, BUCKETS), modulo 2**32: how many took how long.
        cost_ns: What tracing has cost the target.
        cpu_ns: CPU time that the target has used.
        lost: Calls that were not counted: no room.
        missed: Calls whose time is not known: their return could not be waited for.
    """

    at_s: float
    function: NDArray[np.int64]
    calls: NDArray[np.int64]
    timed: NDArray[np.int64]
    total: NDArray[np.int64]
    self: NDArray[np.int64]
    buckets: NDArray[np.uint32]
    cost_ns: float = 0.0
    cpu_ns: int = 0
    lost: int = 0
    missed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What there is to show: columns, a row for each function; times in nanoseconds.

    Attributes:
        seconds: Length of the interval that rates are of; 0 before there was one.
        calls: int64, since the start.
        rate: Calls a second.
        total: Time in calls as a share of one core; more than 1 where threads add up.
        self: Likewise, without calls below that are measured too.
        average: Of the interval's calls; NaN where the time of none is known. So are p50 and p99.
        history: float32, shape (n, points): calls a second, the latest last.
        cores: CPU time that the target used, as a share of one core.
        overhead: What tracing cost, as a share of that CPU time.
        lost: Calls that were not counted, since the start.
        missed: Calls whose time is not known, since the start.
    """

    seconds: float
    calls: NDArray[np.int64]
    rate: NDArray[np.float64]
    total: NDArray[np.float64]
    self: NDArray[np.float64]
    average: NDArray[np.float64]
    p50: NDArray[np.float64]
    p99: NDArray[np.float64]
    history: NDArray[np.float32]
    cores: float = 0.0
    overhead: float = 0.0
    lost: int = 0
    missed: int = 0


@dataclass(slots=True, eq=False)
class _Growth:
    """What came between two samples, a row for each function that was called by the later one."""

    calls: NDArray[np.int64]
    timed: NDArray[np.int64]
    total: NDArray[np.int64]
    self: NDArray[np.int64]
    buckets: NDArray[np.uint32]


@dataclass(slots=True)
class Model:
    """Makes a table of each sample and the one before it.

    Args:
        ns_per_tick: Of the time stamp counter.
        interval_s: Seconds between samples, about.

    Attributes:
        functions: All that may be called; it only grows.
        table: The latest.
    """

    ns_per_tick: float
    interval_s: float = 1.0
    functions: list[Function] = field(default_factory=list)
    table: Table = field(init=False)
    _first: Sample | None = field(init=False, default=None)
    _sample: Sample | None = field(init=False, default=None)
    _growth: _Growth | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        no = np.empty(0)
        history = np.zeros((0, self.points), np.float32)
        self.table = Table(0.0, np.empty(0, np.int64), no, no, no, no, no, no, history)

    @property
    def points(self) -> int:
        """Points of a history."""
        wanted = round(HISTORY_S / self.interval_s)
        return min(max(wanted, _FEWEST_POINTS), _MOST_POINTS)

    @property
    def history_s(self) -> float:
        """Seconds that a history reaches back."""
        return self.points * self.interval_s

    def step(self, sample: Sample, functions: Sequence[Function]) -> Table:
        """Take the next sample; the first one gives no rates.

        Args:
            sample: Later than the one before.
            functions: All that may be called: those of the step before, and perhaps more.
        """
        self.functions.extend(functions[len(self.functions) :])
        before, self._sample = self._sample, sample
        if before is None:
            self._first = before = sample
        self._growth = _growth(before, sample)
        self.table = self._table(before, sample, self._growth)
        return self.table

    def histogram(self, function: int, *, of_all: bool = False) -> NDArray[np.uint32]:
        """How many calls of a function took how long in the last interval, or `of_all`.

        Returns:
            uint32, shape (BUCKETS,); `edges_ns` has their edges.
        """
        nothing = np.zeros(BUCKETS, np.uint32)
        if self._sample is None or self._growth is None:
            return nothing
        row = int(np.searchsorted(self._sample.function, function))
        if row == len(self._sample.function) or self._sample.function[row] != function:
            return nothing
        found: NDArray[np.uint32] = (self._sample if of_all else self._growth).buckets[row]
        return found

    def edges_ns(self, bucket: int) -> tuple[float, float]:
        """[low, high) of a bucket in nanoseconds."""
        low, high = bucket_range(bucket)
        return low * self.ns_per_tick, high * self.ns_per_tick

    def _table(self, before: Sample, sample: Sample, growth: _Growth) -> Table:
        seconds = max(sample.at_s - before.at_s, 0.0)
        per_s = 1 / seconds if seconds else 0.0
        place, count = sample.function, len(self.functions)

        def spread(values: NDArray[Any], empty: float = 0.0) -> NDArray[np.float64]:
            column = np.full(count, empty)
            column[place] = values
            return column

        calls = np.zeros(count, np.int64)
        calls[place] = sample.calls
        rate = spread(growth.calls * per_s)
        with np.errstate(invalid="ignore", divide="ignore"):
            average = growth.total * self.ns_per_tick / growth.timed
        average[growth.timed == 0] = np.nan
        share = self.ns_per_tick * per_s / 1e9
        timed = np.flatnonzero(growth.timed)  # few of very many, as a rule
        recent = growth.buckets[timed]
        p50, p99 = np.full((2, len(place)), np.nan)
        p50[timed], p99[timed] = quantiles(recent, 0.5, 0.99) * self.ns_per_tick
        cpu_ns = max(sample.cpu_ns - before.cpu_ns, 0)
        cost_ns = max(sample.cost_ns - before.cost_ns, 0.0)
        return Table(
            seconds,
            calls,
            rate,
            spread(growth.total * share),
            spread(growth.self * share),
            spread(average, np.nan),
            spread(p50, np.nan),
            spread(p99, np.nan),
            self._history(rate, seconds),
            cores=cpu_ns * per_s / 1e9,
            overhead=min(cost_ns / cpu_ns, 1.0) if cpu_ns else 0.0,
            lost=sample.lost,
            missed=sample.missed,
        )

    def _history(self, rate: NDArray[np.float64], seconds: float) -> NDArray[np.float32]:
        before = self.table.history
        after = np.zeros((len(rate), self.points), np.float32)
        if seconds:
            after[: len(before), :-1] = before[:, 1:]
            after[:, -1] = rate
        return after


def quantiles(buckets: NDArray[np.uint32], *shares: float) -> NDArray[np.float64]:
    """For each share and histogram the ticks that so many of its calls did not exceed.

    Args:
        buckets: Shape (n, BUCKETS).
        shares: From 0 to 1.

    Returns:
        Shape (len(shares), n); NaN where there was no call.
    """
    sums = np.cumsum(buckets, axis=1, dtype=np.int64)
    total = sums[:, -1]
    found = np.full((len(shares), len(total)), np.nan)
    for row, share in zip(found, shares, strict=True):
        wanted = np.maximum(np.ceil(share * total), 1)
        number = np.argmax(sums >= wanted[:, None], axis=1)
        row[total > 0] = _MIDDLES[number][total > 0]
    return found


def _growth(before: Sample, sample: Sample) -> _Growth:
    row = np.searchsorted(before.function, sample.function)
    row[row == len(before.function)] = 0
    known = np.zeros(len(row), np.bool_)
    if len(before.function):
        known = before.function[row] == sample.function

    def more(now: NDArray[np.int64], then: NDArray[np.int64]) -> NDArray[np.int64]:
        found = now.copy()
        found[known] -= then[row[known]]
        return np.maximum(found, 0)

    buckets = sample.buckets.copy()
    buckets[known] -= before.buckets[row[known]]
    # Read while its thread writes, a bucket may seem to have shrunk by a call.
    buckets[buckets > np.uint32(1 << 31)] = 0
    return _Growth(
        more(sample.calls, before.calls),
        more(sample.timed, before.timed),
        more(sample.total, before.total),
        more(sample.self, before.self),
        buckets,
    )
