# SPDX-License-Identifier: Apache-2.0
"""What code of ours stands where in a process: names and unwind rows for debuggers and profilers.

Pure functions of plans, sites and unwind tables. While the program's own code runs, no frame of
ours is on a stack; but a signal, a fault or a debugger may find a thread within a thunk, a landing
pad or the copy of a displaced instruction, and these rows lead from there to the caller.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import branch_stubs, cfi, stubs
from textpoke._native import lib
from textpoke.agent_image import Probe, load_image
from textpoke.code_object import Symbol, plain_name
from textpoke.plan import PAD_BYTES, PAGE
from textpoke.unwind_tables import rows_of_prologue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textpoke.agent_image import AgentImage
    from textpoke.model import BranchSite, Site
    from textpoke.plan import Planner
    from textpoke.unwind_tables import UnwindTable

    FindTable = Callable[[Site], UnwindTable | None]

_RED_ZONE = 128
_CALL_BYTES = 5
_BREG0, _LIT0 = 0x70, 0x30  # DW_OP_breg0 and so on: DWARF 5, 7.7.1
_CONST8U, _MINUS, _PLUS, _SHL, _SHR = 0x0E, 0x1C, 0x22, 0x24, 0x25
AGENT, RETURN, THUNK, PAD, STUB, BRANCHES = (
    "textpoke agent",
    "textpoke return",
    "textpoke thunk",
    "textpoke pad of ",
    "textpoke stub of ",
    "textpoke branches of ",
)


@dataclass(frozen=True, slots=True)
class Trampolines:
    """Where redirected returns arrive; each keeps its return address in a frame of its own.

    Attributes:
        first: Address of the first one.
        count: How many there are.
        frames: Address of the first frame.
    """

    first: int
    count: int
    frames: int

    def symbol(self) -> Symbol:
        """One name for all of them, and for the code that they lead to."""
        before = load_image().returns_bytes
        return Symbol(self.first - before, before + self.count * lib.TP_RETURN_BYTES, RETURN)

    def frame(self) -> cfi.Frame:
        """Unwind rows of a trampoline that a function will return to.

        The return has taken its own word off the stack, so the caller's stack pointer is the one
        here. Where the return address is follows from the number of the trampoline.
        """
        operations = struct.pack(
            "<BBBQBBBBBBQB",
            *(_BREG0 + cfi.RETURN_ADDRESS, 0, _CONST8U, self.first, _MINUS, _LIT0 + 4, _SHR),
            *(_LIT0 + 6, _SHL, _CONST8U, self.frames, _PLUS),
        )
        row = cfi.Row(cfi.RSP, 0, {cfi.RETURN_ADDRESS: ("expression", operations)})
        # Of a return address, debuggers look at the byte before it.
        return cfi.Frame(self.first - 1, self.count * lib.TP_RETURN_BYTES, ((0, row),))


@dataclass(frozen=True, slots=True)
class PlacedCode:
    """All code of ours in one process.

    Attributes:
        image: The agent's.
        base: Where it lies.
        planner: Knows what was placed.
        copies: Address and kind of the probes that it did not place.
        trampolines: Of redirected returns, where there are any.
    """

    image: AgentImage
    base: int
    planner: Planner
    copies: Sequence[tuple[int, int]] = ()
    trampolines: Trampolines | None = None

    def symbols(self) -> list[Symbol]:
        """A name for every piece, in address order."""
        sizes = {
            kind: len(self.image.probe(self.base, Probe(kind), 0)) for kind in range(lib.TP_PROBES)
        }
        named = [Symbol(self.base, self.image.head_offset, AGENT)]
        named += [Symbol(at, sizes[kind], THUNK) for at, kind in self._copies()]
        named += [
            Symbol(at, PAD_BYTES, plain_name(PAD + site.function))
            for at, site in self.planner.pads()
        ]
        named += [
            Symbol(at, stubs.layout(site).size, plain_name(STUB + site.function))
            for at, site in self.planner.stubs()
        ]
        named += [
            Symbol(at, branch_stubs.layout(site).size, plain_name(BRANCHES + site.function))
            for at, site in self.planner.branch_stubs()
        ]
        if self.trampolines is not None:
            named.append(self.trampolines.symbol())
        return sorted(named, key=lambda symbol: symbol.address)

    def frames(self, find_table: FindTable) -> list[cfi.Frame]:
        """Unwind rows of every piece, in address order.

        Args:
            find_table: The unwind table of a site's module; None where it has none.
        """
        found = self.image.frames(self.base)
        rows = {kind: self.image.probe_frame(kind) for _, kind in self._copies()}
        found += [cfi.Frame(at, rows[kind].size, rows[kind].rows) for at, kind in self._copies()]
        found += [
            cfi.Frame(start, end - start, ((0, cfi.AT_ENTRY),)) for start, end in self._pad_runs()
        ]
        found += [stub_frame(at, site, find_table(site)) for at, site in self.planner.stubs()]
        for at, site in self.planner.branch_stubs():
            table = find_table(site)
            found += branch_frames(at, site, table) if table else ()
        if self.trampolines is not None:
            found.append(self.trampolines.frame())
        return sorted(found, key=lambda frame: frame.start)

    def _copies(self) -> list[tuple[int, int]]:
        """Address and kind of every copy of a probe."""
        usual = [(at, int(lib.TP_PROBE_FUNCTION)) for at in self.planner.thunks]
        return [*usual, *self.copies]

    def _pad_runs(self) -> list[tuple[int, int]]:
        """[start, end) of pads that stand together: with nothing but pads between them."""
        runs: list[tuple[int, int]] = []
        for pad, _ in sorted(self.planner.pads(), key=lambda found: found[0]):
            if runs and pad - runs[-1][1] < PAGE:
                runs[-1] = runs[-1][0], pad + PAD_BYTES
            else:
                runs.append((pad, pad + PAD_BYTES))
        return runs


def stub_frame(address: int, site: Site, table: UnwindTable | None) -> cfi.Frame:
    """Unwind rows of the stub at `address`; they end where nobody can tell.

    The rows of the displaced instructions are the function's own, at the places of the copies.
    """
    layout = stubs.layout(site)
    window = site.displaced
    known = table.rows(site.vaddr, len(window)) if table else None
    if known is None:
        own, end = rows_of_prologue(window, [head for head, _ in layout.heads])
    else:
        own = tuple((at - site.vaddr, row) for at, row in known)
        end = len(window) + 1
    first = own[0][1]
    rows = [(0, first), (layout.return_at - _CALL_BYTES, first.lowered(_RED_ZONE))]
    rows += [(copy, _row_at(own, head)) for head, copy in layout.heads if head < end]
    last = _row_at(own, layout.heads[-1][0])
    if layout.pushed_at:
        rows.append((layout.pushed_at, last.lowered(8)))
    if layout.back_at:
        rows.append((layout.back_at, _row_at(own, len(window))))
    # Of a function without an entry, what stands behind the first odd instruction is unknown.
    ends = [copy for head, copy in layout.heads if head >= end]
    if layout.back_at and len(window) >= end:
        ends.append(layout.back_at)
    size = min(ends, default=layout.size)
    return cfi.Frame(address, size, _without_repeats([r for r in rows if r[0] < size]))


def branch_frames(address: int, site: BranchSite, table: UnwindTable) -> list[cfi.Frame]:
    """Unwind rows of the stub at `address` that counts branches; none where nobody can tell."""
    known = table.rows(site.vaddr, len(site.displaced))
    if known is None:
        return []
    own = tuple((at - site.vaddr, row) for at, row in known)
    layout = branch_stubs.layout(site)
    rows = [(at, _row_at(own, head).lowered(lowered)) for at, head, lowered in layout.marks]
    return [cfi.Frame(address, layout.size, _without_repeats(rows))]


def _row_at(rows: cfi.Rows, offset: int) -> cfi.Row:
    return next(row for at, row in reversed(rows) if at <= offset)


def _without_repeats(rows: list[tuple[int, cfi.Row]]) -> cfi.Rows:
    kept: list[tuple[int, cfi.Row]] = []
    for at, row in rows:
        if not kept or kept[-1][1] != row:
            kept.append((at, row))
    return tuple(kept)
