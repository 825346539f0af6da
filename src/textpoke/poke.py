# SPDX-License-Identifier: Apache-2.0
"""Pokes, batches of them in the engine's own form, and what became of one."""

from __future__ import annotations

import bisect
import functools
import struct
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from textpoke import modes
from textpoke._errors import BatchRefused
from textpoke._native import lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textpoke._native import Pointer
    from textpoke.modes import Choice
    from textpoke.plan import SitePlan

PHASES = ("check", "verify", "int3", "tail", "first", "recover", "rollback", "look")
MODES = ("int3", "direct", "stop")
RECORD = struct.Struct("<QQQIBBBB16s16s")  # struct tp_poke
_INT3 = b"\xcc"
_MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Poke:
    """Replace the instruction at `address`.

    Attributes:
        address: Runtime address.
        old: Expected bytes, 1 to 15; None together with `new`: "already there", skipped.
        new: Bytes to write, as many as `old`.
        handler: A thread that traps continues here; 0 emulates the instruction.
        name: What messages call this place.
        heads: Bit i (1 to 4): the code of several instructions that gives way to a JMP has one
            there. It gets an int3 of its own, and no thread may stand at it when the JMP comes.
        copies: Where those instructions are in what the JMP goes to, as four bytes. Without heads:
            b"" for a site that may hold several, else the caller knows that it holds one.
        back: The several instructions are `new`: they come back.
        part_of: Of code of ours: the site that leads there, which decides how it may be written.
    """

    address: int
    old: bytes | None
    new: bytes | None
    handler: int = 0
    name: str = ""
    heads: int = 0
    copies: bytes = b""
    back: bool = False
    part_of: int = 0

    @property
    def is_permanent(self) -> bool:
        """True when an int3 is to stay: who traps there goes on at `handler`."""
        return self.new == _INT3 and self.handler != 0

    def reversed(self) -> Poke:
        """The poke that undoes this one."""
        back = bool(self.heads) and not self.back
        handler = self.handler if _INT3 in (self.old, self.new) else 0
        return Poke(
            self.address,
            self.new,
            self.old,
            handler,
            self.name,
            self.heads,
            self.copies,
            back,
            self.part_of,
        )

    def pack(self, index: int) -> bytes:
        """The record that the engine reads (struct tp_poke in native/include/wire.h)."""
        flags = (self.old is None) * lib.TP_POKE_NO_OLD | (self.new is None) * lib.TP_POKE_NO_NEW
        old, new = self.old or b"", self.new or b""
        size = max(len(old), len(new))
        if self.heads:
            flags |= self.heads << 1 | self.back * lib.TP_POKE_BACK
            new = new.ljust(12, b"\0") + self.copies
        elif self.copies:
            flags |= lib.TP_POKE_ONE
        return RECORD.pack(
            self.address, self.handler, 0, index, min(size, 255), flags, 0, 0, old[:16], new[:16]
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch did.

    Attributes:
        sites: Records in the batch, skipped ones included.
        finished: Records for which `finish` was due.
        syncs: Core serialisations (membarrier).
        writes: Writes through the mem file: one a page and phase, not one a site.
        reads: Reads of text.
        pages: Pages with sites.
        conflicts: Pages whose other bytes changed under our write.
        traps: Threads that ran into an int3 and were emulated.
        late_traps: Traps that arrived after their int3 was gone.
        total_ns: Duration of the protocol, in nanoseconds.
        phase_ns: The same by phase.
        undrained: True when a thread was still in the handler at the time-out.
        hold_ns: How long all threads were held, in stop mode.
        choices: Which sites took which mode, and why.
        left: Positions of the sites that were left out because a thread stood inside of them.
        outlasted: True when no thread was on the ways that were to be looked at, once all was
            written and while everybody was still held.
    """

    sites: int = 0
    finished: int = 0
    syncs: int = 0
    writes: int = 0
    reads: int = 0
    pages: int = 0
    conflicts: int = 0
    traps: int = 0
    late_traps: int = 0
    total_ns: int = 0
    phase_ns: dict[str, int] = field(default_factory=dict)
    undrained: bool = False
    hold_ns: int = 0
    choices: tuple[Choice, ...] = ()
    left: tuple[int, ...] = ()
    outlasted: bool = False

    @property
    def ns_per_site(self) -> float:
        """Nanoseconds per site; 0.0 for an empty batch."""
        return self.total_ns / self.sites if self.sites else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        names = ("sites", "finished", "syncs", "writes", "reads", "pages", "conflicts")
        more = ("traps", "late_traps", "total_ns", "phase_ns", "undrained", "hold_ns")
        plain = {name: getattr(self, name) for name in names + more}
        modes = [choice.as_dict() for choice in self.choices]
        return plain | {"modes": modes, "left": len(self.left)}

    def mode_of(self, index: int) -> Choice:
        """How the poke at a position of the batch was written. Raises IndexError."""
        for choice in self.choices:
            if index in choice.indexes:
                return choice
        raise IndexError(index)

    def plus(self, other: Outcome) -> Outcome:
        """Two parts of one batch, run one after the other."""
        names = (*Outcome.__slots__[:10], "hold_ns")
        numbers: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in names
        }
        phases = self.phase_ns.keys() | other.phase_ns.keys()
        return Outcome(
            **numbers,
            phase_ns={p: self.phase_ns.get(p, 0) + other.phase_ns.get(p, 0) for p in phases},
            undrained=self.undrained or other.undrained,
            choices=self.choices + other.choices,
            left=self.left + other.left,
            outlasted=other.outlasted,
        )


@dataclass(frozen=True)
class Request:
    """A batch in the engine's own form, ready to be run again and again."""

    pokes: tuple[Poke, ...]
    data: bytes

    @functools.cached_property
    def addresses(self) -> list[int]:
        """Of the sites; of code of ours, those that lead there."""
        return [poke.part_of or poke.address for poke in self.pokes]

    @functools.cached_property
    def span(self) -> tuple[int, int]:
        """Lowest and highest address; (0, 0) of nothing."""
        return min(self.addresses, default=0), max(self.addresses, default=0)

    @functools.cached_property
    def direct(self) -> list[bool]:
        """For each site, whether one store can change it."""
        return [modes.is_direct(poke.old, poke.new) for poke in self.pokes]

    @functools.cached_property
    def halves(self) -> tuple[list[int], list[int]]:
        """Positions of those sites, and of the others."""
        every = list(enumerate(self.direct))
        return [i for i, direct in every if direct], [i for i, direct in every if not direct]

    @functools.cached_property
    def _outside(self) -> dict[tuple[tuple[int, int], ...], list[int]]:
        return {}

    def outside(self, ranges: tuple[tuple[int, int], ...]) -> list[int]:
        """Positions of the sites that are in none of these ranges, which are in ascending order."""
        found = self._outside.get(ranges)
        if found is None:
            starts = [start for start, _ in ranges]
            places = ((i, at, bisect.bisect(starts, at) - 1) for i, at in enumerate(self.addresses))
            found = [i for i, at, k in places if k < 0 or at >= ranges[k][1]]
            if len(self._outside) >= _MOST_PARTS:
                self._outside.clear()
            self._outside[ranges] = found
        return found

    @functools.cached_property
    def windows(self) -> list[tuple[int, int]]:
        """(start, end) of the sites in whose interior no thread may be while they change.

        Without those whose instructions are known one by one: see `looks`.
        """
        whole = zip(self.pokes, self.direct, strict=True)
        return [
            (p.address, p.address + len(p.new or b""))
            for p, direct in whole
            if not direct and not p.copies
        ]

    @functools.cached_property
    def window_words(self) -> bytes:
        """`windows` in ascending order, as the native side reads them."""
        return struct.pack(f"={2 * len(self.windows)}Q", *chain.from_iterable(sorted(self.windows)))

    @functools.cached_property
    def staying(self) -> list[int]:
        """Positions of the pokes that leave an int3 for good (`Poke.is_permanent`)."""
        return [i for i, poke in enumerate(self.pokes) if poke.is_permanent]

    @functools.cached_property
    def leaving(self) -> list[int]:
        """Positions of the pokes that take such an int3 away."""
        return [i for i, poke in enumerate(self.pokes) if poke.handler and poke.old == _INT3]

    @functools.cached_property
    def looks(self) -> bool:
        """True when threads must be looked for inside of some site (`Poke.heads`)."""
        return any(poke.heads and not poke.back for poke in self.pokes)

    @functools.cached_property
    def all_nops(self) -> bool:
        """True when every site of `windows` holds NOPs: a thread inside may be moved to the end."""
        whole = zip(self.pokes, self.direct, strict=True)
        return all(
            modes.is_nops(p.old or b"") for p, direct in whole if not direct and not p.copies
        )

    @functools.cached_property
    def _parts(self) -> dict[int | tuple[int, ...], Request]:
        return {}

    def part(self, indexes: Sequence[int]) -> Request:
        """The batch of some of the pokes; the same one when it is asked for again."""
        if len(indexes) == len(self.pokes):
            return self
        key = self._key(indexes)
        found = self._parts.get(key)
        if found is None:
            if len(self._parts) >= _MOST_PARTS:
                self._parts.clear()
            found = self._parts[key] = Request.of(self.pokes[i] for i in indexes)
        return found

    def _key(self, indexes: Sequence[int]) -> int | tuple[int, ...]:
        """What a part is kept by. Comparing the thousands of positions of a half takes too long."""
        for number, half in enumerate(self.__dict__.get("halves", ())):  # if they were asked for
            if indexes is half:
                return number
        return tuple(indexes)

    def reversed(self, indexes: Sequence[int]) -> Request:
        """The batch that undoes some of the pokes."""
        return Request.of(self.pokes[i].reversed() for i in indexes)

    @classmethod
    def of(cls, pokes: Iterable[Poke]) -> Self:
        """Pack `pokes`; raises BatchRefused for opcodes that cannot be packed."""
        kept = tuple(pokes)
        for poke in kept:
            if poke.old is not None and poke.new is not None and len(poke.old) != len(poke.new):
                raise BatchRefused(
                    f"{name_of(poke)}: {len(poke.old)} old and {len(poke.new)} new bytes"
                )
        return cls(kept, b"".join(poke.pack(i) for i, poke in enumerate(kept)))


@dataclass(frozen=True, slots=True)
class Poked:
    """A batch that the engine has run.

    Attributes:
        request: What was to be written.
        from_tsc: Ticks before.
        to_tsc: Ticks behind it.
        failed: It was given up on the way: some of its pokes may have been written.
        left: Positions of those that were left out.
    """

    request: Request
    from_tsc: int
    to_tsc: int
    failed: bool
    left: tuple[int, ...]

    def rows(self) -> bytes:
        """The pokes that were written, in the engine's own form (`RECORD`)."""
        data = self.request.data
        if not self.left:
            return data
        gone = set(self.left)
        starts = (i * RECORD.size for i in range(len(self.request.pokes)) if i not in gone)
        return b"".join(data[start : start + RECORD.size] for start in starts)


def read_outcome(
    raw: Pointer,
    hold_ns: int,
    choices: tuple[Choice, ...],
    left: tuple[int, ...],
    *,
    outlasted: bool = False,
) -> Outcome:
    """A Python copy of struct tp_outcome, with what the tool knows besides (`Outcome`)."""
    return Outcome(
        raw.sites,
        raw.finished,
        raw.syncs,
        raw.writes,
        raw.reads,
        raw.pages,
        raw.conflicts,
        raw.traps,
        raw.late_traps,
        raw.total_ns,
        dict(zip(PHASES, raw.phase_ns, strict=True)),
        bool(raw.undrained),
        hold_ns,
        choices,
        left,
        outlasted,
    )


def poke_of(planned: SitePlan, *, on: bool) -> Poke:
    """What switches a planned site on, or off."""
    site = planned.site
    heads = site.heads if planned.copies else 0
    poke = Poke(
        site.address, planned.off, planned.on, planned.handler, str(site), heads, planned.copies
    )
    return poke if on else poke.reversed()


def joined(first: Outcome, second: Outcome, count: int) -> Outcome:
    """Of two batches that were one request, the second from position `count` on."""
    choices = tuple(
        replace(choice, indexes=[count + i for i in choice.indexes]) for choice in second.choices
    )
    return first.plus(replace(second, choices=choices))


def name_of(poke: Poke) -> str:
    """What messages call the place of a poke."""
    return f"{poke.name} at {poke.address:#x}" if poke.name else f"site {poke.address:#x}"
