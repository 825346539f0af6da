# SPDX-License-Identifier: Apache-2.0
"""What is patched in a process: read from outside, without a lock and without touching it."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import leave, target
from textpoke._native import lib
from textpoke.agent import Agent, connect_to_look, lock_owner
from textpoke.process_sites import of_process

if TYPE_CHECKING:
    from textpoke.model import Module


@dataclass(slots=True)
class Status:
    """The state of one process.

    Attributes:
        pid: The process.
        agent_tid: The agent's thread; 0 when there is none.
        owner: The tool that is attached; "" when none is.
        patched: Names of the sites that are patched now.
        known: Number of sites that were ever patched.
        rings_live: Threads that have a ring.
        regions: Mappings for pads and islands.
        broken: A recovery has failed.
        kept: What is patched stays although its tool has gone (`attach(keep=True)`).
        turned_off: Times that a tool died and the agent turned its recording off by itself.
    """

    pid: int
    agent_tid: int = 0
    owner: str = ""
    patched: list[str] = field(default_factory=list)
    known: int = 0
    rings_live: int = 0
    regions: int = 0
    broken: bool = False
    kept: bool = False
    turned_off: int = 0

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def read_status(pid: int) -> Status:
    """Read what is patched in process `pid`.

    Raises:
        NoSuchTarget, AttachDenied: It cannot be looked at.
    """
    target.read_maps(pid)  # who may not look must not be told that nothing is there
    agent = connect_to_look(pid)
    if agent is None:
        return Status(pid)
    try:
        head = agent.image()
        known = leave.known_sites(agent)
        now = [site.address for site in known if site.patched]
        return Status(
            pid,
            agent.tid,
            lock_owner(pid),
            _names(pid, now),
            len(known),
            _live_rings(agent),
            head.region_count,
            bool(head.broken),
            bool(head.keep),
            head.orphaned,
        )
    finally:
        agent.close()


def _names(pid: int, addresses: list[int]) -> list[str]:
    finder = of_process(pid, everything=True)
    modules = target.read_modules(pid) if addresses else []
    patched = [m for m in modules if any(_holds(m, address) for address in addresses)]
    found = sorted((s for m in patched for s in finder.of_module(m)), key=lambda s: s.address)
    starts = [site.address for site in found]
    names = []
    for address in addresses:
        i = bisect.bisect_left(starts, address)
        exact = i < len(found) and starts[i] == address
        names.append(str(found[i]) if exact else f"{address:#x}")
    return names


def _holds(module: Module, address: int) -> bool:
    return any(m.start <= address < m.end for m in module.mappings)


def _live_rings(agent: Agent) -> int:
    layout, shared = agent.layout, agent.shared
    if layout is None or shared is None:
        return 0
    at, stride = layout.ring_offset + 128, layout.ring_stride  # struct tp_ring, state
    live = 0
    for i in range(layout.ring_count):
        place = at + i * stride
        live += int.from_bytes(shared[place : place + 4], "little") == lib.TP_RING_LIVE
    return live
