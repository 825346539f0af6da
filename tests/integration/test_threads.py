# SPDX-License-Identifier: Apache-2.0
"""Threads that come and go: events bear the right names, none outlives the last (9, 13)."""

from __future__ import annotations

import collections
import contextlib
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import (
    agent_task,
    ask,
    hear_until_end,
    recording,
    status,
    tasks,
    tell,
    untouched,
    wait_until,
)

import textpoke
from textpoke.report.counts import count

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Compile, Start

    Threads = Callable[[str], subprocess.Popen[str]]

WAVES_S = 4.0
FIRST_STATUS, SECOND_STATUS, ONLY_STATUS = 3, 5, 7


@pytest.fixture
def threads(compile_target: Compile, start_target: Start) -> Threads:
    """Return the function that starts tests/targets/threads.c in one of its ways."""
    program = compile_target("threads.c", *programs.PIE)
    return lambda way: start_target(program, way)


def test_a_thousand_short_threads_are_told_apart(threads: Threads, tmp_path: Path) -> None:
    """libc gives a new thread the stack, and so the fs base, of one that has just ended."""
    process = threads("churn")
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 16, rings=1024) as target,
        target.trace(output=output) as trace,
    ):
        tell(process, "churn 1000 4 25")
        tids = [row[0] for row in hear_until_end(process)]
    assert (trace.lost, trace.events) == (0, 25_000)
    made = collections.Counter(tids)
    with textpoke.Capture(output) as capture:
        seen = {thread.tid: thread.calls.total for thread in count(capture).threads}
    assert seen == {tid: 25 * times for tid, times in made.items()}


def test_too_many_threads_lose_events_and_count_them(threads: Threads) -> None:
    process = threads("churn")
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 16, rings=16) as target,
        target.trace() as trace,
    ):
        tell(process, "churn 200 4 25")
        hear_until_end(process)
    assert trace.lost > 0
    assert trace.events + trace.lost == 200 * 25


def test_too_many_threads_lose_counts_of_a_profile_and_say_so(threads: Threads) -> None:
    process = threads("churn")
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 16, rings=4) as target,
        target.trace(tracer="profile") as trace,
    ):
        tell(process, "churn 200 8 25")
        hear_until_end(process)
    counted = trace.counted
    assert counted.lost > 0
    assert counted.calls + counted.lost + trace.overruns == 200 * 25


def test_there_are_rings_for_all_threads_and_as_many_more(threads: Threads) -> None:
    process = threads("churn")
    with textpoke.attach(process.pid) as target:
        assert target.agent.layout is not None
        assert target.agent.layout.ring_count == 128


def test_a_thread_without_an_fs_base_is_counted_as_lost(threads: Threads) -> None:
    process = threads("churn")
    with untouched(process), textpoke.attach(process.pid) as target:
        with target.trace() as trace:
            ask(process, "bare 1000")
        assert trace.lost_no_ring == 1000


def test_two_threads_with_one_fs_base_are_a_sight_we_survive(threads: Threads) -> None:
    process = threads("churn")
    with untouched(process), textpoke.attach(process.pid) as target:
        for _ in range(10):
            with target.trace() as trace:
                ask(process, "twin 1000")
            assert trace.events + trace.lost > 0
    assert target.report is not None
    assert target.report.residue == []


def test_threads_come_and_go_while_sites_are_toggled(threads: Threads) -> None:
    process = threads("churn")
    tell(process, "churn 4 4 1")
    hear_until_end(process)
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            tell(process, "churn 2000 4 50")
            for _ in range(100):
                with target.trace():
                    pass
            assert len(hear_until_end(process)) == 2000
        assert target.report is not None
        assert target.report.residue == []


def test_a_program_whose_first_thread_has_gone_is_traced(threads: Threads, tmp_path: Path) -> None:
    process = threads("leader-exits")
    wait_until(lambda: status(process.pid)["State"][:1] == "Z", "the first thread is gone")
    [_, second] = tasks(process.pid)
    output = tmp_path / "x.tptrace"
    with textpoke.attach(process.pid) as target:
        with target.trace(output=output) as trace:
            assert int(ask(process, "ping")) == second
        assert trace.events == 1
    assert target.report is not None
    assert target.report.residue == []
    assert target.report.text.differing == []
    assert tasks(process.pid) == [process.pid, second]
    assert int(ask(process, "ping")) == second


@pytest.mark.parametrize("tool", ["attached", "gone"])
def test_the_agent_does_not_keep_alive_a_program_whose_only_thread_leaves(
    threads: Threads, tool: str
) -> None:
    process = threads("churn")
    target = textpoke.attach(process.pid)
    trace = target.trace()
    trace.start()
    if tool == "gone":
        target.agent.close()
    tell(process, "exit")
    assert process.wait(timeout=20) == ONLY_STATUS
    if tool == "attached":
        trace.stop()
        assert trace.reason == "target exited"
        assert target.detach().residue == []


@pytest.mark.parametrize("tool", ["attached", "gone"])
def test_the_agent_does_not_keep_alive_a_program_whose_last_thread_leaves(
    threads: Threads, tool: str
) -> None:
    process = threads("leave")
    target = textpoke.attach(process.pid)
    trace = target.trace()
    trace.start()
    if tool == "gone":
        target.agent.close()
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.close()
    process.stdin = None
    # Since Linux 5.19 it would be the second one's without us, which nobody can read any more.
    assert process.wait(timeout=20) in {FIRST_STATUS, SECOND_STATUS}
    if tool == "attached":
        with contextlib.suppress(textpoke.TargetExited):
            trace.run(seconds=0.01)
        trace.stop()
        assert trace.events == 1


def test_a_command_that_becomes_another_program_ends_the_recording(
    threads: Threads, tmp_path: Path
) -> None:
    process = threads("churn")
    output = tmp_path / "x.tptrace"
    with recording("-p", process.pid, "-o", output, "--json") as tool:
        ask(process, "ping")
        tell(process, "exec")
        result = tool.end()
    assert result.code == 0, result
    assert '"reason": "target exited"' in result.out
    assert agent_task(process.pid) is None
    with textpoke.Capture(output) as capture:
        assert capture.cut_off is None
        assert count(capture).calls == 1


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_descriptors_of_other_threads_come_and_go(
    compile_target: Compile, start_target: Start, tracer: str
) -> None:
    """A ring may be another thread's by now, whose descriptor libc has unmapped."""
    process = start_target(compile_target("waves.c", *programs.PIE))
    with textpoke.attach(process.pid) as target, target.trace(tracer=tracer) as trace:
        end = time.monotonic() + WAVES_S
        while time.monotonic() < end:
            trace.drain()
            time.sleep(0.05)
    assert trace.events > 0
    assert process.poll() is None
