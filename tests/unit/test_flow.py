# SPDX-License-Identifier: Apache-2.0
"""The way from the tap to the capture: triggers, threads, the flight recorder, counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from raw_events import F, G, H, block, entry, leave, read_blocks, times

from textpoke.flight import FlightRecorder
from textpoke.flow import CallCounter, Flow, Flowed
from textpoke.trigger_engine import TriggerEngine
from textpoke.triggers import parse_trigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from textpoke.streams import RawBlock


class Rig:
    """A flow into a file, and what a ring reader would do."""

    def __init__(self, path: Path, *lines: str) -> None:
        engine = TriggerEngine(1.0)  # a tick is a nanosecond
        engine.arm([({"f": F, "g": G}[t.rule.glob], t) for t in map(parse_trigger, lines)])
        self.file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by the fixture
        recorder = FlightRecorder(1 << 40, 1 << 24)
        self.flow = Flow(engine, recorder, self.file.fileno())

    def feed(self, *blocks: RawBlock, mark: int) -> Flowed:
        for one in blocks:
            os.write(self.flow.tap.fd, one.encoded())
        return self.flow.feed(mark)

    def written(self) -> list[int]:
        self.file.seek(0)
        return times(read_blocks(self.file.read()))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[type]:
    made: list[Rig] = []

    def make(*lines: str) -> Rig:
        made.append(Rig(tmp_path / f"{len(made)}", *lines))
        return made[-1]

    yield make
    for one in made:
        one.flow.close()
        one.file.close()


def test_everything_passes_and_hits_are_noted(rig) -> None:
    one = rig("f:traceoff", "g:keep=5ns")
    flowed = one.feed(block([entry(1, H), entry(2, G), entry(3, F), entry(4, H)]), mark=10)
    assert one.written() == [1, 2, 3]
    assert flowed.events == 3
    assert [note["trigger"] for note in flowed.notes()] == ["g:keep=5ns", "f:traceoff"]
    assert flowed.kept == []  # it is all there


def test_who_switches_by_hand_is_noted_where_that_changed_something(rig) -> None:
    one = rig()
    one.flow.engine.switch(2, on=True)
    one.flow.engine.switch(5, on=False)
    one.flow.engine.switch(20, on=True)
    flowed = one.feed(block([entry(1, H), entry(6, H)]), mark=10)
    assert flowed.notes() == [{"command": "traceoff", "tsc": 5}]
    flowed = one.feed(block([entry(21, H)]), mark=30)
    assert flowed.notes() == [{"command": "traceon", "tsc": 20}]
    assert one.feed(mark=40).notes() == []


def test_snapshots_end_with_their_hit(rig) -> None:
    one = rig("f:snapshot", "g:dump:1")
    rows = [entry(1, H), entry(2, F), entry(3, H), entry(4, G), entry(5, G)]
    flowed = one.feed(block(rows), mark=10)
    assert [(h.tsc, times(kept.blocks)) for h, kept in flowed.snapshots] == [
        (2, [1, 2]),
        (4, [1, 2, 3, 4]),
    ]


def test_snapshots_know_what_happened_before(rig) -> None:
    one = rig("f:snapshot", "g:traceoff")
    one.flow.engine.switch(8, on=True)
    one.feed(block([entry(5, G)]), mark=10)
    flowed = one.feed(block([entry(12, F), entry(15, G)]), mark=20)
    (_, kept) = flowed.snapshots[0]
    assert [(note["command"], note["tsc"]) for note in kept.notes] == [
        ("traceon", 8),
        ("traceoff", 5),
        ("snapshot", 12),
    ]


def test_a_hot_function_makes_no_flood_of_snapshots(rig) -> None:
    one = rig("f:snapshot")
    flowed = one.feed(block([entry(t) for t in range(100)]), mark=200)
    assert (len(flowed.snapshots), flowed.skipped) == (4, 96)


def test_other_threads_are_left_out_but_their_triggers_count(rig) -> None:
    one = rig("f:traceoff")
    one.flow.tids = {101}
    flowed = one.feed(block([entry(5, F)], 0), block([entry(4, H), entry(6, H)], 1), mark=10)
    assert one.written() == [4]
    assert len(flowed.hits) == 1


def test_calls_are_counted_for_the_governor() -> None:
    counter = CallCounter([F, G, H])
    counter.add([block([entry(1, F), leave(2, F), entry(3, 0x999)]), block([entry(4, H)] * 3)])
    assert counter.take() == {F: 1, H: 3}
    assert counter.take() == {}
    counter.add([block([entry(1, F)] * 3 + [entry(1, G)])])
    assert counter.take(lost=8) == {F: 9, G: 3}
