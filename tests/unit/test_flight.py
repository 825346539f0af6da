# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: bounded memory, stretches of time cut to the event, nothing twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import captures
import pytest
from raw_events import F, G, block, data, entry, read_blocks, times

from textpoke._errors import CaptureExists
from textpoke.capture import Capture
from textpoke.decode import Decoder
from textpoke.flight import FlightRecorder, Past, snapshot_path, write_kept, write_snapshot
from textpoke.packing import Packer
from textpoke.trigger_notes import resumptions

if TYPE_CHECKING:
    from pathlib import Path

ROOM = 1 << 20


def filled(*stamps: int, hold: int = 1000, ring: int = 0) -> FlightRecorder:
    recorder = FlightRecorder(hold, ROOM)
    recorder.add([block([entry(stamp)], ring) for stamp in stamps])
    return recorder


def test_keeps_a_stretch_to_the_event() -> None:
    recorder = FlightRecorder(1000, ROOM)
    recorder.add([block([entry(t) for t in range(0, 100, 10)], sequence=7)])
    recorder.add([block([entry(t) for t in range(5, 100, 10)], 1)])
    kept = recorder.keep(20, 45)
    assert times(kept.blocks) == [20, 30, 40, 25, 35, 45]
    assert [(b.ring, b.tid, b.sequence) for b in kept.blocks] == [(0, 100, 9), (1, 101, 2)]
    assert kept.complete_from_tsc == 20


def test_what_is_old_is_let_go_and_said_to_be_gone() -> None:
    recorder = filled(*range(0, 5000, 100))
    assert times(recorder.keep(0, 5000, again=True).blocks) == list(range(3900, 5000, 100))
    kept = recorder.keep(3000, 4950)
    assert kept.complete_from_tsc == 3801
    assert recorder.dropped == 0


def test_memory_is_bounded_and_what_had_to_go_is_counted() -> None:
    recorder = FlightRecorder(1 << 40, 100_000)
    for start in range(0, 100_000, 1000):
        recorder.add([block([entry(start + i) for i in range(1000)])])
        assert recorder.held_bytes <= 100_000
    assert recorder.dropped == 96_000
    kept = recorder.keep(90_000, 100_000)
    assert (kept.events, kept.complete_from_tsc) == (4000, 96_000)
    recorder.add([block([entry(100_000 + i) for i in range(50_000)])])  # too many
    assert recorder.held_bytes <= 100_000


def test_losses_go_with_the_events_before_them() -> None:
    recorder = FlightRecorder(1000, ROOM)
    recorder.add([block([entry(10), entry(20)], lost=3), block([], lost=4)])
    recorder.add([block([entry(30), entry(40)], lost=5)])
    assert [(times([b]), b.lost) for b in recorder.keep(15, 35).blocks] == [
        ([20], 3),
        ([], 4),
        ([30], 0),
    ]


def test_overlapping_hits_write_no_event_twice() -> None:
    recorder = filled(*range(0, 100, 10))
    first = recorder.keep(20, 50)
    second = recorder.keep(40, 80)
    assert times(first.blocks) == [20, 30, 40, 50]
    assert times(second.blocks) == [60, 70, 80]
    assert (second.from_tsc, second.to_tsc) == (51, 80)
    assert times(recorder.keep(20, 50).blocks) == []
    assert times(recorder.keep(20, 50, again=True).blocks) == [20, 30, 40, 50]


def test_a_hit_before_there_is_enough_history() -> None:
    recorder = FlightRecorder(1000, ROOM, start_tsc=500)
    recorder.add([block([entry(510), entry(520)])])
    kept = recorder.keep(520 - 1000, 520)
    assert times(kept.blocks) == [510, 520]
    assert kept.complete_from_tsc == 500


def test_data_is_kept_with_its_event() -> None:
    recorder = FlightRecorder(1000, ROOM)
    recorder.add([block([entry(10), data(999), entry(20)]), block([data(5), entry(30), data(6)])])
    assert times(recorder.keep(20, 25).blocks) == [20, 5]


def test_snapshot_has_everything_and_clear_forgets_it() -> None:
    recorder = filled(10, 20)
    recorder.keep(0, 15)
    assert times(recorder.snapshot().blocks) == [10, 20]
    recorder.clear()
    assert (recorder.snapshot().events, recorder.held_bytes) == (0, 0)
    recorder.add([block([entry(30)])])
    assert recorder.keep(0, 40).complete_from_tsc == 20


def test_times_that_lie_do_not_make_everything_old() -> None:
    recorder = filled(10, 20, hold=50)
    recorder.add([block([entry((1 << 64) - 1), entry(30)])], 40)
    assert recorder.snapshot().events == 4
    assert recorder.keep(0, 1 << 70).events == 4


def test_rows_are_copies() -> None:
    one = block([entry(10)])
    recorder = FlightRecorder(1000, ROOM)
    recorder.add([one])
    one.rows[:] = 0
    assert times(recorder.snapshot().blocks) == [10]


def test_a_snapshot_is_a_capture(tmp_path: Path) -> None:
    start = captures.START_TSC
    recorder = FlightRecorder(1 << 40, ROOM)
    recorder.add([block([entry(start + 300, F), entry(start + 600, G)], lost=2)])
    path = snapshot_path(os.fspath(tmp_path / "x.tptrace"), 1)
    assert path.endswith("x.snapshot-1.tptrace")
    meta = captures.meta(sites=[[F, "prog", "f"], [G, "prog", "g"]])
    kept = recorder.snapshot({"trigger": "f:snapshot"})
    past = Past()
    for tsc in (start + 400, start + 700):
        past.add(tsc, {"command": "traceon", "tsc": tsc})
    kept = past.given_to(kept)
    write_snapshot(path, kept, meta, {100: "main"}, {"clock": captures.clock(900)})
    with Capture(path) as capture:
        assert capture.end is not None
        assert (capture.end.events, capture.end.lost, capture.end.reason) == (2, 2, "snapshot")
        assert capture.end.raw["markers"][0]["trigger"] == "f:snapshot"
        assert Decoder(capture).all().site.tolist() == [0, 1]
        assert resumptions(capture) == [start + 400]
    with pytest.raises(CaptureExists):
        write_snapshot(path, kept, meta, {}, {"clock": captures.clock(900)})


def test_kept_blocks_are_appended_to_a_file(tmp_path: Path) -> None:
    kept = filled(10, 20).snapshot()
    with open(tmp_path / "x", "wb") as file:
        write_kept(file.fileno(), kept, Packer())
    found = read_blocks((tmp_path / "x").read_bytes())
    assert [b.encoded() for b in found] == [b.encoded() for b in kept.blocks]


@pytest.mark.parametrize("older", [False, True])
def test_a_large_block_becomes_several(tmp_path: Path, older: bool) -> None:
    one = block([entry(tsc) for tsc in range(40_000)], lost=3)
    with open(tmp_path / "x", "wb") as file:
        one.write(file.fileno(), Packer(), older=older)
    found = read_blocks((tmp_path / "x").read_bytes())
    assert [len(b.rows) for b in found] == [16384, 16384, 7232]
    assert [b.sequence for b in found] == [0, 16384, 32768]
    assert [b.lost for b in found] == ([3, 0, 0] if older else [0, 0, 3])
    assert times(found) == list(range(40_000))
