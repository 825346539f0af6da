# SPDX-License-Identifier: Apache-2.0
"""The tracers on Redis under load, held against what Redis itself has counted."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

import textpoke
from textpoke.report import blk, latency
from textpoke.report.times import times

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis_server import Redis

REQUESTS = 100_000
RING_BYTES = 32 << 20
RUN_TIMEOUT_S = 240
TRACED = [
    "redis-server!setCommand",
    "redis-server!setGenericCommand",
    "redis-server!dbGenericDelete",
]


def run_sets(redis: Redis, trace: textpoke.Trace) -> None:
    """100,000 SETs by redis-benchmark while the trace is drained; none may fail."""
    ended = threading.Event()
    codes: list[int] = []

    def benchmark() -> None:
        words = redis.benchmark("-n", REQUESTS, "-c", 20, "-t", "set", "-q")
        try:
            done = subprocess.run(words, capture_output=True, timeout=RUN_TIMEOUT_S, check=False)
            codes.append(done.returncode)
        finally:
            ended.set()

    thread = threading.Thread(target=benchmark)
    thread.start()
    trace.run(stop=ended)
    thread.join()
    assert codes == [0]


def input_bytes(redis: Redis) -> int:
    return int(redis.info("stats")["total_net_input_bytes"])


@pytest.mark.timeout(300)
def test_every_return_of_a_command_is_seen(
    redis: Redis, untouched: Callable, tmp_path: Path, figure: Callable
) -> None:
    capture = tmp_path / "graph.tptrace"
    unchanged = untouched(redis.pid)
    with (
        textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
        target.trace(TRACED, output=capture, tracer="function_graph") as trace,
    ):
        run_sets(redis, trace)
    unchanged(target.report)
    assert trace.lost == trace.overruns == 0
    with textpoke.Capture(capture) as opened:
        found = times(opened)
        rows = {opened.meta.sites[f.site].function: f for f in found.functions}
    assert redis.command("set")["calls"] == REQUESTS
    for function in ("setCommand", "setGenericCommand"):
        assert (rows[function].calls, rows[function].unfinished) == (REQUESTS, 0)
    assert rows["setGenericCommand"].total_ns <= rows["setCommand"].total_ns
    figure(f"setCommand: {REQUESTS:,} returns, {rows['setCommand'].average_ns:,.0f} ns on average")


@pytest.mark.timeout(300)
def test_a_profile_counts_every_call(redis: Redis, untouched: Callable, figure: Callable) -> None:
    unchanged = untouched(redis.pid)
    with (
        textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
        target.trace(tracer="profile") as trace,
    ):
        run_sets(redis, trace)
        names = {address: site.function for site, address in trace.sites_by_return()}
        rows = {names[address]: row for address, row in trace.profile().items()}
    unchanged(target.report)
    assert trace.events == trace.overruns == 0
    assert rows["setCommand"].hits == redis.command("set")["calls"] == REQUESTS
    assert sum(rows["setCommand"].buckets) == REQUESTS
    assert rows["setCommand"].self <= rows["setCommand"].total <= rows["call"].total
    figure(f"profile of {len(rows):,} functions, {sum(r.hits for r in rows.values()):,} calls")


@pytest.mark.timeout(300)
def test_blk_knows_every_byte_of_the_clients(
    redis: Redis, untouched: Callable, tmp_path: Path, figure: Callable
) -> None:
    capture = tmp_path / "blk.tptrace"
    unchanged = untouched(redis.pid)
    with (
        textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
        target.trace(output=capture, tracer="blk") as trace,
    ):
        before = input_bytes(redis)
        run_sets(redis, trace)
        after = input_bytes(redis)
    unchanged(target.report)
    assert trace.lost == 0
    with textpoke.Capture(capture) as opened:
        found = blk.records(opened)
    clients = [row for row in found["by_file"] if not str(row["name"]).startswith("/")]
    read = sum(row["bytes_read"] for row in clients)
    # The two questions themselves are on one side of the count or the other.
    assert after - before <= read <= after - before + 4096
    figure(f"blk: {read:,} bytes read from clients, Redis says {after - before:,}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("tracer", ["wakeup_rt", "irqsoff"])
def test_the_background_jobs_lock_and_wake(
    redis: Redis, untouched: Callable, tmp_path: Path, figure: Callable, tracer: str
) -> None:
    capture = tmp_path / f"{tracer}.tptrace"
    unchanged = untouched(redis.pid)
    jobs = 50
    with (
        textpoke.attach(redis.pid, ring_bytes=RING_BYTES) as target,
        target.trace(["*bio*", "emptyDb*"], output=capture, tracer=tracer) as trace,
    ):
        for _ in range(jobs):
            redis.ask("FLUSHALL", "ASYNC")
        run_sets(redis, trace)
    unchanged(target.report)
    assert trace.lost == 0
    with textpoke.Capture(capture) as opened:
        found = latency.records(opened)
    assert found["longest"]
    names = {row["symbol"].partition("+")[0]: row for row in found["by_object"] if row["symbol"]}
    assert ("bio_mutex" if tracer == "irqsoff" else "bio_newjob_cond") in names
    longest = found["longest"][0]
    figure(f"{tracer}: longest {longest['latency_ns'] / 1e3:,.1f} us, {longest['object']}")
