# SPDX-License-Identifier: Apache-2.0
"""A capture's events as numpy columns, thread by thread or merged by time, in bounded memory.

Importing this module costs numpy's import (about 100 ms); nothing here loops over events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke._capture_format import EVENT_BYTES
from textpoke._site_lookup import SiteLookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from textpoke._capture_format import Block
    from textpoke.capture import Capture

FUNCTION_ENTRY = 1
"""Event type: a function was entered."""

_CHUNK_EVENTS = 1 << 16
"""One MiB of events and their columns stay in the cache: measured best of 2**14 to 2**20."""
_MIN_PIECE_EVENTS = 512
_NEVER_NS = np.iinfo(np.int64).max
_MIN_NS_PER_TICK, _MAX_NS_PER_TICK = 0.05, 20.0
"""20 GHz to 50 MHz; anything else is not a TSC."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`count` events of thread `tid` are missing before event `index` of a chunk."""

    index: int
    tid: int
    count: int


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of equal length, one row per event.

    Attributes:
        ts_ns: int64, nanoseconds since the capture's first clock point.
        tid: int32, thread id.
        site: int32, index into `capture.meta.sites`; -1 where the address is in no table or
            the type is not known.
        type: uint8, `FUNCTION_ENTRY`.
        losses: Where events are missing, in order of index.
    """

    ts_ns: NDArray[np.int64]
    tid: NDArray[np.int32]
    site: NDArray[np.int32]
    type: NDArray[np.uint8]
    losses: tuple[Loss, ...] = ()

    def __len__(self) -> int:
        return len(self.ts_ns)

    @property
    def unknown(self) -> int:
        """How many events have no site."""
        return int(np.count_nonzero(self.site < 0))


class Clock:
    """Turns TSC ticks into nanoseconds by two points (the first and the last of the capture).

    Attributes:
        known: False when there is no second point: ticks are then passed on as nanoseconds.
        start_ns: CLOCK_MONOTONIC at time 0.
        end_ns: Time of the last clock point, 0 when there is none.
        ns_per_tick: The rate.
    """

    def __init__(self, capture: Capture) -> None:
        first = capture.meta.clock
        self._tsc = np.uint64(first.tsc)
        self.start_ns = first.monotonic_ns
        self.end_ns = 0
        self.ns_per_tick = 1.0
        self.known = False
        for last in reversed(capture.clocks):
            ticks, elapsed_ns = last.tsc - first.tsc, last.monotonic_ns - first.monotonic_ns
            if ticks > 0 and _MIN_NS_PER_TICK <= elapsed_ns / ticks <= _MAX_NS_PER_TICK:
                self.ns_per_tick = elapsed_ns / ticks
                self.end_ns = elapsed_ns
                self.known = True
                return

    def ns(self, tsc: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Nanoseconds since the first point; negative for events before it."""
        ticks = (tsc - self._tsc).view(np.int64)
        if not self.known:
            return ticks
        scaled = ticks.astype(np.float64)
        scaled *= self.ns_per_tick
        np.rint(scaled, out=scaled)
        with np.errstate(invalid="ignore"):  # time stamps of a damaged capture may not fit
            rounded: NDArray[np.int64] = scaled.astype(np.int64)
        return rounded


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an EVENTS block, small enough to be read at once."""

    offset: int
    count: int
    tid: int
    lost: int


class Decoder:
    """Decodes the events of one open capture.

    Attributes:
        clock: The time scale.
        tids: Thread ids that have EVENTS blocks, in order of appearance.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._lookup = SiteLookup(site.address for site in capture.meta.sites)
        self._buffer = np.empty((0, 2), dtype=np.uint64)
        self.clock = Clock(capture)
        self._blocks: dict[int, list[Block]] = {}
        for block in capture.events:
            self._blocks.setdefault(block.tid, []).append(block)
        self.tids = tuple(self._blocks)

    def thread(self, tid: int) -> Iterator[Events]:
        """The events of one thread in the order it wrote them, in chunks.

        Raises:
            KeyError: no such thread.
        CaptureFormat: the file changed while it was read.
        """
        for batch in _batches(_pieces(self._blocks[tid], _CHUNK_EVENTS)):
            yield self._columns(batch)

    def merged(self) -> Iterator[Events]:
        """The events of all threads by time, in chunks.

        Pieces of blocks are taken in order of their first event; whatever is older than the
        first event of the next piece is complete and is handed on. What waits is bounded by
        one piece per ring.

        Raises:
            CaptureFormat: the file changed while it was read.
        """
        pieces, firsts_ns = self._pieces_by_time()
        waiting = _join([])
        taken = 0
        for batch in _batches(pieces):
            taken += len(batch)
            limit_ns = firsts_ns[taken] if taken < len(pieces) else None
            ready, waiting = _split(_join([waiting, self._columns(batch)]), limit_ns)
            if len(ready) or ready.losses:
                yield ready

    def all(self) -> Events:
        """Every event of the capture, by time, in memory at once (17 bytes an event)."""
        return _join(list(self.merged()))

    def _pieces_by_time(self) -> tuple[list[_Piece], list[int]]:
        blocks = self._capture.events
        rings = len({block.ring for block in blocks})
        size = max(_CHUNK_EVENTS // max(rings, 1), _MIN_PIECE_EVENTS)
        pieces = list(_pieces(blocks, size))
        first = np.empty(len(pieces), dtype=np.uint64)
        view = first.view(np.uint8).data
        for index, piece in enumerate(pieces):
            if piece.count:
                self._capture.read_into(piece.offset, view[index * 8 : index * 8 + 8])
        times = np.where([piece.count > 0 for piece in pieces], self.clock.ns(first), _NEVER_NS)
        order = np.argsort(times, kind="stable").tolist()
        return [pieces[index] for index in order], [int(times[index]) for index in order]

    def _columns(self, pieces: list[_Piece]) -> Events:
        raw = self._read(pieces)
        counts = [piece.count for piece in pieces]
        rows = np.cumsum([0, *counts]).tolist()
        kind = raw.view(np.uint8)[:, 8] & np.uint8(15)
        site = self._lookup.find(raw[:, 1] >> np.uint64(16))
        site[kind != FUNCTION_ENTRY] = -1
        return Events(
            ts_ns=self.clock.ns(raw[:, 0]),
            tid=np.repeat(np.array([piece.tid for piece in pieces], dtype=np.int32), counts),
            site=site,
            type=kind,
            losses=tuple(
                Loss(row, piece.tid, piece.lost)
                for row, piece in zip(rows, pieces, strict=False)
                if piece.lost
            ),
        )

    def _read(self, pieces: list[_Piece]) -> NDArray[np.uint64]:
        # Valid until the next call: fresh pages for each chunk would cost more than the copy.
        events = sum(piece.count for piece in pieces)
        if events > len(self._buffer):
            self._buffer = np.empty((events, 2), dtype=np.uint64)
        raw = self._buffer[:events]
        view = raw.reshape(-1).view(np.uint8).data
        start = 0
        for piece in pieces:
            stop = start + piece.count * EVENT_BYTES
            self._capture.read_into(piece.offset, view[start:stop])
            start = stop
        return raw


def _pieces(blocks: Iterable[Block], most: int) -> Iterator[_Piece]:
    # Cut to at most `most` events; the loss stands before a block's first event. A block of no
    # events hands its loss on to the ring's next one, or to a last, empty piece.
    owed: dict[int, tuple[int, int]] = {}
    for block in blocks:
        lost = block.lost + owed.pop(block.ring, (0, 0))[1]
        count = block.payload_bytes // EVENT_BYTES
        if lost and not count:
            owed[block.ring] = (block.tid, lost)
        for start in range(0, count, most):
            offset = block.offset + start * EVENT_BYTES
            yield _Piece(offset, min(most, count - start), block.tid, 0 if start else lost)
    for tid, lost in owed.values():
        yield _Piece(0, 0, tid, lost)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    events = 0
    for piece in pieces:
        batch.append(piece)
        events += piece.count
        if events >= _CHUNK_EVENTS:
            yield batch
            batch, events = [], 0
    if batch:
        yield batch


def _join(parts: list[Events]) -> Events:
    if not parts:
        return Events(
            np.empty(0, np.int64),
            np.empty(0, np.int32),
            np.empty(0, np.int32),
            np.empty(0, np.uint8),
        )
    rows = np.cumsum([0, *map(len, parts)]).tolist()
    return Events(
        np.concatenate([part.ts_ns for part in parts]),
        np.concatenate([part.tid for part in parts]),
        np.concatenate([part.site for part in parts]),
        np.concatenate([part.type for part in parts]),
        tuple(
            Loss(row + loss.index, loss.tid, loss.count)
            for row, part in zip(rows, parts, strict=False)
            for loss in part.losses
        ),
    )


def _split(events: Events, limit_ns: int | None) -> tuple[Events, Events]:
    # Sorted by time, then cut before the first event at or after the limit.
    order = np.argsort(events.ts_ns, kind="stable")
    total = len(order)
    place = np.empty(total + 1, dtype=np.int64)
    place[order] = np.arange(total)
    place[total] = total  # a loss after the last event stays there
    losses = [Loss(int(place[loss.index]), loss.tid, loss.count) for loss in events.losses]
    losses.sort(key=lambda loss: loss.index)
    if limit_ns is None:
        return _take(events, order, losses), _join([])
    cut = int(np.count_nonzero(events.ts_ns < limit_ns))
    early = [loss for loss in losses if loss.index < cut]
    late = [Loss(loss.index - cut, loss.tid, loss.count) for loss in losses[len(early) :]]
    return _take(events, order[:cut], early), _take(events, order[cut:], late)


def _take(events: Events, rows: NDArray[np.intp], losses: list[Loss]) -> Events:
    return Events(
        events.ts_ns[rows], events.tid[rows], events.site[rows], events.type[rows], tuple(losses)
    )
