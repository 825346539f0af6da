# SPDX-License-Identifier: Apache-2.0
"""The tool's end of the rings: hand what threads have recorded to the capture, count losses.

Nothing here is done per event: one native call drains all rings.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import AgentFailed
from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from textpoke._native import Pointer
    from textpoke.agent import Agent
    from textpoke.ring_sets import RingSet

OVERWRITE = 1 << 62
_BLOCK_HEADER_BYTES = 48
_SLACK = 64  # a nested signal handler may pass the limit by one event a level
EVENT_BYTES = 16
_MOST_LOST = 1 << 61


def plausible(lost: int) -> int:
    """A count of losses that a capture can hold: the target writes it and may lie."""
    return min(max(lost, 0), _MOST_LOST)


@dataclass(slots=True)
class Drained:
    """What one or several drains brought.

    Attributes:
        events: Events taken to the capture.
        lost: Events that threads could not write, or that were overwritten.
        bytes: Bytes written to the capture.
        incomplete: Events reserved but not yet written, at the last drain.
        fullest: Events that waited in the fullest ring, the most of all drains.
    """

    events: int = 0
    lost: int = 0
    bytes: int = 0
    incomplete: int = 0
    fullest: int = 0

    def add(self, other: Drained) -> None:
        """Add a later drain to the totals."""
        self.events += other.events
        self.lost = plausible(self.lost + other.lost)
        self.bytes += other.bytes
        self.incomplete = other.incomplete
        self.fullest = max(self.fullest, other.fullest)


class RingReader:
    """Drains all rings of one set; keep it until the trace has ended.

    Args:
        rings: The set; its shared memory must stay mapped.
        fd: The capture; -1 counts events and throws them away.
        overwrite: Full rings overwrite their oldest events instead of dropping new ones.

    Attributes:
        capacity: Events that one ring holds.
        waiting: Events that may wait in a ring before its thread drops them (`Agent.record`).

    Raises:
        AgentFailed: The layout of the shared memory makes no sense.
    """

    def __init__(self, rings: RingSet | Agent, fd: int, *, overwrite: bool = False) -> None:
        wire, layout = rings.wire, rings.layout
        if rings.shared is None or wire is None or layout is None:
            raise AgentFailed("reading rings of a closed connection", errno.EBADF)
        self._wire = wire
        self._no_ring_before = int(wire.events_without_ring)
        self.count: int = layout.ring_count
        self.capacity: int = layout.ring_bytes // EVENT_BYTES
        self._rings = ffi.new("struct tp_rings *")
        self._keep = [ffi.new("uint64_t[]", self.count) for _ in range(3)]
        self._buffer = ffi.new("uint8_t[]", layout.ring_bytes + _BLOCK_HEADER_BYTES)
        self._rings.map = ffi.cast("uint8_t *", wire)
        self._rings.map_bytes = len(rings.shared)
        for name in ("ring_offset", "ring_count", "ring_stride", "ring_bytes"):
            setattr(self._rings, name, getattr(layout, name))
        self._rings.fd = fd
        self._rings.waiting = waiting = OVERWRITE if overwrite else self.capacity - _SLACK
        self.waiting: int = waiting
        self._rings.tails, self._rings.dropped, self._rings.dead_since_ns = self._keep
        self._rings.buffer = self._buffer
        if lib.tp_rings_start(self._rings):
            raise AgentFailed("checking the rings", errno.EBADMSG)
        self._overruns_before = self._all_overruns()

    def write_to(self, fd: int) -> None:
        """Send what is drained from now on to `fd`; -1 throws it away."""
        self._rings.fd = fd

    def drain(self, *, final: bool = False) -> Drained:
        """Take what the rings hold to the capture.

        Args:
            final: Step over events that were reserved and never written; count them as lost.

        Raises:
            OSError: The capture could not be written; `errno` says why.
        """
        out = ffi.new("struct tp_drained *")
        error = lib.tp_drain_rings(self._rings, int(final), out)
        if error:
            raise OSError(-error, "writing the capture")
        return Drained(out.events, out.lost, out.bytes, out.incomplete, out.fullest)

    @property
    def lost_no_ring(self) -> int:
        """Events of threads for which no ring was left, since this reader began."""
        return plausible(int(self._wire.events_without_ring) - self._no_ring_before)

    @property
    def overruns(self) -> int:
        """Calls that were too deep to be followed to their return, since this reader began."""
        return plausible(self._all_overruns() - self._overruns_before)

    def _all_overruns(self) -> int:
        return sum(int(self._ring(i).overruns) for i in range(self.count))

    def _ring(self, i: int) -> Pointer:
        offset = self._rings.ring_offset + i * self._rings.ring_stride
        return ffi.cast("struct tp_ring *", self._rings.map + offset)

    def tids(self) -> list[int]:
        """Ids of the threads that have had a ring, in the target's own numbering."""
        found = set()
        for i in range(self.count):
            ring = self._ring(i)
            if ring.tid:
                found.add(int(ring.tid))
        return sorted(found)
