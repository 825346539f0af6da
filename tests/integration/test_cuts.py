# SPDX-License-Identifier: Apache-2.0
"""Triggers over the events of a real program: the cut is where it belongs, in every thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import programs

import textpoke
from textpoke._native import lib
from textpoke.streams import RawBlock, Tap
from textpoke.trigger_engine import FOREVER, TriggerEngine
from textpoke.triggers import parse_trigger

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Compile, Start
    from numpy.typing import NDArray

SECONDS = 1.0
RING_BYTES = 1 << 22


def addresses(trace: textpoke.Trace) -> dict[str, int]:
    assert trace.plan is not None
    return {planned.site.function: planned.return_address for planned in trace.plan.sites}


def drained(trace: textpoke.Trace, tap: Tap, take: Callable[[int, bool], object]) -> None:
    """Drain for a while as a recording does; `take` gets each watermark, and what was complete."""
    assert trace._reader is not None
    trace._reader.write_to(tap.fd)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        mark = int(lib.tp_rdtsc())
        take(mark, not trace.drain().incomplete)
        time.sleep(0.002)
    trace.stop()
    take(FOREVER, True)
    assert trace.lost == 0


def expected(events: NDArray[np.uint64], off: int, on: int) -> tuple[NDArray[np.bool_], list[int]]:
    """Which of the events, by time, a plain machine keeps, and when it turned off."""
    recording, kept, stops, edges = True, np.zeros(len(events), bool), [], []
    for i, (tsc, word) in enumerate(events.tolist()):
        if word >> 16 == off and recording:
            recording = False
            stops.append(tsc)
            edges.append(tsc)
        elif word >> 16 == on and not recording:
            recording = True
            edges.append(tsc)
        kept[i] = recording
    # Another core may have read the same time: both sides of an edge belong to what is kept.
    kept |= np.isin(events[:, 0], np.array(edges, np.uint64))
    return kept, stops


def by_time(blocks: list[RawBlock]) -> NDArray[np.uint64]:
    rows = np.concatenate([block.rows for block in blocks])
    return rows[np.argsort(rows[:, 0], kind="stable")]


def test_every_thread_is_cut_at_the_event(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "3")
    tap = Tap()
    everything: list[RawBlock] = []
    kept: list[RawBlock] = []
    hits: list[int] = []
    engine = TriggerEngine(3.0)
    with (
        textpoke.attach(process.pid, ring_bytes=RING_BYTES) as target,
        target.trace("triggers*!*") as trace,
    ):
        at = addresses(trace)
        engine.arm(
            [(at[t.rule.glob], t) for t in map(parse_trigger, ["quiet:traceoff", "loud:traceon"])]
        )

        def take(mark: int, complete: bool) -> None:
            blocks = tap.take()
            everything.extend(blocks)
            fed = engine.feed(blocks, mark, complete=complete)
            kept.extend(fed.blocks)
            hits.extend(hit.tsc for hit in fed.hits if hit.trigger.command == "traceoff")

        drained(trace, tap, take)
    tap.close()
    events = by_time(everything)
    wanted, stops = expected(events, at["quiet"], at["loud"])
    assert len(stops) > 100
    assert hits == stops
    assert 0 < wanted.sum() < len(events)
    assert np.array_equal(by_time(kept)[:, 0], events[wanted, 0])
