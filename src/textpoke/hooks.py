# SPDX-License-Identifier: Apache-2.0
"""How a patched site is led to one probe or another: pure functions of plans and addresses.

A site comes to its probe by the CALL at the site itself, the CALL in its stub, or the JMP of its
landing pad, or the cell that this jumps by. Leading it elsewhere is a poke of the CALL or JMP, one
to another, or a store to the cell: no thread passes through a NOP, and no call is lost.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textpoke.plan import (
    CALL,
    CALL_BYTES,
    CELL,
    CS_PREFIX,
    JMP,
    PAD_DISTANCE,
    PAGE,
    REACH,
    Method,
)
from textpoke.poke import Poke

if TYPE_CHECKING:
    from collections.abc import Callable

    from textpoke.agent_image import Probe
    from textpoke.plan import Plan, SitePlan, Space

BELOW_CALL = 8
"""Bytes from a probe's return address to the function's, where a CALL stands at the site."""
BELOW_STUB = 8 + 128
"""The same behind a stub, which keeps clear of the red zone."""
_ALIGN = 64
_STUBBED = (Method.JMP, Method.PUN, Method.TRAP)


@dataclass(frozen=True, slots=True)
class Hook:
    """What leads a site to its probe: a CALL, a JMP, or a cell of data.

    Attributes:
        address: Its first byte.
        opcode: CALL or JMP; 0 of a cell.
        prefix: Bytes before the opcode that do nothing.
        in_site: It is the site itself: off when the site is.
    """

    address: int
    opcode: int = CALL
    prefix: bytes = b""
    in_site: bool = False

    @property
    def is_cell(self) -> bool:
        """True for what is no code: any thread reads the old address or the new one."""
        return not self.opcode

    def code(self, probe: int) -> bytes:
        """Its bytes when it leads to `probe`."""
        if self.is_cell:
            return CELL.pack(probe)
        end = self.address + len(self.prefix) + CALL_BYTES
        return self.prefix + struct.pack("<Bi", self.opcode, probe - end)


def hook_of(planned: SitePlan) -> Hook:
    """What leads a planned site to its probe."""
    if planned.method is Method.FLIP:
        if planned.cell:
            return Hook(planned.cell, opcode=0)
        return Hook(planned.site.address - PAD_DISTANCE, JMP)
    if planned.method in _STUBBED:
        return Hook(planned.return_address - CALL_BYTES)
    prefix = CS_PREFIX * (planned.site.length - CALL_BYTES)
    return Hook(planned.site.address, CALL, prefix, in_site=True)


def offset_of(planned: SitePlan) -> int:
    """Bytes from a probe's return address to the function's."""
    return BELOW_STUB if planned.method in _STUBBED else BELOW_CALL


def lead_poke(planned: SitePlan, old: int, new: int) -> Poke:
    """Lead the site, on or off, from one probe to another; of a cell, it is only stored."""
    hook = hook_of(planned)
    name = str(planned.site)
    site = planned.site.address
    return Poke(hook.address, hook.code(old), hook.code(new), 0, name, part_of=site)


def led_to(planned: SitePlan, probe: int) -> SitePlan:
    """The plan whose site, when it is switched on, comes to `probe`."""
    hook = hook_of(planned)
    return replace(planned, on=hook.code(probe), lead=probe) if hook.in_site else planned


class Copies:
    """Copies of probes' code near the sites that they serve, in pages of our own.

    Args:
        make: Gives the code of a probe that stands at an address and goes on to another (or 0).

    Attributes:
        placed: Address and kind of every copy.
    """

    def __init__(self, make: Callable[[Probe, int, int], bytes]) -> None:
        self._make = make
        self._pages: list[list[int]] = []  # start and bytes in use
        self._by_chain: dict[tuple[Probe, ...], list[int]] = {}
        self.placed: list[tuple[int, int]] = []

    def near(self, planned: SitePlan, chain: tuple[Probe, ...], space: Space, plan: Plan) -> int:
        """Address of a copy of the probes of `chain`, which go on one to the next; 0: no room.

        Args:
            planned: The site that must reach it.
            chain: What it shall come to.
            space: What of the address space is taken.
            plan: Gets the regions to map and the code to write.
        """
        at = hook_of(planned).address
        for copy in self._by_chain.get(chain, ()):
            if abs(copy - at) < REACH:
                return copy
        after = 0
        for probe in reversed(chain):
            after = self._place(probe, after, at, space, plan)
            if not after:
                return 0
        self._by_chain.setdefault(chain, []).append(after)
        return after

    def _place(self, probe: Probe, after: int, at: int, space: Space, plan: Plan) -> int:
        size = -(-len(self._make(probe, 0, 0)) // _ALIGN) * _ALIGN
        for page in self._pages:
            if abs(page[0] - at) < REACH and page[1] + size <= PAGE:
                break
        else:
            start = space.room_near(at, at + CALL_BYTES)
            if start is None:
                return 0
            plan.regions.append((start, PAGE))
            space.take(start, start + PAGE)
            page = [start, 0]
            self._pages.append(page)
        address = page[0] + page[1]
        page[1] += size
        plan.code.append((address, self._make(probe, address, after)))
        self.placed.append((address, probe.kind))
        return address
