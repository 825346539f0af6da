# SPDX-License-Identifier: Apache-2.0
"""From sites to pokes: which bytes to write, and what code must be mapped where for them.

Pure functions of sites and address ranges; nothing here touches a process.

A run of one-byte NOPs is flipped by one byte: `e8 90 90 90 90` is a CALL whose displacement is the
NOPs themselves, to a landing pad mapped at site - 0x6F6F6F6B (docs/architecture.md, "One byte to
flip"). Where that place is taken, or below the address space (non-PIE), the run is first merged
into one NOP, `66 66 66 66 90`: whatever mix of the two a core fetches, at whatever byte a thread
sleeps, it meets NOPs only, so merging needs no stop. A single NOP gets a CALL to an island nearby.
An entry without NOPs gets a JMP to a stub nearby, which calls the thunk, does what was displaced
and goes on behind it (`stubs`). Where a branch goes into its first five bytes, only the first may
change (a natural pun): the JMP goes where the bytes behind it say, if that place is free.
"""

from __future__ import annotations

import bisect
import enum
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from textpoke import branch_stubs, stubs
from textpoke.model import BranchSite, Site, SiteKind

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from textpoke.model import Mapping
    from textpoke.stubs import Stub

_AnySite = TypeVar("_AnySite", bound=Site)

PAGE = 4096
PAD_DISTANCE = 0x6F6F6F6B
MERGED_NOP = b"\x66\x66\x66\x66\x90"
CALL, JMP = 0xE8, 0xE9
CALL_BYTES = JMP_BYTES = 5
PAD_BYTES = 6  # jmp *cell(%rip), or JMP and an int3 behind it
CELL = struct.Struct("<Q")
CS_PREFIX = b"\x2e"  # ignored on CALL in 64-bit mode: fills a longer NOP with one instruction
_INT3 = 0xCC
_JMP_CELL = 0x25FF  # jmp *cell(%rip)
REACH = 0x7FFF0000
_LOWEST = 0x10000  # vm.mmap_min_addr
_HIGHEST = 0x7FFF_FFFF_0000
_STACK_GROWTH = 64 << 20
_ABOVE = 64 << 20  # from the end of a mapping, and to the next one
_GAP_PAGES = 64  # pads closer than this share a mapping
_STRETCH = 1 << 30  # of text that shares a region of stubs: those must reach all of it
_NO_ROOM = "no free memory within 2 GiB of it"
_NO_PUN = "the place that its own bytes make a JMP go to cannot be mapped"
_MOST_PUNS = 64  # each has a mapping of its own, and processes have a limit on those


class Method(enum.Enum):
    """How a site's CALL comes about."""

    FLIP = "flip"
    """One byte: NOP to the opcode of CALL, whose displacement is the NOPs after it."""
    CALL = "call"
    """The NOP is one instruction: the plain protocol."""
    MERGE = "merge"
    """A run of NOPs that is made one instruction first."""
    JMP = "jmp"
    """An entry's own instructions give way to a JMP; they are done elsewhere."""
    PUN = "pun"
    """One byte: an instruction's opcode to that of a JMP, whose distance is the bytes after it."""
    TRAP = "trap"
    """One byte: an int3 that stays; the trap handler sends every call to the stub."""


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What to write at one site.

    Attributes:
        site: The site; `site.old` is what the file has.
        method: How it is patched.
        off: Bytes of the unpatched site; differs from `site.old` where a run was merged.
        on: Bytes of the CALL.
        return_address: Where the CALL returns to; events carry it.
        copies: Of an entry of several instructions: where those begin in the stub (`Poke.copies`).
        handler: Where a thread goes on that meets an int3 that stays; 0 for none.
        lead: The probe that it comes to as planned.
        cell: Where the address stands that its landing pad jumps to; 0: it is in the pad's JMP.
    """

    site: Site
    method: Method
    off: bytes
    on: bytes
    return_address: int
    copies: bytes = b""
    handler: int = 0
    lead: int = 0
    cell: int = 0


@dataclass(frozen=True, slots=True)
class BranchPlan(SitePlan):
    """What to write at a site whose branches are counted.

    Attributes:
        counters: Address of its counters (`branch_stubs.COUNTER_BYTES` for each branch).
    """

    counters: int = 0


@dataclass(slots=True)
class Plan:
    """Pokes, and the code to map before them.

    Attributes:
        sites: In address order.
        regions: (start, bytes) of new r-x mappings.
        data: (start, bytes) of new r-- mappings.
        counters: (start, bytes) of new rw- mappings.
        code: (address, bytes) to write into them.
        refused: (site, reason) of sites for which no room was found.
    """

    sites: list[SitePlan] = field(default_factory=list)
    regions: list[tuple[int, int]] = field(default_factory=list)
    data: list[tuple[int, int]] = field(default_factory=list)
    counters: list[tuple[int, int]] = field(default_factory=list)
    code: list[tuple[int, bytes]] = field(default_factory=list)
    refused: list[tuple[Site, str]] = field(default_factory=list)


class Space:
    """The address ranges of a process that are taken, ours among them.

    Args:
        maps: The mappings of the process.
        owned: (start, bytes) of regions that we mapped for pads and islands before.
        apart: Bytes to keep between mappings and what is placed near them, where there is room:
            just below them the kernel puts what the process maps next.
    """

    def __init__(
        self,
        maps: Iterable[Mapping],
        owned: Sequence[tuple[int, int]] = (),
        apart: int = 0,
    ) -> None:
        self._apart = apart
        taken, self._ends = [], []  # where memory ends that does not grow upwards
        for mapping in maps:
            if mapping.path != "[heap]":
                self._ends.append(mapping.end)
            # A main stack grows down: keep clear of it.
            start = mapping.start - (_STACK_GROWTH if mapping.path == "[stack]" else 0)
            taken.append((max(start, 0), mapping.end))
        self._taken = sorted(taken)
        self._owned = sorted((start, start + size) for start, size in owned)

    def is_free(self, start: int, end: int) -> bool:
        """True when [start, end) can be mapped."""
        if start < _LOWEST or end > _HIGHEST:
            return False
        i = bisect.bisect_left(self._taken, (end, 0)) - 1
        return i < 0 or self._taken[i][1] <= start

    def is_owned(self, start: int, end: int) -> bool:
        """True when [start, end) lies in one of our regions."""
        i = bisect.bisect_right(self._owned, (start, _HIGHEST)) - 1
        return i >= 0 and end <= self._owned[i][1]

    def take(self, start: int, end: int) -> None:
        """Count [start, end) as taken by a region of ours."""
        bisect.insort(self._taken, (start, end))
        bisect.insort(self._owned, (start, end))

    def room_near(self, low: int, high: int, size: int = PAGE) -> int | None:
        """`size` free bytes within CALL reach of every address of [low, high], or None.

        Below mappings, nearest first: above them the heap grows. Where there is no room (below
        libraries stand the stacks of many threads), far above one that does not grow.
        """
        starts = [start for start, _ in self._taken]
        below = [s for s in starts if s <= high and high - (s - size) < REACH]
        above = [s for s in starts if s > high and s - low < REACH]
        for apart in dict.fromkeys((self._apart, 0)):
            for start in [*reversed(below), *above]:
                page = (start - size - apart) // PAGE * PAGE
                if self.is_free(page, page + size) and high - page < REACH:
                    return page
        for end in sorted(end for end in self._ends if low < end < low + REACH):
            page = end + _ABOVE
            if self.is_free(end, page + size + _ABOVE) and page + size - low < REACH:
                return page
        return None


class Planner:
    """Plans for one process; remembers pads and islands, so that later plans reuse them.

    Args:
        thunk: Code of the thunk that every CALL shall reach, good at any address.
        by_cells: Tells whether landing pads shall jump by cells: they are led elsewhere without
            traps and with nobody held, and cost up to 4 ns a call where there are thousands.

    Attributes:
        thunks: Addresses of its copies.
    """

    def __init__(self, thunk: bytes, by_cells: Callable[[], bool] = lambda: False) -> None:
        self._thunk = thunk
        self._by_cells = by_cells
        self.thunks: list[int] = []
        self._pads: dict[int, _Pad] = {}  # by the site's address
        self._cells: list[_Cells] = []
        self._islands: list[int] = []
        self._stubs: dict[tuple[int, bytes, SiteKind | None], SitePlan] = {}
        self._branches: dict[tuple[int, bytes, int], BranchPlan] = {}
        self._puns = 0

    def plan(
        self, sites: Iterable[Site], space: Space, *, traps: Callable[[Site], str] | None = None
    ) -> Plan:
        """Plan a CALL to the thunk at every one of `sites`; all must be patchable.

        Args:
            sites: The sites.
            space: What of the address space is taken.
            traps: Tells why an int3 may not stay at a site, "" where it may. None: nowhere.
        """
        ordered = sorted(sites, key=lambda site: site.address)
        plan = Plan()
        runs = [site for site in ordered if site.kind is SiteKind.NOP_RUN]
        padded = self._place_pads(runs, space, plan)
        entries = [site for site in ordered if site.kind is SiteKind.ENTRY]
        self._plan_entries(entries, space, plan)
        self._plan_branches([s for s in ordered if isinstance(s, BranchSite)], space, plan)
        displaced = (SiteKind.BRANCH, SiteKind.ENTRY, SiteKind.PUN, SiteKind.TRAP)
        self._plan_rest(
            [site for site in ordered if site.kind in displaced[2:]], space, plan, traps
        )
        calls = [
            site for site in ordered if site.address not in padded and site.kind not in displaced
        ]
        for site in runs:
            if site.address in padded:
                on = bytes([CALL]) + site.old[1:]
                end = site.address + CALL_BYTES
                pad = self._pads[site.address]
                plan.sites.append(
                    SitePlan(site, Method.FLIP, site.old, on, end, lead=pad.island, cell=pad.cell)
                )
        self._plan_calls(calls, space, plan)
        plan.sites.sort(key=lambda planned: planned.site.address)
        return plan

    def pads(self) -> list[tuple[int, Site]]:
        """Address and site of every landing pad."""
        return [(address - PAD_DISTANCE, site) for address, (site, *_) in self._pads.items()]

    def stubs(self) -> list[tuple[int, Site]]:
        """Address and site of every stub."""
        return [(stub_of(planned), planned.site) for planned in self._stubs.values()]

    def branch_stubs(self) -> list[tuple[int, BranchSite]]:
        """Address and site of every stub that counts branches."""
        return [
            (stub_of(planned), planned.site)
            for planned in self._branches.values()
            if isinstance(planned.site, BranchSite)
        ]

    def _place_pads(self, runs: list[Site], space: Space, plan: Plan) -> set[int]:
        """Map pads for as many runs as have room; returns the addresses of those sites."""
        fresh = _apart([s for s in runs if s.address not in self._pads], self._pads)
        groups = _page_groups(fresh)
        for group in _joined(groups, space):
            self._map_group(group, space, plan)
        return self._pads.keys() & {site.address for site in runs}

    def _map_group(self, group: _Group, space: Space, plan: Plan) -> None:
        owned = space.is_owned(group.start, group.end)
        if not owned and not space.is_free(group.start, group.end):
            return
        island = self._island_for(group.start, group.end, space, plan)
        if island is None:
            return
        cells = self._cells_for(group, space, plan) if self._by_cells() else [0] * len(group.sites)
        if cells is None:
            return
        if not owned:
            plan.regions.append((group.start, group.end - group.start))
            space.take(group.start, group.end)
        placed = list(zip(group.sites, cells, strict=True))
        pads = [(site.address - PAD_DISTANCE, cell) for site, cell in placed]
        if cells[0]:
            plan.code.append((cells[0], CELL.pack(island) * len(cells)))
        # Between pads of an older region there may be others, in use: leave their bytes alone.
        plan.code.extend(_pad_code(pads, island, fill_below=0 if owned else PAGE))
        self._pads.update((site.address, _Pad(site, island, cell)) for site, cell in placed)

    def _cells_for(self, group: _Group, space: Space, plan: Plan) -> Sequence[int] | None:
        """Addresses of cells for a group's pads, within reach of all of them."""
        size = CELL.size * len(group.sites)
        for place in self._cells:
            far = max(abs(place.start - group.end), abs(place.end - group.start))
            if place.end - place.used >= size and far < REACH:
                break
        else:
            room = -(-size // PAGE) * PAGE
            start = space.room_near(group.start, group.end, room)
            if start is None:
                return None
            plan.data.append((start, room))
            space.take(start, start + room)
            place = _Cells(start, start + room, start)
            self._cells.append(place)
        first, place.used = place.used, place.used + size
        return range(first, place.used, CELL.size)

    def _island_for(self, low: int, high: int, space: Space, plan: Plan) -> int | None:
        """An island within reach: a page with a copy of the thunk."""
        for island in self._islands:
            if abs(island - low) < REACH and abs(island - high) < REACH:
                return island
        page = space.room_near(low, high)
        if page is None:
            return None
        plan.regions.append((page, PAGE))
        space.take(page, page + PAGE)
        plan.code.append((page, self._thunk))
        self.thunks.append(page)
        self._islands.append(page)
        return page

    def _plan_calls(self, sites: list[Site], space: Space, plan: Plan) -> None:
        for site in sites:
            island = self._island_for(site.address, site.address + site.length, space, plan)
            if island is None:
                plan.refused.append((site, _NO_ROOM))
                continue
            end = site.address + site.length
            merge = site.kind is SiteKind.NOP_RUN
            off = MERGED_NOP if merge else site.old
            on = CS_PREFIX * (site.length - CALL_BYTES)
            on += struct.pack("<Bi", CALL, island - end)
            method = Method.MERGE if merge else Method.CALL
            plan.sites.append(SitePlan(site, method, off, on, end, lead=island))

    def _plan_entries(self, entries: list[Site], space: Space, plan: Plan) -> None:
        """Stubs for entries that have none yet, for each stretch of text in one region."""
        fresh = [s for s in entries if (s.address, s.displaced, s.kind) not in self._stubs]
        for group in _stretches(fresh):
            self._place_stubs(group, space, plan)
        for site in entries:
            known = self._stubs.get((site.address, site.displaced, site.kind))
            if known is not None:
                plan.sites.append(known)

    def _place_stubs(self, group: list[Site], space: Space, plan: Plan) -> None:
        measured, refused = stubs.measure(group)
        plan.refused.extend(refused)
        if not measured:
            return
        # A region has a thunk of its own at its start: one that all of its stubs reach.
        first = stubs.room(len(self._thunk))
        size = first + sum(stubs.room(length) for _, length in measured)
        size = -(-size // PAGE) * PAGE
        start = space.room_near(group[0].address, group[-1].address + CALL_BYTES, size)
        if start is None:
            plan.refused.extend((site, _NO_ROOM) for site, _ in measured)
            return
        plan.regions.append((start, size))
        space.take(start, start + size)
        wanted = [site for site, _ in measured]
        code, placed, refused = stubs.place(wanted, start + first, start)
        plan.code.append((start, self._thunk.ljust(first, bytes([_INT3])) + code))
        self.thunks.append(start)
        plan.refused.extend(refused)
        for site, stub in placed:
            self._stubs[site.address, site.displaced, site.kind] = _way_to(stub, site, start)

    def _plan_branches(self, sites: list[BranchSite], space: Space, plan: Plan) -> None:
        """Stubs and counters for sites that have none yet; a site keeps its counters."""
        fresh = [s for s in sites if (s.address, s.displaced, s.live) not in self._branches]
        for group in _stretches(fresh):
            self._place_branches(group, space, plan)
        for site in sites:
            known = self._branches.get((site.address, site.displaced, site.live))
            if known is not None:  # another module may have come to the very same place
                plan.sites.append(known if known.site == site else replace(known, site=site))

    def _place_branches(self, group: list[BranchSite], space: Space, plan: Plan) -> None:
        wanted, size, refused = branch_stubs.measure(group)
        plan.refused.extend(refused)
        if not wanted:
            return
        code_bytes = -(-size // PAGE) * PAGE
        counter_bytes = sum(len(site.branches) for site in wanted) * branch_stubs.COUNTER_BYTES
        counter_bytes = -(-counter_bytes // PAGE) * PAGE
        both = code_bytes + counter_bytes
        start = space.room_near(group[0].address, group[-1].address + CALL_BYTES, both)
        if start is None:
            plan.refused.extend((site, _NO_ROOM) for site in wanted)
            return
        counters = start + code_bytes
        plan.regions.append((start, code_bytes))
        plan.counters.append((counters, counter_bytes))
        space.take(start, start + both)
        code, placed, unreached = branch_stubs.place(wanted, start, size, counters)
        plan.code.append((start, code))
        plan.refused.extend(unreached)
        for site, stub in placed:
            on = struct.pack("<Bi", JMP, stub.address - (site.address + CALL_BYTES))
            self._branches[site.address, site.displaced, site.live] = BranchPlan(
                site, Method.JMP, site.old, on, 0, stub.copies, counters=stub.counters
            )

    def _plan_rest(
        self,
        sites: list[Site],
        space: Space,
        plan: Plan,
        traps: Callable[[Site], str] | None,
    ) -> None:
        """Sites of which one byte may change: puns, else an int3 that stays."""
        trapped: list[Site] = []
        for site in sites:
            if site.kind is SiteKind.PUN and self._plan_pun(site, space, plan):
                continue
            why = traps(site) if traps else _NO_PUN
            if why:
                plan.refused.append((site, why))
            else:
                trapped.append(replace(site, kind=SiteKind.TRAP, length=1, old=site.old[:1]))
        self._plan_entries(trapped, space, plan)

    def _plan_pun(self, site: Site, space: Space, plan: Plan) -> bool:
        """A stub just where the bytes of the site make a JMP go; its pages are its own."""
        key = site.address, site.displaced, site.kind
        if key not in self._stubs:
            planned = None
            if self._puns < _MOST_PUNS:
                planned = self._place_pun(site, space, plan)
            if planned is None:
                return False
            self._stubs[key] = planned
            self._puns += 1
        plan.sites.append(self._stubs[key])
        return True

    def _place_pun(self, site: Site, space: Space, plan: Plan) -> SitePlan | None:
        on = bytes([JMP]) + site.old[1:]
        at = site.address + CALL_BYTES + int.from_bytes(on[1:], "little", signed=True)
        sized, _ = stubs.measure([site])
        if not sized:
            return None
        start = at // PAGE * PAGE
        end = -(-(at + sized[0][1]) // PAGE) * PAGE
        # The thunk stands in the same page, before or behind the stub.
        room = stubs.room(len(self._thunk))
        thunk = start if at - start >= room else stubs.room(at + sized[0][1] - start) + start
        end = max(end, -(-(thunk + room) // PAGE) * PAGE)
        if not space.is_free(start, end):
            return None
        code, placed, _ = stubs.place([site], at, thunk)
        if not placed:
            return None
        plan.regions.append((start, end - start))
        space.take(start, end)
        plan.code += [(thunk, self._thunk), (at, code)]
        self.thunks.append(thunk)
        stub = placed[0][1]
        back = stub.return_address
        return SitePlan(site, Method.PUN, site.old, on, back, stub.copies, lead=thunk)


def _way_to(stub: Stub, site: Site, thunk: int) -> SitePlan:
    """How a thread comes from the site to its stub, which calls `thunk`."""
    back = stub.return_address
    if site.kind is SiteKind.TRAP:
        int3 = bytes([_INT3])
        way = SitePlan(site, Method.TRAP, site.old, int3, back, handler=stub.address)
    else:
        jump = struct.pack("<Bi", JMP, stub.address - (site.address + CALL_BYTES))
        way = SitePlan(site, Method.JMP, site.old, jump, back, stub.copies)
    return replace(way, lead=thunk)


def stub_of(planned: SitePlan) -> int:
    """Where a thread comes to from the site: by its JMP, or by the trap handler."""
    distance = int.from_bytes(planned.on[1:CALL_BYTES], "little", signed=True)
    return planned.handler or planned.site.address + CALL_BYTES + distance


class _Pad(NamedTuple):
    """A landing pad: the probe that it leads to as planned, and where that is noted."""

    site: Site
    island: int
    cell: int


@dataclass(slots=True)
class _Cells:
    """A mapping of pads' cells: those below `used` belong to a pad."""

    start: int
    end: int
    used: int


@dataclass(slots=True)
class _Group:
    """Sites whose pads stand together: pages [start, end)."""

    start: int
    end: int
    sites: list[Site]


def _stretches(sites: list[_AnySite]) -> list[list[_AnySite]]:
    """Sites that one region can serve."""
    groups: list[list[_AnySite]] = []
    for site in sites:
        if groups and site.address - groups[-1][0].address < _STRETCH:
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _page_groups(sites: list[Site]) -> list[_Group]:
    """One group for the pads of every run of pages that touch."""
    groups: list[_Group] = []
    for site in sites:
        pad = site.address - PAD_DISTANCE
        start = pad // PAGE * PAGE
        end = (pad + PAD_BYTES - 1) // PAGE * PAGE + PAGE
        if groups and start <= groups[-1].end:
            groups[-1].end = max(end, groups[-1].end)
            groups[-1].sites.append(site)
        else:
            groups.append(_Group(start, end, [site]))
    return groups


def _joined(groups: list[_Group], space: Space) -> list[_Group]:
    """Groups a few free pages apart become one mapping: processes have a limit on those."""
    joined: list[_Group] = []
    for group in groups:
        last = joined[-1] if joined else None
        near = last is not None and group.start - last.end <= _GAP_PAGES * PAGE
        if last is not None and near and space.is_free(last.start, group.end):
            last.end = group.end
            last.sites += group.sites
        else:
            joined.append(_Group(group.start, group.end, list(group.sites)))
    return joined


def _apart(sites: list[Site], taken: Container[int]) -> list[Site]:
    """Those whose pads do not run into one another; in address order."""
    kept: list[Site] = []
    last = -PAD_BYTES
    for site in sites:
        near = range(site.address - PAD_BYTES + 1, site.address + PAD_BYTES)
        if site.address - last >= PAD_BYTES and not any(at in taken for at in near):
            kept.append(site)
            last = site.address
    return kept


def _pad_code(
    pads: list[tuple[int, int]], island: int, *, fill_below: int
) -> list[tuple[int, bytes]]:
    """The jumps of all (pad, cell): to where the cell says, or without one to the island.

    Gaps shorter than `fill_below` bytes are filled, so pieces are few.
    """
    pieces: list[tuple[int, bytearray]] = []
    pack, direct = struct.Struct("<Hi").pack, struct.Struct("<BiB").pack
    for pad, cell in pads:
        if cell:
            jump = pack(_JMP_CELL, cell - (pad + PAD_BYTES))
        else:
            jump = direct(JMP, island - (pad + JMP_BYTES), _INT3)
        if pieces and pad - (pieces[-1][0] + len(pieces[-1][1])) < fill_below:
            start, data = pieces[-1]
            data.extend(bytes([_INT3]) * (pad - start - len(data)))
            data.extend(jump)
        else:
            pieces.append((pad, bytearray(jump)))
    return [(start, bytes(data)) for start, data in pieces]
