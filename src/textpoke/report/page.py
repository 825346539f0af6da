# SPDX-License-Identifier: Apache-2.0
"""What the HTML page of a capture shows, as numbers: histograms, activity, a close-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.calls import UNFINISHED, Pairing
from textpoke.decode import DATA, Decoder

if TYPE_CHECKING:
    from textpoke.capture import Capture
    from textpoke.report.counts import Counts
    from textpoke.report.durations import Durations
    from textpoke.report.times import FunctionTimes

SLICES = 240
"""Of the time line."""
BINS_PER_OCTAVE = 4
_MOST_THREADS = 8
MOST_CLOSE_CALLS = 1_500
"""In a close-up."""
_LEAST_CLOSE_CALLS = 2
_MOST_PAIRED_EVENTS = 1 << 22
"""A close-up pairs all calls of its thread at once, 60 bytes each."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long the calls of a function took.

    Attributes:
        site: Index into the capture's sites; -1 for addresses that no site has.
        calls: Finished ones.
        p50_ns: Half of them took no longer.
        p99_ns: 99 % took no longer.
        first_bin: Bin `i` of `counts` is from 2**((first_bin + i) / BINS_PER_OCTAVE) ns on.
        counts: Calls in each bin.
    """

    site: int
    calls: int
    p50_ns: int
    p99_ns: int
    first_bin: int
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Events per slice of time of the threads with the most calls.

    Attributes:
        slice_ns: Length of a slice; the first begins at 0.
        threads: Thread id to `SLICES` counts; events outside of the recording are left out.
    """

    slice_ns: float
    threads: dict[int, list[int]]


@dataclass(frozen=True, slots=True)
class CloseUp:
    """One call and what it calls, by depth.

    Attributes:
        tid: The thread.
        start_ns: Of the range, since the start of the recording.
        end_ns: Of the range.
        calls: Site, start, end (ns since the start of the recording) and depth; by start.
    """

    tid: int
    start_ns: int
    end_ns: int
    calls: list[tuple[int, int, int, int]]


def histogram(function: FunctionTimes, durations: Durations) -> Histogram:
    """The durations of one function in bins of a logarithmic scale; 0 ns counts as 1 ns."""
    ns, count = durations.of(function.site)
    bins = np.floor(np.log2(np.maximum(ns, 1)) * BINS_PER_OCTAVE).astype(np.int64)
    first = int(bins.min(initial=np.iinfo(np.int32).max)) if len(bins) else 0
    sums = np.zeros(int(bins.max(initial=first)) - first + 1, np.int64)
    np.add.at(sums, bins - first, count)
    return Histogram(
        function.site,
        int(count.sum()),
        function.p50_ns,
        function.p99_ns,
        first,
        sums.tolist(),
    )


def timeline(capture: Capture, counts: Counts) -> Timeline:
    """Events per slice, in bounded memory.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    decoder = Decoder(capture)
    slice_ns = max(counts.duration_ns, 1) / SLICES
    threads: dict[int, list[int]] = {}
    for thread in counts.threads[:_MOST_THREADS]:
        sums = np.zeros(SLICES, np.int64)
        for events in decoder.thread(thread.tid):
            ts_ns = events.ts_ns[events.type != DATA]
            ts_ns = ts_ns[(ts_ns >= 0) & (ts_ns <= counts.duration_ns)]
            place = np.minimum(ts_ns // slice_ns, SLICES - 1).astype(np.int64)
            sums += np.bincount(place, minlength=SLICES)
        threads[thread.tid] = sums.tolist()
    return Timeline(slice_ns, threads)


def close_up(capture: Capture, counts: Counts) -> CloseUp | None:
    """One outermost call of the busiest thread: of those that can be shown whole the richest one.

    None where no call has others in it, or where the thread has too many events to pair at once.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    pairing = Pairing(capture)
    tids = [thread.tid for thread in counts.threads]
    if not tids or pairing.decoder.event_count(tids[0]) > _MOST_PAIRED_EVENTS:
        return None
    calls = pairing.columns(tids[:1])
    roots = np.flatnonzero(calls.depth == 0)
    sizes = np.diff(roots, append=len(calls))
    sizes[(calls.end_ns[roots] == UNFINISHED) | (sizes > MOST_CLOSE_CALLS)] = 0
    if sizes.max(initial=0) < _LEAST_CLOSE_CALLS:
        return None
    best = int(np.argmax(sizes))
    rows = np.arange(roots[best], roots[best] + sizes[best])
    rows = rows[calls.end_ns[rows] != UNFINISHED]
    columns = (calls.site, calls.start_ns, calls.end_ns, calls.depth)
    found = list(zip(*(column[rows].tolist() for column in columns), strict=True))
    return CloseUp(tids[0], found[0][1], found[0][2], found)
