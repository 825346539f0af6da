# SPDX-License-Identifier: Apache-2.0
"""Other programs that we did not write: traced, toggled and let go while their results are checked.

Lua is one hot thread full of longjmps, in both kinds of executable; memcached has waiting threads
and has dropped root; the Python process starts and ends threads all the time.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from memcached_server import Client, Memcached
from processes import REPOSITORY, Program, Seen, built, differing_text, verb

import textpoke

HERE = Path(__file__).parent
RING_BYTES = 4 << 20
TOGGLES = 10


def trace_and_toggle(pid, include, capture, figure):
    """Record a second of everything, switch on and off some times more; returns the report."""
    with textpoke.attach(pid, ring_bytes=RING_BYTES) as target:
        with target.trace(include, output=capture) as trace:
            trace.run(seconds=1)
        assert trace.events > 0
        assert not trace.refused
        assert trace.lost_no_ring == 0
        traps = trace.on.traps + trace.off.traps
        for _ in range(TOGGLES):
            with target.trace(include) as again:
                again.run(seconds=0.02)
            traps += again.on.traps + again.off.traps
    figure(
        f"{trace.on.sites:,} sites on in {trace.on.total_ns / 1e3:,.0f} us, {traps:,} traps in "
        f"{2 * TOGGLES + 2} batches, {trace.events:,} events, {trace.lost:,} lost, "
        f"held for {target.hold_ns / 1e3:,.0f} us"
    )
    return target.report


def functions_of(capture):
    with textpoke.Capture(capture) as opened:
        return {site.function for site in opened.meta.sites}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["pie", "no-pie"])
def test_lua(untouched, tmp_path, figure, kind):
    capture = tmp_path / "lua.tptrace"
    with Program([built("lua") / f"lua-{kind}", HERE / "work.lua"], f"lua-{kind}") as lua:
        right = lua.wait_for_lines(3)[0]
        unchanged = untouched(lua.pid)
        report = trace_and_toggle(lua.pid, (), capture, figure)
        unchanged(report)
        assert set(lua.wait_for_lines(3)) == {right}
    assert {"luaV_execute", "luaD_throw", "luaC_step"} <= functions_of(capture)


@pytest.mark.timeout(300)
def test_lua_started_by_record(tmp_path):
    capture = tmp_path / "lua.tptrace"
    words = [built("lua") / "lua-pie", HERE / "work.lua", 3, 7]
    done = verb("record", "-o", capture, "-i", "lua-pie!luaD_*", "--", *words)
    assert done.returncode == 7, done
    assert len(set(done.stdout.split())) == 1
    assert "lua-pie!luaD_throw" in verb("report", capture).stdout


@pytest.mark.timeout(300)
def test_memcached(untouched, tmp_path, figure):
    capture = tmp_path / "memcached.tptrace"
    stop = threading.Event()
    with Memcached(built("memcached") / "memcached") as memcached:
        memcached.wait_for(memcached.listens)
        clients = [Client(memcached, number, stop) for number in range(3)]
        for client in clients:
            client.start()
        try:
            unchanged = untouched(memcached.pid)
            report = trace_and_toggle(memcached.pid, (), capture, figure)
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert [client.failure for client in clients] == [""] * len(clients)
        unchanged(report)
        assert memcached.runs
    assert {"drive_machine", "complete_nread_ascii"} & functions_of(capture)


@pytest.mark.timeout(600)
def test_threads_that_come_and_go(zstandard, tmp_path, figure):
    words = [sys.executable, HERE / "short_lived_threads.py"]
    capture = tmp_path / "zstd.tptrace"
    with Program(words, "short-lived-threads", {"PYTHONPATH": str(zstandard)}) as python:
        python.wait_for_lines(5)
        before = Seen.now(python.pid).mappings
        report = trace_and_toggle(python.pid, "backend_c*!*", capture, figure)
        assert report.clean, report.residue
        assert 0 < report.text.equal == report.text.pages
        assert not differing_text(python.pid)
        assert Seen.now(python.pid).mappings == before
        assert set(python.wait_for_lines(5)) == {"0 wrong"}
    with textpoke.Capture(capture) as opened:
        figure(f"{len({block.tid for block in opened.events}):,} threads in the capture")


@pytest.mark.timeout(600)
def test_the_demo(zstandard):
    assert zstandard.is_dir()
    with Program([sys.executable, REPOSITORY / "examples" / "demo.py"], "demo") as demo:
        assert demo.process.wait(120) == 0, demo.log.read_text()
    said = demo.log.read_text()
    assert said.count("    ok  ") == 4
    assert "ZSTD_" in said
