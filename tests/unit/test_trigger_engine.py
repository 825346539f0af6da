# SPDX-License-Identifier: Apache-2.0
"""Triggers over drained events: counts as in the kernel, cuts to the event, thresholds, stacks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_events import LOCK, NAMES, F, G, H, block, data, entry, leave, times

from textpoke.streams import DATA, RawBlock, Tap, split_blocks
from textpoke.trigger_engine import FOREVER, Fed, Hit, TriggerEngine
from textpoke.triggers import parse_trigger

ADDRESS = {name: address for address, name in NAMES.items()}


def engine(*lines: str, on: bool = True, **options: object) -> TriggerEngine:
    made = TriggerEngine(3.0, on=on, **options)
    made.arm(placed(*lines))
    return made


def placed(*lines: str):
    triggers = [parse_trigger(line) for line in lines]
    return [(ADDRESS[trigger.rule.glob], trigger) for trigger in triggers]


def whats(hits: list[Hit]) -> list[tuple[str, int]]:
    return [(str(hit.trigger.command), hit.tsc) for hit in hits]


def test_without_triggers_everything_passes() -> None:
    one = block([entry(1), entry(2)], lost=3)
    fed = TriggerEngine(3.0).feed([one], 10)
    assert [b.encoded() for b in fed.blocks] == [one.encoded()]
    assert fed.hits == []


def test_traceoff_and_traceon_cut_every_thread_to_the_event() -> None:
    made = engine("f:traceoff", "g:traceon")
    fed = made.finish(
        [
            block([entry(10, H), entry(20, F), entry(30, H), entry(60, H)], ring=0),
            block([entry(15, H), entry(21, H), entry(49, H), entry(50, G), entry(51, H)], ring=1),
        ]
    )
    assert whats(fed.hits) == [("traceoff", 20), ("traceon", 50)]
    assert times(fed.blocks) == [10, 20, 60, 15, 50, 51]
    assert made.on


def test_traceoff_with_a_count_stops_three_times_and_the_fourth_stays_on() -> None:
    # func_traceonoff_triggers of the kernel's selftests.
    made = engine("f:traceoff:3")
    hits = []
    for turn in range(4):
        at = turn * 100
        fed = made.feed([block([entry(at + 10, F), entry(at + 20, F), entry(at + 30, H)])], at + 50)
        hits += fed.hits
        assert made.on == (turn == 3)
        made.switch(at + 60, on=True)
    assert whats(hits) == [("traceoff", 10), ("traceoff", 110), ("traceoff", 210)]
    assert times(fed.blocks) == [310, 320, 330]
    assert [left for _, _, left in made.left()] == [0]


def test_a_count_is_of_what_was_done_not_of_calls() -> None:
    made = engine("f:traceoff:1", on=False)
    assert made.feed([block([entry(1), entry(2)])], 5).hits == []
    made.switch(6, on=True)
    assert whats(made.finish([block([entry(7), entry(8)])]).hits) == [("traceoff", 7)]
    twice = engine("f:traceon:2", on=False)
    assert whats(twice.finish([block([entry(1), entry(2), entry(3)])]).hits) == [("traceon", 1)]
    assert [left for _, _, left in twice.left()] == [1]


def test_snapshot_and_dump_count_calls_even_while_off() -> None:
    made = engine("f:snapshot:2", "g:dump", on=False)
    hits = made.finish([block([entry(1), entry(2), entry(3), entry(4, G), entry(5, G)])]).hits
    assert whats(hits) == [("snapshot", 1), ("snapshot", 2), ("dump", 4), ("dump", 5)]


def test_counts_go_on_when_other_triggers_change() -> None:
    first = placed("f:snapshot:3")
    made = TriggerEngine(3.0)
    made.arm(first)
    made.feed([block([entry(1)])], 5)
    made.arm(first + placed("g:dump"))
    assert [left for _, _, left in made.left()] == [2, None]
    made.arm(placed("f:snapshot:3"))  # written anew
    assert [left for _, _, left in made.left()] == [3]


def test_events_newer_than_the_watermark_wait() -> None:
    made = engine("f:traceoff")
    # Ring 1 was drained when ring 0 had not been looked at for a while: its 30 comes too soon.
    fed = made.feed([block([entry(30, H)], ring=1)], 15)
    assert fed.blocks == []
    fed = made.feed([block([entry(20, F)], ring=0), block([entry(40, H)], ring=1)], 35)
    assert times(fed.blocks) == [20]
    assert made.finish().blocks == []


def test_what_waits_keeps_its_order_and_its_losses() -> None:
    made = engine("g:traceon")
    first = block([entry(1), entry(9), entry(8)], sequence=5, lost=2)
    fed = made.feed([first, block([entry(10)], sequence=10)], 5)
    assert [(b.sequence, b.lost, times([b])) for b in fed.blocks] == [(5, 0, [1])]
    fed = made.finish()
    assert [(b.sequence, b.lost, times([b])) for b in fed.blocks] == [
        (6, 2, [9, 8]),
        (10, 0, [10]),
    ]


def test_data_goes_with_its_event_even_into_the_next_block() -> None:
    made = engine("f:traceoff", "g:traceon")
    rows = [entry(10, H), data(7), entry(20, F), data(FOREVER), entry(30, H), data(5)]
    fed = made.feed([block(rows), block([data(6), entry(40, G), data(1)])], 100)
    assert times(fed.blocks) == [10, 7, 20, FOREVER, 40, 1]
    cut = engine("f:traceoff").feed([block([entry(10, F)]), block([data(3), entry(11, H)])], 99)
    assert times(cut.blocks) == [10, 3]


def test_losses_while_off_are_nobodys() -> None:
    made = engine("f:traceoff")
    fed = made.feed([block([entry(1, F), entry(2, H)], lost=4), block([], lost=5)], 10)
    assert [(times([b]), b.lost) for b in fed.blocks] == [([1], 0)]
    made = engine("g:traceoff")
    fed = made.feed([block([entry(1, F)], lost=4), block([], lost=5)], 10)
    assert [b.lost for b in fed.blocks] == [4, 5]


def test_hidden_functions_trigger_but_are_not_recorded() -> None:
    made = engine("f:traceoff:1")
    made.hidden = frozenset({F})
    rows = [entry(1, F), data(9), entry(2, H)]
    fed = made.finish([block([entry(0, H), data(8), *rows])])
    assert times(fed.blocks) == [0, 8]
    assert whats(fed.hits) == [("traceoff", 1)]
    plain = TriggerEngine(3.0)
    plain.hidden = frozenset({F})
    fed = plain.feed([block([entry(0, H), entry(1, F)]), block([data(9), entry(2, H)])], 50)
    assert times(fed.blocks) == [0, 2]


def test_a_threshold_fires_at_the_exit_of_slow_calls_only() -> None:
    made = engine("f>5us:dump")  # 15,000 ticks
    rows = [entry(0), leave(15_000), entry(20_000), leave(35_001)]
    (hit,) = made.finish([block(rows)]).hits
    assert (hit.tsc, hit.took_ticks, hit.tid) == (35_001, 15_001, 100)


def test_thresholds_pair_by_thread_and_recursion() -> None:
    made = engine("f>5us:dump")
    a = [entry(0), entry(10), leave(20), leave(20_000)]  # the outer one
    b = [entry(5), leave(100)]
    hits = made.feed([block(a[:2], 0), block(b, 1)], 15).hits
    hits += made.finish([block(a[2:], 0)]).hits
    assert [(hit.tsc, hit.took_ticks, hit.tid) for hit in hits] == [(20_000, 20_000, 100)]


def test_losses_and_new_threads_break_pairs() -> None:
    made = engine("f>5us:dump")
    assert made.finish([block([entry(0)], lost=1), block([leave(90_000)])]).hits == []
    made = engine("f>5us:dump")
    parts = [block([entry(0)], generation=1), block([leave(90_000)], generation=2)]
    assert made.feed(parts[:1], 10).hits == []
    assert made.finish(parts[1:]).hits == []


def test_duration_of_threshold_mode_stands_in_the_data() -> None:
    made = engine("f>5us:dump", durations={F: 1})
    rows = [leave(50_000), data(7, 0, 2), data(15_001, 1, 2), leave(60_000), data(0), data(2)]
    (hit,) = made.finish([block(rows)]).hits
    assert (hit.tsc, hit.took_ticks) == (50_000, 15_001)


def test_stacktrace_of_open_calls() -> None:
    made = engine("lock:stacktrace")
    first = [entry(1, F), entry(2, G), leave(3, G), entry(4, G)]
    second = [entry(5, H), leave(6, H), entry(7, LOCK), leave(8, LOCK), entry(9, LOCK)]
    assert made.feed([block(first)], 4).hits == []
    hits = made.finish([block(second), block([entry(7, H)], ring=1)]).hits
    assert [(hit.tsc, hit.frames, hit.open_calls) for hit in hits] == [
        (7, ((LOCK, 7), (G, 4), (F, 1)), True),
        (9, ((LOCK, 9), (G, 4), (F, 1)), True),
    ]
    assert hits[0].as_dict()["frames"] == [[LOCK, 7], [G, 4], [F, 1]]


def test_stacktrace_without_returns_has_the_last_functions() -> None:
    made = engine("f:stacktrace")
    rows = [entry(i, H) for i in range(40)] + [entry(50, F)]
    (hit,) = made.finish([block(rows)]).hits
    assert not hit.open_calls
    assert len(hit.frames) == 16
    assert hit.frames[:2] == ((F, 50), (H, 39))


def test_stacktrace_after_losses_says_only_what_is_known() -> None:
    made = engine("f:stacktrace")
    parts = [block([entry(1, G), leave(2, G), entry(3, G)], lost=1), block([entry(9, F)])]
    (hit,) = made.finish(parts).hits
    assert hit.frames == ((F, 9),)


def test_stacktrace_only_while_recording() -> None:
    made = engine("f:stacktrace:1", on=False)
    assert made.finish([block([entry(1)])]).hits == []
    assert [left for _, _, left in made.left()] == [1]


def test_many_switches_are_forgotten_without_a_change_of_state() -> None:
    made = engine("f:traceoff", "g:traceon")
    kept: list[int] = []
    rows = [entry(10 * i + 5, F if i % 2 == 0 else G) for i in range(2001)]
    for start in range(0, len(rows), 100):
        kept += times(made.feed([block(rows[start : start + 100])], 10 * (start + 100)).blocks)
    assert kept == [tsc for tsc, _ in rows]
    assert not made.on


def test_times_that_lie_hold_nothing_up_and_break_nothing() -> None:
    made = engine("f:traceoff", "g:traceon")
    rows = [entry(5, H), entry(FOREVER, F), entry(FOREVER - 1, H)]
    assert times(made.feed([block(rows)], 10).blocks) == [5]
    fed = made.feed([block([entry(15, H)], 1)], 20)
    assert times(fed.blocks) == [FOREVER, FOREVER - 1, 15]  # at 20, as far as anybody knows
    assert not made.on
    fed = made.feed([block([entry(25, H), entry(30, G), entry(35, H)], 1)], 40)
    assert times(fed.blocks) == [30, 35]
    past = engine("f:traceoff", "g:traceon")
    fed = past.feed([block([entry(10, F), entry(0, G), entry(11, H)])], 20)
    assert past.on or times(fed.blocks)  # whatever it is, it goes on


def test_an_event_that_is_not_yet_written_holds_the_rest_up_for_a_while() -> None:
    made = engine("f:traceoff")
    assert times(made.feed([block([entry(5, H)], 1)], 10).blocks) == [5]
    # Ring 0 has an event of before 20 that its thread has not finished.
    fed = made.feed([block([entry(18, H)], 1)], 20, complete=False)
    assert (fed.blocks, fed.watermark) == ([], 10)
    fed = made.feed([block([entry(15, F)], 0), block([entry(28, H)], 1)], 30)
    assert times(fed.blocks) == [15]
    assert not made.on
    patient = engine("f:traceoff")
    patient.feed([block([entry(5, H)])], 10, complete=False)
    fed = [patient.feed([], 20 + i, complete=False) for i in range(60)]
    assert [times(one.blocks) for one in fed if one.blocks] == [[5]]


def test_hot_functions_do_not_drown_the_drain() -> None:
    made = engine("f:snapshot", "g:traceoff:1")
    fed = made.feed([block([entry(t, F) for t in range(5000)] + [entry(5000, G)])], 9000)
    assert len(fed.hits) == 1001
    assert fed.skipped == 4000
    assert not made.on


def plain(rings: list[list[tuple[int, int]]]) -> tuple[list[int], list[int]]:
    """Kept and stopped times by f:traceoff and g:traceon, an event at a time."""
    on, kept, hits = True, [], []
    for tsc, address in sorted(event for ring in rings for event in ring):
        was = on
        if address in (F, G) and on == (address == F):
            on = address == G
            hits.append(tsc)
        if was or on:
            kept.append(tsc)
    return sorted(kept), hits


@given(st.integers(0, 2**32))
def test_agrees_with_a_plain_machine_however_it_is_drained(seed: int) -> None:
    rng = random.Random(seed)
    ticks = rng.sample(range(1, 4000), 120)
    rings: list[list[tuple[int, int]]] = [[], [], []]
    for tsc in ticks:
        rings[rng.randrange(3)].append((tsc, rng.choice([F, G, H, H, H])))
    for ring in rings:
        ring.sort()
    made = engine("f:traceoff", "g:traceon")
    done = [0, 0, 0]
    kept: list[int] = []
    hits: list[Hit] = []

    def take(fed: Fed) -> None:
        kept.extend(times(fed.blocks))
        hits.extend(fed.hits)

    mark = until = 0
    while mark < 4000:
        mark = max(until, mark + rng.randrange(1, 900))
        parts = []
        until = mark
        for number, ring in enumerate(rings):
            until += rng.randrange(100)  # rings are read one after the other
            stop = sum(tsc <= until for tsc, _ in ring)
            rows = [entry(tsc, a) for tsc, a in ring[done[number] : stop]]
            parts.append(block(rows, number, sequence=done[number]))
            done[number] = max(stop, done[number])
        take(made.feed(parts, mark))
    take(made.finish())
    assert (sorted(kept), [hit.tsc for hit in hits]) == plain(rings)


def test_blocks_survive_the_way_through_the_tap() -> None:
    tap = Tap()
    one = block([entry(1), data(2)], ring=3, tid=77, sequence=9, generation=2, lost=5)
    with open(tap.fd, "wb", buffering=0, closefd=False) as file:
        file.write(one.encoded() + block([], lost=1).encoded())
    first, second = tap.take()
    assert (first.tid, first.ring, first.sequence, first.generation, first.lost) == (77, 3, 9, 2, 5)
    assert np.array_equal(first.rows, one.rows)
    assert (len(second.rows), second.lost) == (0, 1)
    assert tap.take() == []
    tap.close()
    with pytest.raises(ValueError, match="cut header"):
        split_blocks(one.encoded()[:30])
    with pytest.raises(ValueError, match="whole block"):
        split_blocks(one.encoded()[:60])


def test_a_million_events_take_little_time_each() -> None:
    import time

    rows = np.empty((1_000_000, 2), np.uint64)
    rows[:, 0] = np.arange(len(rows))
    rows[:, 1] = np.where(np.arange(len(rows)) % 2, G << 16 | 2, G << 16 | 1)
    rows[::4, 1] |= DATA
    made = engine("f:traceoff", "h>5ms:dump", "lock:stacktrace")
    started = time.process_time()
    fed = made.feed([RawBlock(rows, 1)], 2_000_000)
    assert len(fed.blocks[0].rows) == len(rows)
    assert time.process_time() - started < 1.0  # 0.1 s
