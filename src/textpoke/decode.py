# SPDX-License-Identifier: Apache-2.0
"""A capture's events as numpy columns, thread by thread or merged by time, in bounded memory.

Importing this module costs numpy's import (about 100 ms); nothing here loops over events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke._capture_format import EVENT_BYTES, KEPT, BlockType
from textpoke._errors import CaptureFormat
from textpoke._site_lookup import SiteLookup
from textpoke.packing import Unpacker
from textpoke.payload import MOST_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from textpoke._capture_format import Block
    from textpoke.capture import Capture

ENTRY = 1
"""Event type: a function was entered."""
EXIT = 2
"""Event type: it was left."""
DATA = 3
"""Event type: eight bytes that belong to the ENTRY or EXIT before them in the same ring."""

_CHUNK_EVENTS = 1 << 16
"""One MiB of events and their columns stay in the cache: measured best of 2**14 to 2**20."""
_MIN_PIECE_EVENTS = 512
_NO_WORDS = np.empty(0, np.uint64)
_MIN_NS_PER_TICK, _MAX_NS_PER_TICK = 0.05, 20.0
"""20 GHz to 50 MHz; anything else is not a TSC."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`count` events of thread `tid` are missing before the first event at or after `ts_ns`."""

    ts_ns: int
    tid: int
    count: int


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of equal length, one row per event.

    Attributes:
        ts_ns: int64, nanoseconds since the capture's first clock point.
        tid: uint32, thread id.
        site: int32, index into `capture.meta.sites`; -1 where the address is in no table, the
            type is not known, or the event is DATA.
        type: uint8, `ENTRY`, `EXIT` or `DATA`; DATA has the time of the event that it belongs to.
        losses: Where events are missing, by time.
        words: uint64, the payload of DATA, 0 elsewhere; empty when no event is DATA.
    """

    ts_ns: NDArray[np.int64]
    tid: NDArray[np.uint32]
    site: NDArray[np.int32]
    type: NDArray[np.uint8]
    losses: tuple[Loss, ...] = ()
    words: NDArray[np.uint64] = field(default_factory=lambda: _NO_WORDS)

    def __len__(self) -> int:
        return len(self.ts_ns)

    @property
    def has_data(self) -> bool:
        """Whether some events are DATA."""
        return len(self.words) > 0

    @property
    def unknown(self) -> int:
        """How many events have no site and should have one."""
        unknown = int(np.count_nonzero(self.site < 0))
        return unknown - int(np.count_nonzero(self.type == DATA)) if self.has_data else unknown


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
    """A part of a block of events, small enough to be read at once; of a packed one, the whole.

    `is_rest`: only DATA, of an event at the end of the ring's block before.
    """

    block: Block
    start: int
    count: int
    lost_before: int
    lost_after: int
    is_rest: bool = False

    @property
    def tid(self) -> int:
        """The thread that wrote it."""
        return self.block.tid

    @property
    def ring(self) -> int:
        """The ring that it was in."""
        return self.block.ring

    @property
    def offset(self) -> int:
        """File offset of its first event; not of packed ones."""
        return self.block.offset + self.start * EVENT_BYTES


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
        self._unpacker = Unpacker()
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
        last_ns: dict[int, int] = {}
        for batch in _batches(self._pieces(self._blocks[tid], _CHUNK_EVENTS)):
            yield self._columns(batch, last_ns)

    def stretches(self, tid: int) -> list[list[Block]]:
        """The blocks of one thread, apart where something between them was not kept.

        What was lost is no such gap: it is counted. Raises KeyError: no such thread.
        """
        blocks = self._blocks[tid]
        if self._capture.meta.mode != KEPT:
            return [blocks]
        found: list[list[Block]] = []
        behind = None
        for block in blocks:
            if behind != (block.ring, block.generation, block.sequence):
                found.append([])
            found[-1].append(block)
            end = block.sequence + block.events + block.lost
            behind = block.ring, block.generation, end
        return found

    def stretch_starts_ns(self, tid: int) -> list[int]:
        """When the stretches of one thread begin, but the first: calls do not reach there.

        Raises:
            KeyError: no such thread.
            CaptureFormat: the file changed while it was read.
        """
        found = []
        for blocks in self.stretches(tid)[1:]:
            pieces = self._pieces(blocks, _CHUNK_EVENTS)
            first = next((p for p in pieces if p.count and not p.is_rest), None)
            if first is not None:
                found.append(int(self.clock.ns(self._first_ticks([first]))[0]))
        return found

    def raw(
        self, tid: int, blocks: Sequence[Block] | None = None
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int32]]]:
        """Events of one thread as they stand in the file, (n, 2) words, with their sites.

        A chunk is valid until the next one is asked for.

        Args:
            tid: The thread.
            blocks: Some of its blocks; None for all.

        Raises:
            KeyError: no such thread.
            CaptureFormat: the file changed while it was read.
        """
        chosen = self._blocks[tid] if blocks is None else blocks
        for batch in _batches(self._pieces(chosen, _CHUNK_EVENTS)):
            raw = self._read(batch)
            yield raw, self._lookup.find(raw[:, 1] >> np.uint64(16))

    def event_count(self, tid: int) -> int:
        """How many events of a thread there are."""
        return sum(block.events for block in self._blocks[tid])

    def merged(self) -> Iterator[Events]:
        """The events of all threads by time, in chunks.

        Pieces of blocks are taken in order of their first event; whatever is older than the
        first event of the next piece is complete and is handed on. What waits is bounded by
        one piece per ring.

        Raises:
            CaptureFormat: the file changed while it was read.
        """
        pieces, first_ns = self._pieces_by_time()
        last_ns: dict[int, int] = {}
        waiting = _join([])
        taken = 0
        for batch in _batches(pieces):
            taken += len(batch)
            limit_ns = first_ns[taken] if taken < len(pieces) else None
            ready, waiting = _split(_join([waiting, self._columns(batch, last_ns)]), limit_ns)
            if len(ready) or ready.losses:
                yield ready

    def all(self) -> Events:
        """Every event of the capture, by time, in memory at once (17 bytes an event)."""
        return _join(list(self.merged()))

    def _pieces(self, blocks: Iterable[Block], most: int) -> Iterator[_Piece]:
        # A full ring drops what comes after the events it holds; a ring that overwrites has
        # lost what came before them.
        older = self._capture.meta.mode == "overwrite"
        for block in blocks:
            for start, stop, is_rest in self._cuts(block, block.events, most):
                before = block.lost if older and not start else 0
                after = block.lost if not older and stop == block.events else 0
                yield _Piece(block, start, stop - start, before, after, is_rest)

    def _cuts(self, block: Block, count: int, most: int) -> Iterator[tuple[int, int, bool]]:
        # Parts of some `most` events. DATA stays with its event; where that is in the block
        # before, it is a part of its own.
        start = 0
        rest = self._data_at(block, 0, count)
        if rest:
            yield 0, rest, True
            start = rest
            if start == count:
                return
        is_packed = block.type is BlockType.PACKED
        while True:
            stop = count if is_packed else min(start + most, count)
            stop += self._data_at(block, stop, count)
            yield start, stop, False
            if stop == count:
                return
            start = stop

    def _data_at(self, block: Block, index: int, count: int) -> int:
        # How many events from this one on are DATA; there are none without layouts.
        most = min(count - index, MOST_WORDS)
        if not self._capture.meta.layouts or not most:
            return 0
        if block.type is BlockType.PACKED:
            return block.rest
        raw = bytearray(most * EVENT_BYTES)
        self._capture.read_into(block.offset + index * EVENT_BYTES, memoryview(raw))
        kinds = np.frombuffer(raw, np.uint8)[8::EVENT_BYTES] & np.uint8(15)
        others = np.flatnonzero(kinds != DATA)
        return int(others[0]) if len(others) else most

    def _pieces_by_time(self) -> tuple[list[_Piece], list[int]]:
        blocks = self._capture.events
        rings = len({block.ring for block in blocks})
        size = max(_CHUNK_EVENTS // max(rings, 1), _MIN_PIECE_EVENTS)
        pieces = list(self._pieces(blocks, size))
        times_ns = self.clock.ns(self._first_ticks(pieces)).tolist()
        latest_ns: dict[int, int] = {}
        for index, piece in enumerate(pieces):
            if not piece.count or piece.is_rest:  # it stays behind the events of its ring
                times_ns[index] = latest_ns.get(piece.ring, 0)
            latest_ns[piece.ring] = times_ns[index]
        order = sorted(range(len(pieces)), key=times_ns.__getitem__)
        return [pieces[index] for index in order], [times_ns[index] for index in order]

    def _first_ticks(self, pieces: list[_Piece]) -> NDArray[np.uint64]:
        ticks = np.zeros(len(pieces), dtype=np.uint64)
        view = ticks.view(np.uint8).data
        for index, piece in enumerate(pieces):
            if piece.block.type is BlockType.PACKED:
                ticks[index] = piece.block.first_tsc
            elif piece.count:
                self._capture.read_into(piece.offset, view[index * 8 : index * 8 + 8])
        return ticks

    def _columns(self, pieces: list[_Piece], last_ns: dict[int, int]) -> Events:
        raw = self._read(pieces)
        counts = [piece.count for piece in pieces]
        kind = raw.view(np.uint8)[:, 8] & np.uint8(15)
        site = self._lookup.find(raw[:, 1] >> np.uint64(16))
        site[kind - np.uint8(ENTRY) > np.uint8(EXIT - ENTRY)] = -1
        ts_ns = self.clock.ns(raw[:, 0])
        is_data = kind == DATA
        words = _NO_WORDS
        if is_data.any():
            words = np.where(is_data, raw[:, 0], np.uint64(0))
            ts_ns = _owners_times(pieces, ts_ns, is_data, last_ns)
        return Events(
            ts_ns=ts_ns,
            words=words,
            tid=np.repeat(np.array([piece.tid for piece in pieces], dtype=np.uint32), counts),
            site=site,
            type=kind,
            losses=tuple(_losses(pieces, ts_ns, last_ns)),
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
            if piece.block.type is BlockType.PACKED:
                self._unpack(piece, view[start:stop])
            else:
                self._capture.read_into(piece.offset, view[start:stop])
            start = stop
        return raw

    def _unpack(self, piece: _Piece, view: memoryview) -> None:
        block = piece.block
        self._capture.read_into(block.offset, self._unpacker.payload(block.payload_bytes))
        is_part = piece.count < block.events
        room = memoryview(bytearray(block.events * EVENT_BYTES)) if is_part else view
        if not self._unpacker.unpack(block.payload_bytes, room, block.events):
            text = f"{block.events:,} packed events are damaged"
            raise CaptureFormat(self._capture.path, block.offset, text)
        if is_part:
            begin = piece.start * EVENT_BYTES
            view[:] = room[begin : begin + len(view)]


def _owners_times(
    pieces: list[_Piece],
    ts_ns: NDArray[np.int64],
    is_data: NDArray[np.bool_],
    last_ns: dict[int, int],
) -> NDArray[np.int64]:
    # The times, with DATA's taken from the last event before it that has one.
    rows = np.arange(len(ts_ns))
    owner = np.maximum.accumulate(np.where(is_data, -1, rows))
    found: NDArray[np.int64] = ts_ns[owner]
    ring_ns = dict(last_ns)
    start = 0
    for piece in pieces:
        stop = start + piece.count
        if piece.count:
            orphans = start + int(np.searchsorted(owner[start:stop], start))
            found[start:orphans] = ring_ns.get(piece.ring, 0)
            ring_ns[piece.ring] = int(found[stop - 1])
        start = stop
    return found


def _losses(
    pieces: list[_Piece], ts_ns: NDArray[np.int64], last_ns: dict[int, int]
) -> Iterator[Loss]:
    # `last_ns` remembers each ring's last event from chunk to chunk.
    row = 0
    for piece in pieces:
        if piece.count and piece.lost_before:
            yield Loss(int(ts_ns[row]), piece.tid, piece.lost_before)
        row += piece.count
        if piece.count:
            last_ns[piece.ring] = int(ts_ns[row - 1])
        lost = piece.lost_after + (0 if piece.count else piece.lost_before)
        if lost:
            yield Loss(last_ns.get(piece.ring, -1) + 1, piece.tid, lost)


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
        none = np.empty(0, np.int64)
        return Events(none, none.astype(np.uint32), none.astype(np.int32), none.astype(np.uint8))
    words = _NO_WORDS
    if any(part.has_data for part in parts):
        words = np.concatenate(
            [part.words if part.has_data else np.zeros(len(part), np.uint64) for part in parts]
        )
    return Events(
        np.concatenate([part.ts_ns for part in parts]),
        np.concatenate([part.tid for part in parts]),
        np.concatenate([part.site for part in parts]),
        np.concatenate([part.type for part in parts]),
        tuple(loss for part in parts for loss in part.losses),
        words,
    )


def _split(events: Events, limit_ns: int | None) -> tuple[Events, Events]:
    # Sorted by time, then cut before the first event at or after the limit.
    order = np.argsort(events.ts_ns, kind="stable")
    losses = sorted(events.losses, key=lambda loss: loss.ts_ns)
    if limit_ns is None:
        return _take(events, order, losses), _join([])
    cut = int(np.count_nonzero(events.ts_ns < limit_ns))
    early = [loss for loss in losses if loss.ts_ns < limit_ns]
    return _take(events, order[:cut], early), _take(events, order[cut:], losses[len(early) :])


def _take(events: Events, rows: NDArray[np.intp], losses: list[Loss]) -> Events:
    return Events(
        events.ts_ns[rows],
        events.tid[rows],
        events.site[rows],
        events.type[rows],
        tuple(losses),
        events.words[rows] if events.has_data else _NO_WORDS,
    )
