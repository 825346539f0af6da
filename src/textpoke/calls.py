# SPDX-License-Identifier: Apache-2.0
"""Calls: entries and exits of a capture paired, with durations, self times, parents and payloads.

The pairing is native (native/control/pair.c); per thread, an EXIT closes the innermost open call
with the same return address, and the calls above that one stay unfinished: they were left by
longjmp, an exception or a tail call, or their exits were lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from textpoke._native import ffi, lib
from textpoke.decode import DATA, ENTRY, EXIT, Decoder
from textpoke.payload import Layout, count_words
from textpoke.tracer_names import FUNCTION, NOP
from textpoke.trigger_notes import resumptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import DTypeLike, NDArray

    from textpoke._capture_format import Block
    from textpoke._native import Pointer
    from textpoke.capture import Capture

    Ended = Callable[[NDArray[np.int32], NDArray[np.int64]], object]

UNFINISHED = -1
"""`end_ns` of a call whose EXIT is not in the capture."""

_COLUMNS: dict[str, DTypeLike] = {
    "site": np.int32,
    "start_ns": np.int64,
    "end_ns": np.int64,
    "self_ns": np.int64,
    "depth": np.uint32,
    "parent": np.int64,
    "entry_data": np.int64,
    "exit_data": np.int64,
}
_C_TYPES = {
    "int32": "int32_t[]",
    "int64": "int64_t[]",
    "uint32": "uint32_t[]",
    "uint64": "uint64_t[]",
}
_SHAPE = np.dtype([("entry", np.uint8), ("exit", np.uint8), ("is_threshold", np.uint8)])
_NO_MEMORY = -12
FOREVER = (1 << 64) - 1
"""TSC ticks that do not come."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How entries and exits fitted together.

    Attributes:
        finished: Calls with an end.
        unfinished: Calls without: left by longjmp or an exception, still running, or lost.
        orphans: EXITs without an open ENTRY.
        long_calls: Of the finished: recorded at their EXIT alone (threshold).
        short_payloads: Payloads of which words are missing; their calls have none.
        stray_data: DATA that belongs to nothing.
        lost: Events that the rings lost; every number above suffers from them.
        without_exits: ENTRYs of the function tracer, in a recording that was switched: no calls.
    """

    finished: int = 0
    unfinished: int = 0
    orphans: int = 0
    long_calls: int = 0
    short_payloads: int = 0
    stray_data: int = 0
    lost: int = 0
    without_exits: int = 0


@dataclass(frozen=True, slots=True)
class Calls:
    """Columns of equal length, one row per call, in order of start within a thread.

    Attributes:
        tid: uint32, thread.
        site: int32, index into `names`; -1 where the address is in no table.
        start_ns: int64, since the capture's first clock point.
        end_ns: int64; -1 (`UNFINISHED`) when the end is not known.
        self_ns: int64, without the finished calls inside of it; 0 of an unfinished call.
        depth: uint32, 0 for a call without a parent.
        parent: int64, row of the caller among the recorded functions; -1 for none.
        entry_data: int64, index in `words` of the ENTRY's payload; -1 for none.
        exit_data: int64, likewise for the EXIT.
        words: uint64, payloads; those that have an index are as long as the layout says.
        layouts: By site index, what the words mean.
        names: By site index, "module!function".
        counts: What could not be paired.
    """

    tid: NDArray[np.uint32]
    site: NDArray[np.int32]
    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    self_ns: NDArray[np.int64]
    depth: NDArray[np.uint32]
    parent: NDArray[np.int64]
    entry_data: NDArray[np.int64]
    exit_data: NDArray[np.int64]
    words: NDArray[np.uint64]
    layouts: dict[int, Layout] = field(default_factory=dict)
    names: Sequence[str] = ()
    counts: PairCounts = field(default_factory=PairCounts)

    def __len__(self) -> int:
        return len(self.site)

    def name(self, site: int) -> str:
        """A site as "module!function", "[unknown]" for -1."""
        return self.names[site] if site >= 0 else "[unknown]"

    def of(self, *sites: int) -> NDArray[np.intp]:
        """Rows of the calls of these sites, in order."""
        if len(sites) == 1:
            return np.flatnonzero(self.site == sites[0])
        return np.flatnonzero(np.isin(self.site, sites))

    def sites_named(self, *functions: str) -> list[int]:
        """Indices of the sites whose function has one of these names, in whatever module."""
        wanted = set(functions)
        return [i for i, name in enumerate(self.names) if name.partition("!")[2] in wanted]

    def duration_ns(self) -> NDArray[np.int64]:
        """How long each call took; -1 for unfinished ones."""
        return np.where(self.end_ns == UNFINISHED, UNFINISHED, self.end_ns - self.start_ns)

    def entry_words(self, row: int) -> list[int]:
        """The payload of a call's ENTRY; empty when there is none."""
        return self._words(row, int(self.entry_data[row]), is_exit=False)

    def exit_words(self, row: int) -> list[int]:
        """The payload of a call's EXIT; empty when there is none."""
        return self._words(row, int(self.exit_data[row]), is_exit=True)

    def entry_column(self, rows: NDArray[np.intp], name: str) -> NDArray[np.uint64]:
        """First word of an ENTRY field in these calls; 0 where a call has none."""
        return self._column(rows, name, is_exit=False)

    def exit_column(self, rows: NDArray[np.intp], name: str) -> NDArray[np.uint64]:
        """First word of an EXIT field in these calls; 0 where a call has none."""
        return self._column(rows, name, is_exit=True)

    def _words(self, row: int, start: int, *, is_exit: bool) -> list[int]:
        layout = self.layouts.get(int(self.site[row]))
        if start < 0 or layout is None:
            return []
        count = count_words(layout.exit if is_exit else layout.entry)
        words: list[int] = self.words[start : start + count].tolist()
        return words

    def _column(self, rows: NDArray[np.intp], name: str, *, is_exit: bool) -> NDArray[np.uint64]:
        start = (self.exit_data if is_exit else self.entry_data)[rows]
        found = np.zeros(len(rows), np.uint64)
        sites = self.site[rows]
        for site in np.unique(sites).tolist():
            layout = self.layouts.get(site, Layout())
            place = layout.exit_at(name) if is_exit else layout.entry_at(name)
            if place is not None:
                chosen = np.flatnonzero((sites == site) & (start >= 0))
                found[chosen] = self.words[start[chosen] + place]
        return found


@dataclass(frozen=True, slots=True)
class Sums:
    """What is known of each function's calls without keeping the calls; a row per site.

    Attributes:
        site: int64, index into the capture's sites; -1 for addresses that no site has.
        calls: int64, finished calls.
        unfinished: int64.
        total_ns: int64, without calls inside of another call of the same function.
        self_ns: int64.
        min_ns: int64, the shortest call; the largest number there is when none is finished.
        max_ns: int64, the longest call.
        sum_ns: float64, of every call's duration.
        squares: float64, of the squared durations.
    """

    site: NDArray[np.int64]
    calls: NDArray[np.int64]
    unfinished: NDArray[np.int64]
    total_ns: NDArray[np.int64]
    self_ns: NDArray[np.int64]
    min_ns: NDArray[np.int64]
    max_ns: NDArray[np.int64]
    sum_ns: NDArray[np.float64]
    squares: NDArray[np.float64]


class Pairing:
    """Pairs the events of a capture's threads, one thread after the other.

    Args:
        capture: Open.
        decoder: Of the same capture, where there is one already.
        with_sums: Keep sums by site.
        ended: Called with the sites (int32) and durations (int64, ns) of the calls that ended,
            many at a time; the columns are valid during the call.
    """

    def __init__(
        self,
        capture: Capture,
        decoder: Decoder | None = None,
        *,
        with_sums: bool = False,
        ended: Ended | None = None,
    ) -> None:
        self.decoder = decoder or Decoder(capture)
        self._capture = capture
        self.layouts = layouts_by_site(capture)
        self._site_count = len(capture.meta.sites)
        self._shapes = _shapes(self.layouts, self._site_count)
        clock = ffi.new("struct tp_pair_clock *")
        clock.start_tsc = capture.meta.clock.tsc
        clock.ns_per_tick = self.decoder.clock.ns_per_tick
        clock.is_known = self.decoder.clock.known
        self._calls = ffi.new("struct tp_calls *")
        self._ended = ended
        self._ended_site = np.empty(0, np.int32)
        self._ended_ns = np.empty(0, np.int64)
        self._native = ffi.gc(
            lib.tp_pairing_create(
                clock,
                ffi.from_buffer("struct tp_shape[]", self._shapes),
                self._site_count,
                int(with_sums),
            ),
            lib.tp_pairing_destroy,
        )
        if not self._native:
            raise MemoryError
        self._without_exits = times_without_exits(capture)
        self._left_out = 0
        self._breaks = np.array(resumptions(capture), np.uint64)
        lib.tp_pair_breaks(
            self._native, ffi.from_buffer("uint64_t[]", self._breaks), len(self._breaks)
        )

    def take_thread(self, tid: int) -> None:
        """Pair one thread's events, from its first to its last."""
        for blocks in self.decoder.stretches(tid):
            self._take(tid, blocks)
            lib.tp_pair_end_thread(self._native)

    def _take(self, tid: int, blocks: Sequence[Block]) -> None:
        for chunk in self.decoder.raw(tid, blocks):
            raw, site = self._paired(*chunk) if self._without_exits else chunk
            if self._ended and len(raw) > len(self._ended_site):
                self._make_room(len(raw))
            error = lib.tp_pair(
                self._native,
                ffi.from_buffer("struct tp_event[]", raw),
                ffi.from_buffer("int32_t[]", site),
                len(raw),
                self._calls,
            )
            if error:
                raise MemoryError if error == _NO_MEMORY else AssertionError(error)
            if self._ended:
                count = int(self._calls.ended_count)
                self._ended(self._ended_site[:count], self._ended_ns[:count])

    def _make_room(self, count: int) -> None:
        self._ended_site = np.empty(count, np.int32)
        self._ended_ns = np.empty(count, np.int64)
        self._calls.ended_room = count
        self._point("ended_site", self._ended_site)
        self._point("ended_ns", self._ended_ns)

    def _paired(
        self, raw: NDArray[np.uint64], site: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Without the entries that no exit was recorded for, and what they carry."""
        kind = raw.view(np.uint8)[:, 8] & np.uint8(15)
        tsc = raw[:, 0]
        lonely = np.zeros(len(raw), bool)
        for first, last in self._without_exits:
            lonely |= (tsc >= np.uint64(first)) & (tsc < np.uint64(last))
        lonely &= kind == ENTRY
        self._left_out += int(np.count_nonzero(lonely))
        owner = np.maximum.accumulate(np.where(kind == DATA, 0, np.arange(len(raw))))
        keep = ~lonely[owner]
        return np.ascontiguousarray(raw[keep]), np.ascontiguousarray(site[keep])

    def counts(self, tids: Iterable[int]) -> PairCounts:
        """What was found so far, with the losses of these threads."""
        found = ffi.new("struct tp_pair_counts *")
        lib.tp_pair_counts(self._native, found)
        wanted = set(tids)
        return PairCounts(
            found.finished,
            found.unfinished,
            found.orphans,
            found.long_calls,
            found.short_payloads,
            found.stray_data,
            sum(block.lost for block in self._capture.events if block.tid in wanted),
            self._left_out,
        )

    def columns(self, tids: Sequence[int]) -> Calls:
        """All calls of some threads, thread by thread; 60 bytes each."""
        room = sum(self.decoder.event_count(tid) for tid in tids)
        held: dict[str, NDArray[Any]] = {
            name: np.empty(room, dtype) for name, dtype in _COLUMNS.items()
        }
        held["words"] = np.empty(room if self.layouts else 0, np.uint64)
        calls = self._calls
        kept = {name: self._point(name, column) for name, column in held.items()}
        calls.room = room
        calls.word_room = room
        bounds = [0]
        for tid in tids:
            self.take_thread(tid)
            bounds.append(int(calls.count))
        del kept
        return self._finish(tids, bounds, held)

    def sums(self) -> Sums:
        """The sums of all threads taken so far, of functions that were called."""
        sums = lib.tp_pair_sums(self._native)
        size = (self._site_count + 1) * ffi.sizeof("struct tp_call_sum")
        rows = np.frombuffer(memoryview(ffi.buffer(sums, size)), _SUM)
        called = np.flatnonzero(rows["calls"] + rows["unfinished"])
        chosen = rows[called]
        return Sums(
            site=called - 1,
            calls=chosen["calls"].astype(np.int64),
            unfinished=chosen["unfinished"].astype(np.int64),
            total_ns=chosen["total_ns"].astype(np.int64),
            self_ns=chosen["self_ns"].astype(np.int64),
            min_ns=np.where(chosen["calls"] > 0, chosen["min_ns"], np.iinfo(np.int64).max),
            max_ns=chosen["max_ns"],
            sum_ns=chosen["sum_ns"],
            squares=chosen["squares"],
        )

    def _point(self, name: str, column: NDArray[Any]) -> Pointer:
        pointer = ffi.from_buffer(_C_TYPES[column.dtype.name], column, require_writable=True)
        if len(column):
            setattr(self._calls, name, pointer)
        return pointer

    def _finish(
        self, tids: Sequence[int], bounds: list[int], held: dict[str, NDArray[Any]]
    ) -> Calls:
        total = bounds[-1]
        columns = {name: held[name][:total] for name in _COLUMNS}
        counts = self.counts(tids)
        if counts.long_calls:
            columns = _sorted_by_start(columns, bounds, self._shapes["is_threshold"])
        calls = np.diff(np.array(bounds))
        return Calls(
            tid=np.repeat(np.array(tids, dtype=np.uint32), calls),
            **columns,
            words=held["words"][: int(self._calls.word_count)],
            layouts=self.layouts,
            names=site_names(self._capture),
            counts=counts,
        )


_SUM = np.dtype(
    [
        ("calls", np.uint64),
        ("unfinished", np.uint64),
        ("total_ns", np.uint64),
        ("self_ns", np.uint64),
        ("min_ns", np.int64),
        ("max_ns", np.int64),
        ("sum_ns", np.float64),
        ("squares", np.float64),
    ]
)


def calls_of(capture: Capture, tid: int) -> Calls:
    """The calls of one thread.

    Raises:
        KeyError: no such thread.
        CaptureFormat: the file changed while it was read.
    """
    return Pairing(capture).columns([tid])


def all_calls(capture: Capture) -> Calls:
    """The calls of all threads, thread after thread, in memory at once.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    pairing = Pairing(capture)
    return pairing.columns(pairing.decoder.tids)


def layouts_by_site(capture: Capture) -> dict[int, Layout]:
    """Layouts by index of their site; of sites with the same address the first one counts."""
    if not capture.meta.layouts:
        return {}
    index: dict[int, int] = {}
    for i, site in enumerate(capture.meta.sites):
        index.setdefault(site.address, i)
    return {
        index[address]: layout
        for address, layout in capture.meta.layouts.items()
        if address in index
    }


def site_names(capture: Capture) -> list[str]:
    """By site index, "module!function"."""
    return [f"{site.module}!{site.function}" for site in capture.meta.sites]


def tracers_of(capture: Capture) -> set[str]:
    """The tracer that a recording began with, and those that it was switched to."""
    switched = (data.get("tracer") for data in capture.notes)
    return {capture.meta.tracer, *(name for name in switched if isinstance(name, str))}


def times_without_exits(capture: Capture) -> list[tuple[int, int]]:
    """When a recording that was switched recorded entries alone: [from, to) in TSC ticks.

    Empty for one that was not. While a switch goes on, calls are recorded in either way.
    """
    found: list[tuple[int, int]] = []
    tracer, since = capture.meta.tracer, 0
    for data in capture.notes:
        times = data.get("switched")
        if not (isinstance(times, list) and len(times) == 2):
            continue
        began, ended = (t if type(t) is int and 0 <= t < FOREVER else 0 for t in times)
        if tracer == FUNCTION:
            found.append((since, ended))
        tracer, since = str(data.get("tracer")), began
    if since and tracer == FUNCTION:
        found.append((since, FOREVER))
    return found


def has_exits(capture: Capture) -> bool:
    """Whether there are exits to pair; reads events up to the first one.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    if tracers_of(capture) <= {FUNCTION, NOP}:
        return False
    decoder = Decoder(capture)
    return any(
        bool((raw.view(np.uint8)[:, 8] & np.uint8(15) == EXIT).any())
        for tid in decoder.tids
        for raw, _ in decoder.raw(tid)
    )


def _shapes(layouts: dict[int, Layout], site_count: int) -> NDArray[np.void]:
    shapes = np.zeros(site_count, _SHAPE)
    for site, layout in layouts.items():
        words = count_words(layout.entry), count_words(layout.exit)
        shapes[site] = (*words, layout.is_threshold)
    return shapes


def _sorted_by_start(
    columns: dict[str, NDArray[Any]], bounds: list[int], is_threshold: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    # Calls that were recorded at their end come in order of their end. Of two that start
    # together the one that ends later is the outer one, and of those the later row.
    start, end = columns["start_ns"], columns["end_ns"]
    thread = np.repeat(np.arange(len(bounds) - 1), np.diff(np.array(bounds)))
    far = np.where(end == UNFINISHED, np.iinfo(np.int64).max, end)
    rows = np.arange(len(start))
    late = np.append(is_threshold, 0)[columns["site"]]  # -1 finds what was appended
    order = np.lexsort((np.where(late, -rows, rows), ~far, start, thread))
    place = np.empty_like(order)
    place[order] = rows
    found = {name: column[order] for name, column in columns.items()}
    parent = found["parent"]
    found["parent"] = np.where(parent < 0, parent, place[parent])
    depth = np.empty(len(start), np.uint32)
    lib.tp_call_depths(
        ffi.from_buffer("int64_t[]", found["parent"]),
        ffi.from_buffer("uint32_t[]", depth, require_writable=True),
        len(start),
    )
    found["depth"] = depth
    return found
