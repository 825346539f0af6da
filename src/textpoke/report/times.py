# SPDX-License-Identifier: Apache-2.0
"""How long the calls of each function took: the numbers of the reports of captures with exits.

The calls themselves are not kept, so memory does not grow with them: only with their different
durations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from textpoke.calls import PairCounts, Pairing, Sums
from textpoke.decode import Decoder
from textpoke.report.durations import Durations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from textpoke.capture import Capture

SortKey = Literal["total", "self", "calls", "avg", "p50", "p99", "max"]
SORT_KEYS: tuple[SortKey, ...] = ("total", "self", "calls", "avg", "p50", "p99", "max")


@dataclass(frozen=True, slots=True)
class FunctionTimes:
    """The calls of one function; times in nanoseconds, of finished calls.

    A call that is inside of another call of the same function (recursion) is not in `total_ns`,
    so that no moment counts twice: a function's total is at most the length of the recording, per
    thread. Everything else is of every call: with recursion `average_ns` times the number of
    calls is more than `total_ns`.

    Attributes:
        site: Index into the capture's sites, -1 for addresses that no site has.
        calls: Calls that began, or were recorded at their end.
        unfinished: Those of them without an end.
        total_ns: From entry to exit.
        self_ns: Without the time in other recorded functions.
        average_ns: Of one call.
        p50_ns: The smallest duration that half of the calls do not exceed; exact.
        p99_ns: The smallest one that 99 % of the calls do not exceed; exact.
        min_ns: The shortest call.
        max_ns: The longest.
        stddev_ns: Standard deviation.
    """

    site: int
    calls: int
    unfinished: int
    total_ns: int
    self_ns: int
    average_ns: float
    p50_ns: int
    p99_ns: int
    min_ns: int
    max_ns: int
    stddev_ns: float


@dataclass(frozen=True, slots=True)
class Times:
    """Everything about durations.

    Attributes:
        functions: Of all threads together.
        threads: By thread id.
        counts: What could not be paired.
        durations: Of all threads together, by site.
        known: False when times are really TSC ticks.
    """

    functions: list[FunctionTimes]
    threads: dict[int, list[FunctionTimes]]
    counts: PairCounts
    durations: Durations
    known: bool

    @property
    def calls(self) -> int:
        """All calls, finished or not."""
        return sum(function.calls for function in self.functions)


_SORTERS: dict[str, Callable[[FunctionTimes], float]] = {
    "total": lambda row: row.total_ns,
    "self": lambda row: row.self_ns,
    "calls": lambda row: row.calls,
    "avg": lambda row: row.average_ns,
    "p50": lambda row: row.p50_ns,
    "p99": lambda row: row.p99_ns,
    "max": lambda row: row.max_ns,
}


def times(capture: Capture) -> Times:
    """Pair every entry and exit of a capture, in bounded memory.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    decoder = Decoder(capture)
    together: Sums | None = None
    threads: dict[int, list[FunctionTimes]] = {}
    found: list[PairCounts] = []
    everyones = Durations()
    for tid in decoder.tids:
        durations = Durations()
        pairing = Pairing(capture, decoder, with_sums=True, ended=durations.add)
        pairing.take_thread(tid)
        sums = pairing.sums()
        found.append(pairing.counts([tid]))
        threads[tid] = _functions(sums, durations)
        everyones.merge(durations)
        together = sums if together is None else _merged(together, sums)
    everyone = _functions(together, everyones) if together is not None else []
    return Times(everyone, threads, _added(found), everyones, decoder.clock.known)


def ordered(
    functions: Iterable[FunctionTimes], sort: SortKey = "total", limit: int | None = None
) -> list[FunctionTimes]:
    """Functions by one of their numbers, the largest first; at most `limit` of them."""
    key = _SORTERS[sort]
    return sorted(functions, key=lambda row: (-key(row), -row.calls, row.site))[:limit]


def _added(found: list[PairCounts]) -> PairCounts:
    names = PairCounts.__slots__
    return PairCounts(**{name: sum(getattr(part, name) for part in found) for name in names})


def _merged(a: Sums, b: Sums) -> Sums:
    # With many threads nearly all of them call what others have called: `a` is changed in place.
    site = np.union1d(a.site, b.site)
    if len(site) > len(a.site):
        a = _wider(a, site)
    rows = np.searchsorted(site, b.site)
    for name in ("calls", "unfinished", "total_ns", "self_ns", "sum_ns", "squares"):
        getattr(a, name)[rows] += getattr(b, name)
    a.min_ns[rows] = np.minimum(a.min_ns[rows], b.min_ns)
    a.max_ns[rows] = np.maximum(a.max_ns[rows], b.max_ns)
    return a


def _wider(sums: Sums, site: NDArray[np.int64]) -> Sums:
    place = np.searchsorted(site, sums.site)

    def moved(name: str, empty: int = 0) -> NDArray[Any]:
        column = getattr(sums, name)
        found = np.full(len(site), empty, column.dtype)
        found[place] = column
        return found

    names = ("calls", "unfinished", "total_ns", "self_ns", "max_ns", "sum_ns", "squares")
    return Sums(
        site=site,
        min_ns=moved("min_ns", np.iinfo(np.int64).max),
        **{name: moved(name) for name in names},
    )


def _functions(sums: Sums, durations: Durations) -> list[FunctionTimes]:
    calls = np.maximum(sums.calls, 1)
    average = sums.sum_ns / calls
    variance = np.maximum(sums.squares / calls - average * average, 0)
    columns = (
        sums.site,
        sums.calls + sums.unfinished,
        sums.unfinished,
        sums.total_ns,
        sums.self_ns,
        average,
        *durations.percentiles(sums.site, 50, 99),
        np.where(sums.calls > 0, sums.min_ns, 0),
        sums.max_ns,
        np.sqrt(variance),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [FunctionTimes(*row) for row in rows]
