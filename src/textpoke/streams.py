# SPDX-License-Identifier: Apache-2.0
"""Drained events on their way to the capture, as numpy rows of (first word, second word).

Nothing here is done per event. A DATA event has no time of its own: it has that of the ENTRY or
EXIT before it in its ring.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from textpoke._capture_format import EVENT_BYTES, HEADER_BYTES, Block, BlockType, parse_header
from textpoke.packing import MOST_EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from textpoke.packing import Packer

ENTRY, EXIT, DATA = 1, 2, 3
"""Types of events, the lowest four bits of the second word."""

_KIND = np.uint64(15)
_IP_SHIFT = np.uint64(16)


@dataclass(frozen=True, slots=True, eq=False)
class RawBlock:
    """A block of events of one ring.

    Attributes:
        rows: uint64, shape (n, 2), in the order of writing.
        tid: Thread that wrote them.
        ring: Number of the ring.
        generation: Of the ring.
        sequence: Index in its ring of the first event.
        lost: Events lost in the ring behind these.
    """

    rows: NDArray[np.uint64]
    tid: int
    ring: int = 0
    generation: int = 0
    sequence: int = 0
    lost: int = 0

    @property
    def kinds(self) -> NDArray[np.uint64]:
        """Type of each event."""
        return self.rows[:, 1] & _KIND

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """Return address of each ENTRY and EXIT; of DATA events something else."""
        return self.rows[:, 1] >> _IP_SHIFT

    def owned(self) -> RawBlock:
        """The same with rows of its own: those of a tap are good until its next drain."""
        return replace(self, rows=self.rows.copy())

    def write(self, fd: int, packer: Packer, *, older: bool = False) -> None:
        """Append it to a capture, as one block or several.

        Args:
            fd: The capture.
            packer: Packs the events.
            older: What was lost is before these events: the ring overwrites.

        Raises:
            OSError: It cannot be written.
        """
        for start in range(0, max(len(self.rows), 1), MOST_EVENTS):
            part = self.part(start, min(start + MOST_EVENTS, len(self.rows)))
            if older:
                part = replace(part, lost=0 if start else self.lost)
            rows = np.ascontiguousarray(part.rows)
            payload = packer.pack(rows.reshape(-1).view(np.uint8).data, len(rows))
            kind = BlockType.PACKED if len(rows) else BlockType.EVENTS
            _write_all(fd, [memoryview(part.header(kind, len(payload))), payload])

    def encoded(self) -> bytes:
        """As the ring reader writes it to a tap: header and events."""
        data = np.ascontiguousarray(self.rows).tobytes()
        return self.header(BlockType.EVENTS, len(data)) + data

    def header(self, kind: BlockType, size: int) -> bytes:
        """What stands before a payload of these events, of `size` bytes."""
        return Block(
            kind,
            0,
            size,
            self.lost,
            self.tid,
            self.generation,
            self.sequence,
            self.ring,
        ).header()

    def part(self, start: int, stop: int) -> RawBlock:
        """Events [start, stop); what was lost stays with the last of them."""
        return replace(
            self,
            rows=self.rows[start:stop],
            sequence=self.sequence + start,
            lost=self.lost if stop == len(self.rows) else 0,
        )

    def only(self, kept: NDArray[np.bool_], *, lost: bool) -> RawBlock | None:
        """The rows that are marked; None when there is nothing.

        Args:
            kept: A mark for each row.
            lost: Whether what was lost behind them counts.
        """
        if kept.all():
            return self if lost or not self.lost else replace(self, lost=0)
        places = np.flatnonzero(kept)
        if not len(places) and not (lost and self.lost):
            return None
        first = int(places[0]) if len(places) else len(self.rows)
        return replace(
            self,
            rows=self.rows[places],
            sequence=self.sequence + first,
            lost=self.lost if lost else 0,
        )


def split_blocks(data: bytes | bytearray | memoryview) -> list[RawBlock]:
    """The blocks in what a ring reader has written; the rows are views of `data`.

    Raises:
        ValueError: Something else than whole blocks of events.
    """
    view, found, offset = memoryview(data), [], 0
    while offset < len(view):
        head = bytes(view[offset : offset + HEADER_BYTES])
        block = parse_header(offset, head) if len(head) == HEADER_BYTES else "a cut header"
        if isinstance(block, str):
            raise ValueError(block)  # noqa: TRY004 - the bytes are wrong, not their type
        if block.type is not BlockType.EVENTS or block.end > len(view):
            raise ValueError("not a whole block of events", offset)
        rows = np.frombuffer(view[block.offset : block.end], np.uint64).reshape(-1, 2)
        found.append(
            RawBlock(rows, block.tid, block.ring, block.generation, block.sequence, block.lost)
        )
        offset = block.end
    return found


def _write_all(fd: int, parts: list[memoryview]) -> None:
    while parts:
        done = os.writev(fd, parts)
        while parts and done >= len(parts[0]):
            done -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][done:]


class Tap:
    """A file in memory for the ring reader to write to (`RingReader.write_to(tap.fd)`).

    Attributes:
        fd: The descriptor.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("textpoke-tap", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None

    def take(self) -> list[RawBlock]:
        """What was written since the last time."""
        return [block.owned() for block in self.borrow()]

    def borrow(self) -> list[RawBlock]:
        """The same without a copy: the rows are good until somebody writes to the tap again."""
        size = os.lseek(self.fd, 0, os.SEEK_CUR)
        if not size:
            return []
        # The file keeps its pages: fresh ones for every drain would cost as much as the copy.
        os.lseek(self.fd, 0, os.SEEK_SET)
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size, prot=mmap.PROT_READ)
        return split_blocks(memoryview(self._map)[:size])

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def owners(block: RawBlock) -> NDArray[np.intp]:
    """For each row the row of its ENTRY or EXIT; -1 where that is in an earlier block."""
    own = np.arange(len(block.rows), dtype=np.intp)
    own[block.kinds == DATA] = -1
    found: NDArray[np.intp] = np.maximum.accumulate(own)
    return found


class Times:
    """Gives every event its time; remembers each ring's last one, for DATA that comes later."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def of(self, block: RawBlock) -> NDArray[np.uint64]:
        """Ticks of each event of a block; blocks of a ring in their order."""
        if not len(block.rows):
            return np.empty(0, np.uint64)
        times: NDArray[np.uint64] = block.rows[:, 0].copy()
        if (block.kinds == DATA).any():
            own = owners(block)
            times = times[np.maximum(own, 0)]
            times[own < 0] = self._last.get(block.ring, 0)
        self._last[block.ring] = int(times[-1])
        return times

    def later(self, block: RawBlock) -> Callable[[], NDArray[np.uint64]]:
        """As `of`, worked out when it is asked for; the ring goes on from here at once."""
        before = self._last.get(block.ring, 0)
        if len(block.rows):
            self._last[block.ring] = _last_time(block.rows, before)

        def of() -> NDArray[np.uint64]:
            times = Times()
            times._last[block.ring] = before
            return times.of(block)

        return of

    def last(self, ring: int) -> int:
        """Time of a ring's last event; 0 for none."""
        return self._last.get(ring, 0)


def _last_time(rows: NDArray[np.uint64], before: int) -> int:
    for row in range(len(rows) - 1, -1, -1):
        if int(rows[row, 1]) & 15 != DATA:
            return int(rows[row, 0])
    return before


def open_calls(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of one thread's events, the ENTRYs whose calls have not ended behind them."""
    kind = rows[:, 1] & _KIND
    is_entry = kind == ENTRY
    depth = np.cumsum(is_entry.astype(np.int64) - (kind == EXIT))
    lowest = np.minimum.accumulate(depth[::-1])[::-1]
    found: NDArray[np.uint64] = rows[is_entry & (lowest >= depth)]
    return found


class OpenCalls:
    """The calls that are open in one thread, from block to block.

    Where there are ENTRYs only (the function tracer), the last functions instead.
    """

    MOST_RECENT = 16
    _MOST_OPEN = 1 << 17

    def __init__(self) -> None:
        self._graph = False
        self._open = np.empty((0, 2), np.uint64)

    def copy(self) -> OpenCalls:
        """The same, to go on from without a change of this one."""
        other = OpenCalls()
        other._graph, other._open = self._graph, self._open
        return other

    def reset(self) -> None:
        """Events were lost: what is open is not known any more."""
        self._open = self._open[:0]

    def advance(self, rows: NDArray[np.uint64]) -> None:
        """Take in the next events of the thread."""
        joined = np.concatenate([self._open, rows])
        kind = joined[:, 1] & _KIND
        self._graph = self._graph or bool((kind == EXIT).any())
        if self._graph:
            self._open = open_calls(joined)[-self._MOST_OPEN :]
        else:
            self._open = joined[kind == ENTRY][-self.MOST_RECENT :]

    def frames(self) -> list[tuple[int, int]]:
        """(return address, ticks) of each, the innermost first."""
        return [(int(word) >> 16, int(tsc)) for tsc, word in self._open[::-1].tolist()]

    @property
    def graph(self) -> bool:
        """True when returns were seen: what is told are open calls."""
        return self._graph


def total_events(blocks: Iterable[RawBlock]) -> int:
    """How many events there are in some blocks."""
    return sum(len(block.rows) for block in blocks)


def block_bytes(block: RawBlock) -> int:
    """Bytes that a block takes in a capture."""
    return HEADER_BYTES + len(block.rows) * EVENT_BYTES
