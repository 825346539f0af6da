# SPDX-License-Identifier: Apache-2.0
"""The flight recorder over rings that run on: what a hit copies, and what is said of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raw_events import F, G, block, entry, leave

from textpoke.flow import CallCounter
from textpoke.ring import Copied, Short, Span
from textpoke.ring_flight import RingFlight, Stretch
from textpoke.trigger_engine import TriggerEngine
from textpoke.triggers import parse_trigger

if TYPE_CHECKING:
    from textpoke.streams import RawBlock


@dataclass
class Rings:
    """Says what was asked of it."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    switched: list[bool] = field(default_factory=list)
    short: Short | None = None
    total: int = 0

    def copy(self, span: Span, fd: int | None = None) -> Copied:
        self.spans.append(span)
        rows = [row for row in self.rows if span.from_tsc <= row[0] <= span.to_tsc]
        if fd is not None:
            os.write(fd, block(rows).encoded())
        return Copied(len(rows), short=self.short)

    def record(self, *, on: bool) -> None:
        self.switched.append(on)

    def written(self) -> int:
        return self.total


@dataclass
class Watched:
    blocks: list[RawBlock] = field(default_factory=list)

    def take(self) -> tuple[list[RawBlock], bool]:
        found, self.blocks = self.blocks, []
        return found, True

    def close(self) -> None:
        pass


def flight_of(rings: Rings, watched: Watched, *lines: str) -> RingFlight:
    engine = TriggerEngine(1.0)  # a tick is a nanosecond
    engine.arm([({"f": F, "g": G}[t.rule.glob], t) for t in map(parse_trigger, lines)])
    return RingFlight(engine, rings, watched, beside_ns=0)


def test_a_hit_copies_what_was_before_it_and_the_next_nothing_twice() -> None:
    rings, watched = Rings([entry(t) for t in range(0, 1000, 10)]), Watched()
    flight = flight_of(rings, watched, "f:keep=100ns")
    watched.blocks = [block([entry(500), entry(550)])]
    flowed = flight.feed(600)
    assert [(s.from_tsc, s.to_tsc) for s in rings.spans] == [(400, 500), (501, 550)]
    assert [one.as_dict()["events"] for one in flowed.kept] == [11, 5]
    assert flowed.events == 16
    assert not flowed.remarks
    flight.close()


def test_what_follows_is_waited_for() -> None:
    rings, watched = Rings(), Watched()
    flight = flight_of(rings, watched, "f:keep=100ns+50ns")
    watched.blocks = [block([entry(500)])]
    assert not flight.feed(549).kept
    assert len(flight.feed(550).kept) == 1
    assert [(s.from_tsc, s.to_tsc) for s in rings.spans] == [(400, 550)]
    watched.blocks = [block([entry(700)])]
    assert len(flight.finish().kept) == 1
    flight.close()


def test_the_event_of_the_hit_itself_is_kept() -> None:
    rings, watched = Rings([entry(520)]), Watched()
    flight = flight_of(rings, watched, "f:keep=100ns")
    flight._beside = 30
    watched.blocks = [block([entry(500)])]
    assert not flight.feed(529).kept
    assert flight.feed(530).events == 1
    flight.close()


def test_calls_that_took_long_have_no_entries() -> None:
    rings, watched = Rings(), Watched()
    flight = flight_of(rings, watched, "f>50ns:keep=10ns")
    flight.engine.durations = {F: 0}
    watched.blocks = [block([leave(500), (60, (1 << 16 | 1 << 8) << 16 | 3), leave(600)])]
    flowed = flight.feed(700)
    assert [hit.took_ticks for hit in flowed.hits] == [60]
    flight.close()


def test_a_ring_that_is_too_small_is_told_with_the_size_that_would_do() -> None:
    ms = 1_000_000
    short = Short(tid=7, from_tsc=150 * ms, until_tsc=200 * ms, events=1_000_000)
    stretch = Stretch(0, 200 * ms, Copied(10, short=short))
    assert stretch.complete_from_tsc == 150 * ms
    assert stretch.as_dict()["buffer_that_would_do"] == 64 << 20
    assert stretch.remark(1.0) == (
        "kept 50 of 200 ms: thread 7 wrote 20.0 M events/s; --buffer 64M would do"
    )
    faster = Stretch(-400 * ms, 200 * ms, Copied(10, short=short))
    assert faster.remark(1.0).endswith("trace fewer")


def test_traceoff_leaves_the_rings_as_they_are() -> None:
    rings, watched = Rings(), Watched()
    flight = flight_of(rings, watched, "f:traceoff", "g:traceon")
    watched.blocks = [block([entry(500)])]
    flight.feed(600)
    watched.blocks = [block([entry(700, G)])]
    flight.feed(800)
    assert rings.switched == [False, True]
    flight.engine.switch(900, on=False)
    assert flight.feed(1000).notes() == [{"command": "traceoff", "tsc": 900}]
    flight.close()


def test_snapshots_and_stacks_leave_what_is_held() -> None:
    rings, watched = Rings([entry(100), entry(200, G), leave(300, G)]), Watched()
    flight = flight_of(rings, watched, "f:snapshot", "g:stacktrace")
    watched.blocks = [block([entry(350), entry(350, G)])]
    flowed = flight.feed(400)
    assert flowed.snapshots[0][1].events == 3
    assert flowed.hits[1].frames == ((F, 100),)
    assert flowed.hits[1].open_calls
    assert all(span.again for span in rings.spans)
    assert rings.spans[1].tids == {100}
    flight.close()


def test_the_governor_sees_a_sample_and_how_much_it_stands_for() -> None:
    rings, watched = Rings(total=1000), Watched()
    flight = flight_of(rings, watched)
    flight.counter = CallCounter([F, G])
    rings.copy = lambda _span, fd=None: os.write(fd or -1, block(rows).encoded())  # type: ignore[method-assign,assignment]
    rows = [entry(1), entry(2), entry(3, G), leave(4, G)]
    more = flight.sample()
    assert more == 750 - 3
    assert flight.counter.take(more) == {F: 500, G: 250}
    flight.close()
