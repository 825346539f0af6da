# SPDX-License-Identifier: Apache-2.0
"""Sets of rings in a target: each trace writes to its own, and none can fill another's.

The agent has one set from its start. More are made on request, and used again by later traces:
threads may be in the midst of writing to them for ever.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import wire
from textpoke._errors import AgentFailed
from textpoke._native import ffi, lib

if TYPE_CHECKING:
    from textpoke._native import Pointer
    from textpoke.agent import Agent
    from textpoke.wire import Layout

_OWN = 0


@dataclass(slots=True)
class RingSet:
    """One set of rings.

    Attributes:
        agent: The connection.
        number: Its number in the agent; 0 is the agent's own.
        address: Of the set in the target; 0 for the agent's own, which probes know.
        gate: Address of the word that says whether threads record; 0 likewise.
        shared: Its shared memory.
        wire: The head of that (struct tp_wire).
        layout: Where the rings are in it.
        profiled: Functions that a thread's ring has rows for; 0: the rings hold events.
        overruns_before: What rings had counted when it was taken.
        without_ring_before: Likewise, of threads that had none.
    """

    agent: Agent
    number: int
    address: int
    gate: int
    shared: mmap.mmap | None
    wire: Pointer | None
    layout: Layout | None
    profiled: int = 0
    overruns_before: int = 0
    without_ring_before: int = 0

    def record(self, *, on: bool, waiting: int = 0) -> None:
        """Let threads write, or not; `waiting` events may wait in a ring."""
        self.agent.require("switching the rings", lib.TP_CMD_RECORD, int(on), waiting, self.number)

    def overruns(self) -> int:
        """Calls since the set was taken whose return no thread could wait for."""
        return max(self._overruns_now() - self.overruns_before, 0)

    def begin(self) -> None:
        """Somebody takes it: what was counted before is not counted for him."""
        self.overruns_before = self._overruns_now()
        self.without_ring_before = self._without_ring_now()

    def without_ring(self) -> int:
        """Calls since the set was taken of threads that found no free ring."""
        return max(self._without_ring_now() - self.without_ring_before, 0)

    def _without_ring_now(self) -> int:
        if self.shared is None:
            return 0
        at = ffi.offsetof("struct tp_wire", "events_without_ring")
        return int.from_bytes(self.shared[at : at + 8], "little")

    def _overruns_now(self) -> int:
        layout = self.layout
        if layout is None or self.shared is None:
            return 0
        at = layout.ring_offset + ffi.offsetof("struct tp_ring", "overruns")
        places = (at + number * layout.ring_stride for number in range(layout.ring_count))
        return sum(int.from_bytes(self.shared[at : at + 8], "little") for at in places)

    def close(self) -> None:
        """Give up our view of it; the target keeps its own."""
        self.wire = None
        if self.number != _OWN and self.shared is not None:
            with contextlib.suppress(BufferError):  # a ring reader may still hold a view
                self.shared.close()
        self.shared = None


@dataclass(slots=True)
class RingSets:
    """All sets of one target, and which are free."""

    agent: Agent
    _free: list[RingSet] = field(default_factory=list)
    _all: list[RingSet] = field(default_factory=list)

    def take(self, *, profiled: int = 0, ring_bytes: int = 0) -> RingSet:
        """A set that nobody uses: for events, or for a profile of so many functions.

        Args:
            profiled: So many functions; 0: for events.
            ring_bytes: Size of a ring for events; 0: as the agent's own.

        Raises:
            AgentFailed: The target cannot hold another one.
        """
        if not self._all:
            agent = self.agent
            self._all.append(RingSet(agent, _OWN, 0, 0, agent.shared, agent.wire, agent.layout))
            self._free.append(self._all[0])
        size = ring_bytes or (self.agent.layout.ring_bytes if self.agent.layout else 0)
        fitting = [s for s in self._free if _fits(s, profiled, size)]
        if fitting:
            self._free.remove(fitting[0])
        else:
            fitting = [self._make(profiled, size)]
            self._all.append(fitting[0])
        fitting[0].begin()
        return fitting[0]

    def give_back(self, ring_set: RingSet) -> None:
        """Nobody uses it any more."""
        self._free.append(ring_set)

    def close(self) -> None:
        """Give up our views."""
        for ring_set in self._all:
            ring_set.close()

    def _make(self, profiled: int, ring_bytes: int) -> RingSet:
        agent, layout = self.agent, self.agent.layout
        if layout is None or agent.wire is None:
            raise AgentFailed("making rings on a closed connection", errno.EBADF)
        size = _profile_bytes(profiled) if profiled else ring_bytes
        action = "making another set of rings"
        number = agent.require(action, lib.TP_CMD_RINGS, layout.ring_count, size, profiled)
        fd, gate, address = (int(agent.wire.args[i]) for i in range(3))
        try:
            shared = _map(agent, fd)
        finally:
            agent.require(action, lib.TP_CMD_RINGS, 0, 0, 0, number + 1)
        head = ffi.from_buffer("struct tp_wire *", shared, require_writable=True)
        found = wire.read_layout(shared[: ffi.sizeof("struct tp_wire")], len(shared))
        return RingSet(agent, number, address, gate, shared, head, found, profiled)


def _fits(ring_set: RingSet, profiled: int, ring_bytes: int) -> bool:
    if profiled or ring_set.profiled:
        return bool(profiled) and ring_set.profiled >= profiled
    return ring_set.layout is not None and ring_set.layout.ring_bytes == ring_bytes


def _profile_bytes(functions: int) -> int:
    """Of a ring with rows for so many functions, and a table of places twice as long."""
    places = 64
    while places < 2 * functions:
        places *= 2
    row = ffi.sizeof("struct tp_profile")
    need = places * 16 + (functions + 1) * row
    return 1 << max(12, (need - 1).bit_length())


def _map(agent: Agent, fd: int) -> mmap.mmap:
    path = f"/proc/{agent.pid}/task/{agent.tid}/fd/{fd}"
    try:
        ours = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise AgentFailed("opening another set of rings", exc.errno or 0) from exc
    try:
        return mmap.mmap(ours, os.fstat(ours).st_size)
    finally:
        os.close(ours)
