# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: threads overwrite their rings, a hit copies a stretch of time out of them.

Nothing is drained in between, so how much the program does costs the tool nothing. What triggers
act on comes by another way (`watch.Watch`). How far back a stretch can reach is what a ring holds:
where that is not all that was asked for, the capture and a remark say so, and which size would do.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from textpoke._native import lib
from textpoke.flight import Kept, Past
from textpoke.flow import Flowed, turned_note
from textpoke.ring import Copied, Short, Span
from textpoke.streams import ENTRY, OpenCalls, Tap
from textpoke.trigger_engine import FOREVER, Hit, TriggerEngine
from textpoke.triggers import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textpoke.flow import CallCounter
    from textpoke.streams import RawBlock

_MOST_SNAPSHOTS = 4
_MOST_STACKS = 16
"""In one drain: each is a copy of what one thread's ring holds."""
_BESIDE_NS = 5_000_000  # a thread may lose its processor between two probes
_LOOK_NS = 50_000_000
_SAMPLE_NS = 2_000_000
_LARGEST_RING = 64 << 20


class Rings(Protocol):
    """Where events are copied from: a `Trace`."""

    def copy(self, span: Span, fd: int | None = None) -> Copied:
        """Write a stretch of time to the capture, or to `fd`."""

    def record(self, *, on: bool) -> None:
        """Let threads write, or not."""

    def written(self) -> int:
        """Events that threads have written so far."""


class Watched(Protocol):
    """What triggers act on: a `Watch`."""

    def take(self) -> tuple[list[RawBlock], bool]:
        """What has come, and whether it is complete."""

    def close(self) -> None:
        """Nobody needs it any more."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time that was written to the capture.

    Attributes:
        from_tsc: Where it begins.
        to_tsc: Where it ends, this tick included.
        copied: What was written.
        marker: What asked for it.
    """

    from_tsc: int
    to_tsc: int
    copied: Copied
    marker: Mapping[str, object] = field(default_factory=dict)

    @property
    def complete_from_tsc(self) -> int:
        """From here on every thread's events are there."""
        short = self.copied.short
        return max(self.from_tsc, short.from_tsc if short is not None else 0)

    def as_dict(self) -> dict[str, object]:
        """The marker as it stands in the capture's JSON."""
        data: dict[str, object] = {
            **self.marker,
            "from_tsc": self.from_tsc,
            "to_tsc": self.to_tsc,
            "complete_from_tsc": self.complete_from_tsc,
            "events": self.copied.events,
            "lost": self.copied.lost,
        }
        if self.copied.short is not None:
            data["buffer_that_would_do"] = self.needed(self.copied.short)
        return data

    def needed(self, short: Short) -> int:
        """Bytes of a ring that would have held all of it."""
        return short.bytes_for(max(short.until_tsc - self.from_tsc, 0))

    def remark(self, ticks_per_ns: float) -> str:
        """What is missing, in words; "" when nothing is."""
        short = self.copied.short
        if short is None:
            return ""
        ms = ticks_per_ns * 1e6
        held_ms = max(self.to_tsc - short.from_tsc, 0) / ms
        asked_ms = (self.to_tsc - self.from_tsc) / ms
        rate = short.events / max(short.until_tsc - short.from_tsc, 1) * ticks_per_ns * 1e3
        size = max(self.needed(short) >> 20, 1)
        what = f"--buffer {size}M would do" if size << 20 <= _LARGEST_RING else "trace fewer"
        return (
            f"kept {held_ms:,.0f} of {asked_ms:,.0f} ms: thread {short.tid} wrote {rate:,.1f} M "
            f"events/s; {what}"
        )


class RingFlight:
    """The way of a recording that writes nothing but what triggers keep.

    Args:
        engine: Its triggers.
        rings: Where events are.
        watched: What the triggers act on.
        beside_ns: A hit's call has an event of its own in the rings, so long before or after the
            one that triggers act on: one probe comes after the other.

    Attributes:
        tids: Threads whose events are recorded; None for all.
        counter: Counts calls for the governor; None when nobody asks.
    """

    def __init__(
        self, engine: TriggerEngine, rings: Rings, watched: Watched, *, beside_ns: int = _BESIDE_NS
    ) -> None:
        self.engine = engine
        self.tids: set[int] | None = None
        self.counter: CallCounter | None = None
        self._rings = rings
        self._watched = watched
        self._beside = round(beside_ns * engine.ticks_per_ns)
        self._tap = Tap()
        self._past = Past()
        self._asked: list[tuple[int, int, int, Hit]] = []
        self._order = itertools.count()
        self._was_on = engine.on
        self._given_to = 0
        self._counted = self._next_look = 0

    def feed(self, watermark: int, *, complete: bool = True) -> Flowed:
        """Look what triggers have come; write what they keep.

        Args:
            watermark: Ticks read before; `FOREVER` after the last events.
            complete: Not used: nothing was drained.

        Raises:
            CaptureWrite: The capture cannot be written.
        """
        if self._next_look <= watermark:
            self._next_look = watermark + round(_LOOK_NS * self.engine.ticks_per_ns)
            self._rings.written()
        blocks, complete = self._watched.take()
        fed = self.engine.feed(blocks, watermark, complete=complete)
        flowed = Flowed(skipped=fed.skipped, turned=fed.turned)
        for tsc, on in fed.turned:
            self._past.add(tsc, turned_note(tsc, on=on))
        stacks = 0
        for hit in fed.hits:
            stacks += hit.trigger.command is Command.STACKTRACE
            flowed.hits.append(self._acted(hit, flowed, stacks=stacks <= _MOST_STACKS))
            self._past.add(hit.tsc, flowed.hits[-1].as_dict())
        while self._asked and self._asked[0][0] <= fed.watermark:
            self._keep(*self._asked.pop(0), flowed)
        if self.engine.on != self._was_on:
            self._was_on = self.engine.on
            self._rings.record(on=self._was_on)
        return flowed

    def finish(self) -> Flowed:
        """Stretches that end in the future end here."""
        return self.feed(FOREVER)

    def close(self) -> None:
        """Nothing comes any more; a second call does nothing."""
        self._tap.close()
        self._watched.close()

    def sample(self) -> int:
        """Show the counter the last calls; returns how many more there were since the last time."""
        assert self.counter is not None  # noqa: S101 - who samples has set it
        written = self._rings.written()
        written, self._counted = written - self._counted, written
        now = int(lib.tp_rdtsc())
        blocks = self._copied(Span(now - round(_SAMPLE_NS * self.engine.ticks_per_ns), now))
        self.counter.add(blocks)
        events = sum(len(block.rows) for block in blocks)
        calls = sum(int((block.kinds == ENTRY).sum()) for block in blocks)
        return max(round(written * calls / events) - calls, 0) if events else 0

    def _acted(self, hit: Hit, flowed: Flowed, *, stacks: bool) -> Hit:
        command = hit.trigger.command
        if command in (Command.SNAPSHOT, Command.DUMP):
            if len(flowed.snapshots) >= _MOST_SNAPSHOTS:
                flowed.skipped += 1
            else:
                flowed.snapshots.append((hit, self._past.given_to(self._snapshot(hit))))
        elif command is Command.KEEP:
            ticks = self.engine.ticks_per_ns
            begin = hit.tsc - round(hit.trigger.before_ns * ticks)
            end = hit.tsc + max(round(hit.trigger.after_ns * ticks), self._beside)
            bisect.insort(self._asked, (end, next(self._order), begin, hit))
        elif command is Command.STACKTRACE and stacks:
            return self._with_stack(hit)
        return hit

    def _keep(self, end: int, _order: int, begin: int, hit: Hit, flowed: Flowed) -> None:
        begin = max(begin, self._given_to + 1)
        self._given_to = max(self._given_to, end)
        copied = self._rings.copy(Span(begin, end, self.tids))
        stretch = Stretch(begin, end, copied, hit.as_dict())
        flowed.kept.append(stretch)
        flowed.events += copied.events
        remark = stretch.remark(self.engine.ticks_per_ns)
        flowed.remarks += [remark] if remark else []

    def _snapshot(self, hit: Hit) -> Kept:
        blocks = self._copied(Span(0, hit.tsc, self.tids))
        times = [int(block.rows[0, 0]) for block in blocks if len(block.rows)]
        first = min(times, default=hit.tsc)
        return Kept(blocks, first, hit.tsc, max(times, default=first), hit.as_dict())

    def _with_stack(self, hit: Hit) -> Hit:
        calls = OpenCalls()
        for block in self._copied(Span(0, hit.tsc, {hit.tid})):
            calls.advance(block.rows)
            if block.lost:
                calls.reset()
        return replace(hit, frames=tuple(calls.frames()), open_calls=calls.graph)

    def _copied(self, span: Span) -> list[RawBlock]:
        self._rings.copy(replace(span, again=True), self._tap.fd)
        return self._tap.take()
