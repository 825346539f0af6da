# SPDX-License-Identifier: Apache-2.0
"""Calls per function and thread, and what a capture does not hold: the numbers of the reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.decode import DATA, ENTRY, EXIT, Decoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from textpoke.capture import Capture
    from textpoke.decode import Clock, Events

_MOST_TICKS = 1 << 63
_EARLIEST_NS, _NEVER_NS = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Calls:
    """Columns with one row per function that was called, most calls first.

    Attributes:
        site: int64, index into the capture's sites.
        calls: int64.
        first_ns: int64, first call in nanoseconds since the start.
        last_ns: int64, last call.
    """

    site: NDArray[np.int64]
    calls: NDArray[np.int64]
    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Calls of all functions."""
        return int(self.calls.sum())

    def by_site(self) -> dict[int, int]:
        """Site to calls."""
        return dict(zip(self.site.tolist(), self.calls.tolist(), strict=True))

    def rows(self, limit: int | None = None) -> Iterator[tuple[int, int, int, int]]:
        """Site, calls, first and last time, row by row, at most `limit` rows."""
        columns = (self.site, self.calls, self.first_ns, self.last_ns)
        return zip(*(column[:limit].tolist() for column in columns), strict=True)


class _Sums:
    # Calls being added up: row 0 for events without a site, then one row per site.

    def __init__(self, rows: int) -> None:
        self.others = 0
        self.calls = np.zeros(rows, dtype=np.int64)
        self.first_ns = np.full(rows, _NEVER_NS, dtype=np.int64)
        self.last_ns = np.full(rows, _EARLIEST_NS, dtype=np.int64)

    def add_events(self, events: Events) -> None:
        site, ts_ns = events.site, events.ts_ns
        if events.type.max(initial=0) > ENTRY:  # else nothing is to be left out
            is_other = (events.type == EXIT) | (events.type == DATA)
            self.others += int(np.count_nonzero(is_other))
            site, ts_ns = site[~is_other], ts_ns[~is_other]
        row = site.astype(np.intp) + 1
        self.calls += np.bincount(row, minlength=len(self.calls))
        np.minimum.at(self.first_ns, row, ts_ns)
        np.maximum.at(self.last_ns, row, ts_ns)

    def add(self, other: _Sums) -> None:
        self.others += other.others
        self.calls += other.calls
        np.minimum(self.first_ns, other.first_ns, out=self.first_ns)
        np.maximum(self.last_ns, other.last_ns, out=self.last_ns)

    @property
    def unknown(self) -> int:
        return int(self.calls[0])

    def by_site(self) -> Calls:
        site = np.flatnonzero(self.calls[1:])
        site = site[np.argsort(-self.calls[site + 1], kind="stable")]
        row = site + 1
        return Calls(site, self.calls[row], self.first_ns[row], self.last_ns[row])


@dataclass(frozen=True, slots=True)
class ThreadCounts:
    """One thread's events: `unknown` have no site, `lost` were lost in the thread's rings."""

    tid: int
    calls: Calls
    unknown: int
    lost: int


@dataclass(frozen=True, slots=True)
class Counts:
    """All threads' counts and the totals.

    Attributes:
        threads: One entry per thread that has a ring, those with the most calls first.
        everyone: The calls of all threads together.
        duration_ns: From the first clock point to END's, or to the last event if the capture
            was cut off.
        on_ns: When all functions were on.
        time_known: False when `duration_ns` and all times are really TSC ticks.
        lost: Events lost in rings: as END says, or as the blocks say if that is more.
        lost_no_ring: Events of threads without a ring.
        others: Events that are no entries: exits, and payloads.
    """

    threads: list[ThreadCounts]
    everyone: Calls
    duration_ns: int
    time_known: bool
    lost: int
    lost_no_ring: int
    others: int = 0
    on_ns: int = 0

    @property
    def calls(self) -> int:
        """Calls of all functions in all threads."""
        return self.everyone.total

    @property
    def unknown(self) -> int:
        """Entries, and events of unknown types, that have no site."""
        return sum(thread.unknown for thread in self.threads)

    @property
    def events(self) -> int:
        """All events in the capture."""
        return self.calls + self.unknown + self.others

    def rate(self, calls: int) -> float:
        """Calls per second of the time when functions were on; 0 when it has no length."""
        return calls * 1e9 / self.traced_ns if self.traced_ns > 0 else 0.0

    @property
    def traced_ns(self) -> int:
        """How long they were on: planning and patching belong to no rate."""
        return max(self.duration_ns - self.on_ns, 0)


def count(capture: Capture) -> Counts:
    """Count every event of a capture, in bounded memory.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    decoder = Decoder(capture)
    together = _Sums(len(capture.meta.sites) + 1)
    threads = [_count_thread(tid, decoder.thread(tid), together) for tid in decoder.tids]
    threads.sort(key=lambda thread: (-thread.calls.total, thread.tid))
    everyone = together.by_site()
    end = capture.end
    lost = sum(thread.lost for thread in threads)
    last_ns = int(everyone.last_ns.max(initial=0))
    length_ns = decoder.clock.end_ns if end and decoder.clock.known else last_ns
    return Counts(
        threads=threads,
        everyone=everyone,
        duration_ns=length_ns,
        on_ns=_switched_on_ns(capture, decoder.clock),
        time_known=decoder.clock.known,
        lost=max(lost, end.lost) if end else lost,
        lost_no_ring=end.lost_no_ring if end else 0,
        others=together.others,
    )


def _switched_on_ns(capture: Capture, clock: Clock) -> int:
    """0 where the capture does not tell."""
    for fields in capture.notes:
        tsc = fields.get("switched_on")
        if type(tsc) is int and 0 <= tsc < _MOST_TICKS:
            return max(int(clock.ns(np.array([tsc], np.uint64))[0]), 0)
    return 0


def _count_thread(tid: int, chunks: Iterable[Events], together: _Sums) -> ThreadCounts:
    sums = _Sums(len(together.calls))
    lost = 0
    for events in chunks:
        sums.add_events(events)
        lost += sum(loss.count for loss in events.losses)
    together.add(sums)
    return ThreadCounts(tid, sums.by_site(), sums.unknown, lost)
