# SPDX-License-Identifier: Apache-2.0
"""Redis under redis-benchmark: attach, everything on in one batch, record, off, detach, prove."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections import Counter

import pytest
from processes import differing_text
from redis_server import Load

import textpoke
from textpoke.report.counts import count

ROUNDS = 20
REQUESTS = 1_000_000
RECORD_S = 2.0
ATTACHES = 50
RING_BYTES = 4 << 20
SITES = 3900


@pytest.mark.timeout(600)
def test_twenty_rounds_of_everything_in_one_batch_under_load(redis, untouched, tmp_path, figure):
    capture = tmp_path / "redis.tptrace"
    unchanged = untouched(redis.pid)
    outcomes, events, lost = [], 0, 0
    with Load(redis, REQUESTS) as load:
        for _ in range(ROUNDS):
            with (
                textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
                target.trace(output=capture, mode="int3") as trace,
            ):
                trace.run(seconds=RECORD_S)
            unchanged(target.report)
            capture.unlink()
            assert trace.on.sites == trace.off.sites == target.report.sites >= SITES
            assert trace.on.syncs == trace.off.syncs == 2
            assert trace.events > 0
            outcomes += [trace.on, trace.off]
            events, lost = events + trace.events, lost + trace.lost
    load.require_no_failure()
    unchanged(None)
    on_us = statistics.median(o.total_ns for o in outcomes[::2]) / 1e3
    off_us = statistics.median(o.total_ns for o in outcomes[1::2]) / 1e3
    figure(
        f"{ROUNDS} rounds of {outcomes[0].sites:,} sites: on {on_us:,.0f} us, off {off_us:,.0f} us "
        f"(medians), {sum(o.traps for o in outcomes):,} traps, {events:,} events, {lost:,} lost"
    )
    figure(f"{len(load.runs) * 2 * REQUESTS:,} requests in {len(load.runs)} runs, none failed")


@pytest.mark.parametrize("include", ["redis-server!setCommand", ()], ids=["one", "all"])
@pytest.mark.timeout(300)
def test_a_capture_holds_every_call(redis, untouched, tmp_path, figure, include):
    requests = 100_000
    capture = tmp_path / "set.tptrace"
    unchanged = untouched(redis.pid)
    ended = threading.Event()
    codes: list[int] = []

    def benchmark() -> None:
        words = redis.benchmark("-n", requests, "-t", "set", "-q")
        try:
            done = subprocess.run(words, capture_output=True, timeout=120, check=False)
            codes.append(done.returncode)
        finally:
            ended.set()

    with (
        textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
        target.trace(include, output=capture) as trace,
    ):
        thread = threading.Thread(target=benchmark)
        thread.start()
        trace.run(stop=ended)
        thread.join()
    assert codes == [0]
    unchanged(target.report)
    assert redis.command("set")["calls"] == requests
    with textpoke.Capture(capture) as opened:
        counts = count(opened)
        calls = Counter(
            {
                opened.meta.sites[site].function: number
                for site, number in counts.everyone.by_site().items()
            }
        )
    assert counts.unknown == 0
    assert counts.lost + counts.lost_no_ring == trace.lost
    assert counts.calls == trace.events
    figure(f"{calls['setCommand']:,} setCommand events for {requests:,} SETs, {trace.lost:,} lost")
    if trace.lost:
        assert calls["setCommand"] <= requests <= calls["setCommand"] + trace.lost
    else:
        assert calls["setCommand"] == requests


@pytest.mark.timeout(300)
def test_one_thread_is_held_for_a_moment(redis, untouched, figure):
    unchanged = untouched(redis.pid)
    holds_ns = []
    with Load(redis) as load:
        for _ in range(ATTACHES):
            with textpoke.attach(redis.pid) as target:
                holds_ns.append(target.hold_ns)
            unchanged(target.report)
    load.require_no_failure()
    assert len(holds_ns) == ATTACHES
    assert all(hold_ns > 0 for hold_ns in holds_ns)
    holds_us = sorted(hold_ns / 1e3 for hold_ns in holds_ns)
    figure(
        f"hold of one thread, {ATTACHES} attaches to a loaded Redis: median "
        f"{statistics.median(holds_us):,.0f} us, {holds_us[0]:,.0f} to {holds_us[-1]:,.0f} us"
    )


@pytest.mark.timeout(300)
def test_toggling_in_full_flight(redis, untouched, figure):
    unchanged = untouched(redis.pid)
    outcomes = []
    with Load(redis) as load, textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target:
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            with target.trace(mode="int3") as trace:
                trace.run(seconds=0.01)
            outcomes += [trace.on, trace.off]
    load.require_no_failure()
    unchanged(target.report)
    assert {outcome.syncs for outcome in outcomes} == {2}
    assert not differing_text(redis.pid)
    traps = sum(outcome.traps for outcome in outcomes)
    ns = statistics.median(outcome.ns_per_site for outcome in outcomes)
    figure(f"{len(outcomes):,} batches in 10 s: median {ns:,.0f} ns a site, {traps:,} traps")
