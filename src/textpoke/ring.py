# SPDX-License-Identifier: Apache-2.0
"""The tool's end of the rings: hand what threads have recorded to the capture, count losses.

Nothing here is done per event: one native call drains all rings.
"""

from __future__ import annotations

import errno
import mmap
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import AgentFailed
from textpoke._native import ffi, lib
from textpoke.packing import Packer
from textpoke.wire import plausible

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from textpoke.agent import Agent
    from textpoke.ring_sets import RingSet

OVERWRITE = 1 << 62
_BLOCK_HEADER_BYTES = 48
_SLACK = 64  # a nested signal handler may pass the limit by one event a level
EVENT_BYTES = 16
_LATEST = (1 << 64) - 1


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


@dataclass(frozen=True, slots=True)
class Span:
    """What is to be copied out of rings that run on.

    Attributes:
        from_tsc: Its first tick.
        to_tsc: Its last one.
        tids: Threads; None for all.
        again: What was copied before, too; later copies are as if this one had not been.
    """

    from_tsc: int
    to_tsc: int
    tids: Collection[int] | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Short:
    """The ring that reaches back least far of those that do not reach far enough.

    Attributes:
        tid: Its thread.
        from_tsc: Its oldest event.
        until_tsc: Its newest one.
        events: How many there are.
    """

    tid: int
    from_tsc: int
    until_tsc: int
    events: int

    def bytes_for(self, span_ticks: int) -> int:
        """The size of a ring that would hold so much time at that rate."""
        held = max(self.until_tsc - self.from_tsc, 1)
        need = self.events * span_ticks // held * EVENT_BYTES
        return 1 << max(need - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy brought.

    Attributes:
        events: Events that were written.
        lost: Events of the span that were overwritten meanwhile, or that nobody has finished.
        bytes: Bytes written.
        short: A ring that does not hold all of the span; None when all do.
    """

    events: int = 0
    lost: int = 0
    bytes: int = 0
    short: Short | None = None


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
        self._given, self._touched = (ffi.new("uint64_t[]", self.count) for _ in range(2))
        # A copy out of rings that run on must be fast: its pages are there from the start.
        size, flags = layout.ring_bytes + _BLOCK_HEADER_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, size, flags=flags | (mmap.MAP_POPULATE if overwrite else 0))
        self._buffer = ffi.from_buffer("uint8_t[]", self._memory, require_writable=True)
        self._rings.map = ffi.cast("uint8_t *", wire)
        self._rings.map_bytes = len(rings.shared)
        for name in ("ring_offset", "ring_count", "ring_stride", "ring_bytes"):
            setattr(self._rings, name, getattr(layout, name))
        self._rings.fd = fd
        self._rings.waiting = waiting = OVERWRITE if overwrite else self.capacity - _SLACK
        self.waiting: int = waiting
        self._rings.tails, self._rings.dropped, self._rings.dead_since_ns = self._keep
        self._rings.begun = self._begun = ffi.new("uint8_t[]", self.count)
        self._packs: Packer | None = None
        self._sites = array("Q")
        self._rings.buffer = self._buffer
        if lib.tp_rings_start(self._rings):
            raise AgentFailed("checking the rings", errno.EBADMSG)
        self._heads_before = self._heads = self._look(1 << 63)

    def know(self, sites: Iterable[int]) -> None:
        """Tell what events call the sites that are traced.

        What a thread's ring begins with that is of no site is of an earlier trace: the thread was
        on the way to its probe when that trace ended.
        """
        self._sites = array("Q", sorted(sites))
        self._rings.sites = ffi.from_buffer("uint64_t[]", self._sites)
        self._rings.site_count = len(self._sites)

    def write_to(self, fd: int, *, packed: bool = False) -> None:
        """Send what is drained from now on to `fd`, packed or as it is; -1 throws it away."""
        self._rings.fd = fd
        self._rings.packer = self._packer().raw if packed else ffi.NULL

    def _packer(self) -> Packer:
        if self._packs is None:
            self._packs = Packer()
        return self._packs

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

    def copy(self, span: Span, fd: int, *, packed: bool = False) -> Copied:
        """Write what the rings hold of a span to `fd` (-1: count only); their threads run on.

        Args:
            span: Which part.
            fd: Where to.
            packed: As a capture has it, instead of as it is in the rings.

        Raises:
            OSError: It could not be written; `errno` says why.
        """
        out = ffi.new("struct tp_copied *")
        wanted = ffi.new("struct tp_span *")
        wanted.from_tsc, wanted.to_tsc = max(span.from_tsc, 0), min(span.to_tsc, _LATEST)
        wanted.given, wanted.again, wanted.fd = self._given, span.again, fd
        wanted.packer = self._packer().raw if packed else ffi.NULL
        if span.tids is not None:
            tids = ffi.new("uint32_t[]", list(span.tids) or 1)
            wanted.tids, wanted.tid_count = tids, len(span.tids)
        error = lib.tp_copy_rings(self._rings, wanted, out)
        if error:
            raise OSError(-error, "writing the capture")
        short = Short(out.short_tid, out.short_from_tsc, out.short_until_tsc, out.short_events)
        return Copied(out.events, plausible(out.lost), out.bytes, short if short.from_tsc else None)

    def written(self, quiet_ns: int) -> int:
        """Events that threads have written since this reader began; for rings that are not drained.

        Args:
            quiet_ns: Rings whose threads have been gone for so long may serve others.
        """
        self._heads = max(self._heads, self._look(quiet_ns))
        return plausible(self._heads - self._heads_before)

    def _look(self, quiet_ns: int) -> int:
        return int(lib.tp_look_at_rings(self._rings, quiet_ns, self._touched))

    @property
    def lost_no_ring(self) -> int:
        """Events of threads for which no ring was left, since this reader began."""
        return plausible(int(self._wire.events_without_ring) - self._no_ring_before)

    def tids(self) -> list[int]:
        """Ids of the threads that have had a ring, in the target's own numbering."""
        found = set()
        for i in range(self.count):
            offset = self._rings.ring_offset + i * self._rings.ring_stride
            ring = ffi.cast("struct tp_ring *", self._rings.map + offset)
            if ring.tid:
                found.add(int(ring.tid))
        return sorted(found)
