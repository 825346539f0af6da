# SPDX-License-Identifier: Apache-2.0
"""The sums of each function in a capture by its name: what two captures are compared by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke.calls import has_exits
from textpoke.decode import Clock
from textpoke.report.profiled import ns_per_tick, profile_rows
from textpoke.report.times import times

if TYPE_CHECKING:
    from textpoke.capture import Capture
    from textpoke.report.counts import Counts

Name = tuple[str, str]
"""Module and function: addresses are others in every process."""
UNKNOWN: Name = ("", "[unknown]")


@dataclass(slots=True)
class Numbers:
    """Sums over the calls of all functions with one name; times in nanoseconds.

    Attributes:
        calls: Finished or not.
        finished: Those with an end.
        total_ns: From entry to exit, recursion counts once.
        self_ns: Without the time in other recorded functions.
        sum_ns: Of all finished calls, recursion included.
    """

    calls: int = 0
    finished: int = 0
    total_ns: float = 0
    self_ns: float = 0
    sum_ns: float = 0

    @property
    def average_ns(self) -> float:
        """Of a finished call; 0 when there is none."""
        return self.sum_ns / self.finished if self.finished else 0.0


@dataclass(slots=True)
class Measured:
    """A capture's functions by name.

    Attributes:
        duration_ns: Of the recording, from when all functions were on.
        time_known: False when it and all times are really TSC ticks.
        has_times: Whether calls have durations.
        traced: All functions that could have been recorded, called or not.
        functions: Those that were called.
    """

    duration_ns: int
    time_known: bool
    has_times: bool
    traced: set[Name]
    functions: dict[Name, Numbers] = field(default_factory=dict)

    def add(self, name: Name, numbers: Numbers) -> None:
        """Add the numbers of one of the functions with this name."""
        sums = self.functions.setdefault(name, Numbers())
        for part in Numbers.__slots__:
            setattr(sums, part, getattr(sums, part) + getattr(numbers, part))


def measured(capture: Capture, counts: Counts) -> Measured:
    """The numbers of a capture of any tracer whose calls are counted.

    Args:
        capture: Open.
        counts: Of its events.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    names = [(site.module, site.function) for site in capture.meta.sites]
    if capture.meta.tracer == "profile":
        return _of_profile(capture, names)
    found = Measured(counts.traced_ns, counts.time_known, has_exits(capture), set(names))
    names.append(UNKNOWN)  # index -1
    if not found.has_times:
        for site, calls, _, _ in counts.everyone.rows():
            found.add(names[site], Numbers(calls))
        return found
    for f in times(capture).functions:
        finished = f.calls - f.unfinished
        sum_ns = f.average_ns * finished
        found.add(names[f.site], Numbers(f.calls, finished, f.total_ns, f.self_ns, sum_ns))
    return found


def _of_profile(capture: Capture, names: list[Name]) -> Measured:
    clock, ns = Clock(capture), ns_per_tick(capture)
    found = Measured(clock.end_ns, clock.known, has_times=True, traced=set(names))
    by_address = dict(zip((site.address for site in capture.meta.sites), names, strict=True))
    for row in profile_rows(capture):
        total_ns = row.total * ns
        name = by_address.get(row.address, UNKNOWN)
        found.add(name, Numbers(row.hits, row.hits, total_ns, row.self * ns, total_ns))
    return found
