# SPDX-License-Identifier: Apache-2.0
"""Runs triggers over the drained events, and cuts the capture where they say so, to the event.

A trigger's time is that of its event, whatever thread it was in and whenever it was drained: what
other threads did after a traceoff is thrown away, although their rings were read later. So an
event waits until everything before it has been drained: the watermark, a time read before a drain
began. That is one drain later, or a few when a thread was put to sleep while it wrote. The target
writes the times and may lie, so none counts as later than it was seen. Python runs per event for
hits only, and for calls of functions with a threshold.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke._native import ffi, lib
from textpoke.streams import ENTRY, OpenCalls, RawBlock, Times, owners
from textpoke.triggers import Command, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

FOREVER = (1 << 64) - 1
"""The watermark of the last feed: nothing waits."""
_SWITCHES = (Command.TRACEON, Command.TRACEOFF)
_MOST_EDGES = 256
_MOST_OPEN = 4096
_PATIENCE = 50
"""Drains that an event which its thread does not write holds all others up."""
_MOST_HITS = 1000
"""Of one function in one drain, for what is of no use more often; traceon and traceoff always."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A trigger that did something.

    Attributes:
        trigger: Which.
        address: Return address of the function's site.
        tid: Thread that called it.
        tsc: When, in ticks: at the entry, or where there is a threshold at the exit.
        took_ticks: How long the call took; 0 without a threshold.
        frames: Of stacktrace: (return address, ticks of its entry), the innermost first.
        open_calls: The frames are open calls; else the last functions that were entered.
    """

    trigger: Trigger
    address: int
    tid: int
    tsc: int
    took_ticks: int = 0
    frames: tuple[tuple[int, int], ...] = ()
    open_calls: bool = False

    def as_dict(self) -> dict[str, object]:
        """Plain data for a capture's JSON."""
        data: dict[str, object] = {
            "trigger": self.trigger.text,
            "command": str(self.trigger.command),
            "address": self.address,
            "tid": self.tid,
            "tsc": self.tsc,
        }
        if self.took_ticks:
            data["took_ticks"] = self.took_ticks
        if self.trigger.command is Command.STACKTRACE:
            data["frames"] = [list(frame) for frame in self.frames]
            data["open_calls"] = self.open_calls
        return data


@dataclass(frozen=True, slots=True)
class Fed:
    """What became of some events.

    Attributes:
        blocks: Those to record.
        hits: The triggers that did something.
        watermark: Everything up to this tick has been looked at.
        skipped: Calls of functions with triggers that were too many to look at.
        turned: When recording was switched by hand (`TriggerEngine.switch`), and whether on.
    """

    blocks: list[RawBlock]
    hits: list[Hit]
    watermark: int
    skipped: int = 0
    turned: list[tuple[int, bool]] = field(default_factory=list)


@dataclass(slots=True)
class _Armed:
    trigger: Trigger
    left: int | None


@dataclass(slots=True)
class _Due:
    """Something that happens at a time: a trigger at a row of a block, or a switch by hand."""

    tsc: int
    armed: _Armed | None
    address: int = 0
    tid: int = 0
    piece: int = -1
    row: int = 0
    took: int = 0
    on: bool = False


@dataclass(slots=True)
class _Ring:
    """What is known of a ring from drain to drain."""

    held: list[tuple[RawBlock, int]] = field(default_factory=list)  # with the latest it can be of
    begun: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    calls: OpenCalls = field(default_factory=OpenCalls)
    hiding: bool = False
    generation: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Events that are complete.

    Attributes:
        block: They.
        found: Its rows at functions with triggers.
        most: No event is taken to be later.
        of: Gives the times that they say.
    """

    block: RawBlock
    found: NDArray[np.uint32]
    most: int
    of: Callable[[], NDArray[np.uint64]]

    def times(self) -> NDArray[np.uint64]:
        """When each of them was."""
        return np.minimum(self.of(), np.uint64(self.most))


class TriggerEngine:
    """The state machine of all triggers of one recording.

    Args:
        ticks_per_ns: Rate of the time stamps; `ticks_per_ns` may be set again later.
        on: Whether events are recorded at first (tracing_on).
        durations: By return address, where in an EXIT's data its duration stands: of functions
            that are recorded in threshold mode and have no ENTRYs.

    Attributes:
        hidden: Return addresses of functions that are patched for their triggers only.
        durations: As given; may be set again later.
    """

    def __init__(
        self,
        ticks_per_ns: float,
        *,
        on: bool = True,
        durations: Mapping[int, int] | None = None,
    ) -> None:
        self.ticks_per_ns = ticks_per_ns
        self.hidden: frozenset[int] = frozenset()
        self.durations: Mapping[int, int] = dict(durations or {})
        self._armed: dict[int, list[_Armed]] = {}
        self._live = np.empty(0, np.uint64)
        self._always: set[int] = set()
        self._rings: dict[int, _Ring] = defaultdict(_Ring)
        self._times = Times()
        self._by_hand: list[_Due] = []
        self._first_on = self._on = on
        self._edges: list[int] = []
        self._mark = 0
        self._incomplete = 0
        self._often: dict[int, int] = {}
        self._skipped = 0
        self._turned: list[tuple[int, bool]] = []

    @property
    def on(self) -> bool:
        """Whether events are recorded, as far as they have been looked at."""
        return self._on

    def arm(self, placed: Iterable[tuple[int, Trigger]]) -> None:
        """Have these triggers at these return addresses; counts of those that were there go on."""
        left = {(a, id(x.trigger)): x.left for a, known in self._armed.items() for x in known}
        self._armed = defaultdict(list)
        for address, trigger in placed:
            count = left.get((address, id(trigger)), trigger.count)
            self._armed[address].append(_Armed(trigger, count))
        self._refresh()

    def left(self) -> list[tuple[int, Trigger, int | None]]:
        """Return address, trigger and what is left of its count."""
        return [(a, x.trigger, x.left) for a, known in self._armed.items() for x in known]

    def switch(self, tsc: int, *, on: bool) -> None:
        """Somebody switches recording on or off by hand, at this time (tracing_on)."""
        self._by_hand.append(_Due(tsc, None, on=on))

    def feed(self, blocks: Sequence[RawBlock], watermark: int, *, complete: bool = True) -> Fed:
        """Take in what was drained.

        Args:
            blocks: Of all rings, each ring's in its order.
            watermark: Ticks read before the drain began. What is newer waits for the next call.
            complete: No event was found reserved and not yet written (`Drained.incomplete`). One
                that was may be of any time since the last complete drain, so all that is newer
                waits, for a while.

        Returns:
            What is to be recorded, and what has happened.
        """
        self._incomplete = 0 if complete else self._incomplete + 1
        if not self._incomplete or self._incomplete > _PATIENCE:
            self._mark = max(self._mark, watermark)
        pieces = list(self._ready(blocks, watermark))
        self._often = {}
        due = [d for i, piece in enumerate(pieces) for d in self._find(i, piece)]
        due += [d for d in self._by_hand if d.tsc <= self._mark]
        self._by_hand = [d for d in self._by_hand if d.tsc > self._mark]
        due.sort(key=lambda d: d.tsc)
        hits = self._run(due, [piece.block for piece in pieces])
        kept = [self._cut(piece) for piece in pieces]
        self._forget()
        skipped, self._skipped = self._skipped, 0
        turned, self._turned = self._turned, []
        passed = [block for block in kept if block is not None]
        return Fed(passed, hits, self._mark, skipped, turned)

    def finish(self, blocks: Sequence[RawBlock] = ()) -> Fed:
        """Take in the last events: nothing waits any more."""
        return self.feed(blocks, FOREVER)

    # What is complete.

    def _ready(self, blocks: Sequence[RawBlock], watermark: int) -> Iterator[_Piece]:
        coming: dict[int, list[tuple[RawBlock, int]]] = {}
        for number, ring in self._rings.items():
            if ring.held:
                # It was there before the watermark was read, whatever time it says.
                coming[number] = [(block, min(most, watermark)) for block, most in ring.held]
                ring.held = []
        for block in blocks:
            coming.setdefault(block.ring, []).append((block, FOREVER))
        for number, found in coming.items():
            yield from self._ready_of(self._rings[number], found)

    def _ready_of(self, ring: _Ring, coming: list[tuple[RawBlock, int]]) -> Iterator[_Piece]:
        for i, (block, most) in enumerate(coming):
            late, found = self._scan(block, self._mark if most > self._mark else FOREVER)
            if late < len(block.rows):
                held = [(block.part(late, len(block.rows)), most), *coming[i + 1 :]]
                ring.held = [(one.owned(), until) for one, until in held]
                if late:
                    yield self._piece(ring, block.part(0, late), found, most)
                return
            if len(block.rows) or block.lost:
                yield self._piece(ring, block, found, most)

    def _piece(self, ring: _Ring, block: RawBlock, found: NDArray[np.uint32], most: int) -> _Piece:
        if block.generation != ring.generation:  # another thread's from here on
            ring.generation = block.generation
            ring.begun.clear()
            ring.calls = OpenCalls()
        return _Piece(block, found, min(most, self._mark), self._times.later(block))

    def _scan(self, block: RawBlock, late_tsc: int) -> tuple[int, NDArray[np.uint32]]:
        """The first row that is too late, and those before it at functions with triggers.

        DATA is not late before its event is: what stands in its first word is no time.
        """
        rows = np.ascontiguousarray(block.rows)
        found = np.empty(len(rows), np.uint32)
        out = ffi.new("struct tp_scan *")
        lib.tp_scan_rows(
            ffi.from_buffer("struct tp_event[]", rows),
            len(rows),
            late_tsc,
            ffi.from_buffer("uint64_t[]", self._live),
            len(self._live),
            ffi.from_buffer("uint32_t[]", found, require_writable=True),
            out,
        )
        return int(out.first_late), found[: int(out.found)].copy()

    # What happens.

    def _find(self, index: int, piece: _Piece) -> Iterator[_Due]:
        block = piece.block
        ring = self._rings[block.ring]
        for row in piece.found.tolist():
            tsc, word = (int(value) for value in block.rows[row])
            address = word >> 16
            if self._is_too_often(address):
                continue
            due = self._at_entry if word & 15 == ENTRY else self._at_exit
            for one in due(ring, block, row, min(tsc, piece.most), address):
                one.piece, one.row, one.tid, one.address = index, row, block.tid, address
                yield one
        if block.lost:
            ring.begun.clear()

    def _is_too_often(self, address: int) -> bool:
        if address in self._always:
            return False
        count = self._often[address] = self._often.get(address, 0) + 1
        self._skipped += count > _MOST_HITS
        return count > _MOST_HITS

    def _at_entry(
        self, ring: _Ring, _piece: RawBlock, _row: int, tsc: int, address: int
    ) -> Iterator[_Due]:
        slow = False
        for armed in self._armed[address]:
            if armed.trigger.over_ns:
                slow = True
            else:
                yield _Due(tsc, armed)
        if slow:
            begun = ring.begun[address]
            begun.append(tsc)
            del begun[:-_MOST_OPEN]

    def _at_exit(
        self, ring: _Ring, piece: RawBlock, row: int, tsc: int, address: int
    ) -> Iterator[_Due]:
        begun = ring.begun.get(address)
        took = tsc - begun.pop() if begun else self._duration(piece, row, address)
        for armed in self._armed[address]:
            over_ns = armed.trigger.over_ns
            if over_ns and took > over_ns * self.ticks_per_ns:
                yield _Due(tsc, armed, took=took)

    def _duration(self, piece: RawBlock, row: int, address: int) -> int:
        place = row + 1 + self.durations.get(address, len(piece.rows))
        return int(piece.rows[place, 0]) if place < len(piece.rows) else 0

    def _run(self, due: list[_Due], pieces: list[RawBlock]) -> list[Hit]:
        hits = []
        stacks = _Stacks(self._rings, pieces) if self._wants_stacks() else None
        for one in due:
            if one.armed is None:
                self._turn_by_hand(one.tsc, on=one.on)
            elif self._fires(one.armed, one.tsc):
                hits.append(_hit(one, one.armed.trigger, stacks))
        if stacks is not None:
            stacks.finish()
        if hits:
            self._refresh()
        return hits

    def _fires(self, armed: _Armed, tsc: int) -> bool:
        # As in the kernel: a count is of what was done, not of calls.
        command = armed.trigger.command
        if armed.left == 0:
            return False
        if command in _SWITCHES:
            on = command is Command.TRACEON
            if on == self._on:
                return False
            self._turn(tsc, on=on)
        elif command is Command.STACKTRACE and not self._on:
            return False
        if armed.left is not None:
            armed.left -= 1
        return True

    def _turn_by_hand(self, tsc: int, *, on: bool) -> None:
        if on != self._on:
            self._turned.append((tsc, on))
            self._turn(tsc, on=on)

    def _turn(self, tsc: int, *, on: bool) -> None:
        if on != self._on:
            # An event that comes late, of a thread that was put to sleep while it wrote, cannot
            # change what has been handed on.
            self._edges.append(max([tsc, *self._edges[-1:]]))
            self._on = on

    def _wants_stacks(self) -> bool:
        return any(
            armed.trigger.command is Command.STACKTRACE and armed.left != 0
            for known in self._armed.values()
            for armed in known
        )

    def _refresh(self) -> None:
        live = [a for a, known in self._armed.items() if any(x.left != 0 for x in known)]
        self._live = np.array(sorted(live), np.uint64)
        self._always = {
            address
            for address, known in self._armed.items()
            if any(x.trigger.over_ns or x.trigger.command in _SWITCHES for x in known)
        }

    # What is recorded.

    def _cut(self, piece: _Piece) -> RawBlock | None:
        block = piece.block
        if not len(block.rows):
            last = np.array([self._times.last(block.ring)], np.uint64)
            return block if bool(self._recorded(last)[0]) else None
        if not self._edges and not self.hidden:
            return block if self._first_on else None
        kept = self._recorded(piece.times())
        on_at_end = bool(kept[-1])
        if self.hidden:
            kept &= self._shown(block)
        return block.only(kept, lost=on_at_end)

    def _recorded(self, times: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if not self._edges:
            return np.full(len(times), self._first_on)
        # The event of a traceon and that of a traceoff both belong to what is recorded.
        states = np.arange(len(self._edges) + 1) % 2 == (0 if self._first_on else 1)
        edges = np.array(self._edges, np.uint64)
        before = states[np.searchsorted(edges, times, "left")]
        kept: NDArray[np.bool_] = before | states[np.searchsorted(edges, times, "right")]
        return kept

    def _shown(self, piece: RawBlock) -> NDArray[np.bool_]:
        ring, own = self._rings[piece.ring], owners(piece)
        hidden = np.isin(piece.addresses, np.array(sorted(self.hidden), np.uint64))
        shown = ~hidden[np.maximum(own, 0)]
        shown[own < 0] = not ring.hiding
        ring.hiding = not bool(shown[-1])
        return shown

    def _forget(self) -> None:
        old = max(len(self._edges) - _MOST_EDGES, 0)
        self._first_on ^= bool(old % 2)
        del self._edges[:old]


class _Stacks:
    """Open calls at the rows of some blocks: a walk along each ring, from hit to hit."""

    def __init__(self, rings: Mapping[int, _Ring], pieces: list[RawBlock]) -> None:
        self._rings = rings
        self._pieces = pieces
        self._walks: dict[int, _Walk] = {}

    def at(self, piece: int, row: int) -> tuple[tuple[tuple[int, int], ...], bool]:
        """Frames behind a row, and whether they are open calls."""
        number = self._pieces[piece].ring
        walk = self._walks.get(number)
        if walk is None or (piece, row) < (walk.piece, walk.row - 1):
            walk = self._walks[number] = _Walk(self._rings[number].calls.copy())
        while walk.piece < piece:
            self._to_next_piece(walk, number)
        walk.calls.advance(self._pieces[piece].rows[walk.row : row + 1])
        walk.row = row + 1
        return tuple(walk.calls.frames()), walk.calls.graph

    def finish(self) -> None:
        """Take in all of the blocks."""
        for piece in self._pieces:
            _advance(self._rings[piece.ring].calls, piece, 0)

    def _to_next_piece(self, walk: _Walk, number: int) -> None:
        piece = self._pieces[walk.piece]
        if piece.ring == number:
            _advance(walk.calls, piece, walk.row)
        walk.piece, walk.row = walk.piece + 1, 0


@dataclass(slots=True)
class _Walk:
    calls: OpenCalls
    piece: int = 0
    row: int = 0


def _advance(calls: OpenCalls, piece: RawBlock, row: int) -> None:
    calls.advance(piece.rows[row:])
    if piece.lost:
        calls.reset()


def _hit(due: _Due, trigger: Trigger, stacks: _Stacks | None) -> Hit:
    frames: tuple[tuple[int, int], ...] = ()
    graph = False
    if stacks is not None and trigger.command is Command.STACKTRACE:
        frames, graph = stacks.at(due.piece, due.row)
    return Hit(trigger, due.address, due.tid, due.tsc, due.took, frames, graph)
