# SPDX-License-Identifier: Apache-2.0
"""A thread that never rests can be stopped all the same, and goes on as it was scheduled."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, tasks, wait_until

import textpoke

if TYPE_CHECKING:
    from conftest import Compile, Start

TURNS = 8


@pytest.mark.parametrize("mode", ["auto", "stop"])
def test_signals_all_the_time_do_not_keep_us_waiting(
    compile_target: Compile, start_target: Start, mode: str
) -> None:
    process = start_target(compile_target("restless.c", *programs.PIE))
    for _ in range(TURNS):
        with textpoke.attach(process.pid) as target:
            with target.trace("work", mode=mode) as trace:
                before = int(ask(process, "calls"))
                while int(ask(process, "calls")) == before:
                    pass
            assert trace.events + trace.lost > 0
        assert target.report is not None
        assert target.report.residue == []
        policies = {os.sched_getscheduler(tid) for tid in tasks(process.pid)}
        assert policies == {os.SCHED_OTHER}


def scheduling(tid: int) -> tuple[int, int, set[int]]:
    """How a thread is scheduled, and where."""
    return (
        os.sched_getscheduler(tid),
        os.getpriority(os.PRIO_PROCESS, tid),
        os.sched_getaffinity(tid),
    )


@pytest.mark.parametrize("mode", ["auto", "stop"])
def test_the_agent_is_scheduled_as_before_when_its_work_is_done(
    compile_target: Compile, start_target: Start, mode: str
) -> None:
    """While we wait for it, it works in our place."""
    process = start_target(compile_target("restless.c", *programs.PIE))
    with textpoke.attach(process.pid) as target:
        before = scheduling(target.agent.tid)
        with target.trace("work", mode=mode) as trace:
            assert scheduling(target.agent.tid) == before
            trace.tracer = "nop"
            trace.tracer = "function"
            trace.tracer = "nop"  # known by now: in a hurry from the first to the last
            trace.tracer = "function"
            assert scheduling(target.agent.tid) == before
        assert scheduling(target.agent.tid) == before
    assert before[2] == os.sched_getaffinity(process.pid)


@pytest.mark.parametrize("limits", [(1, 1), (1, resource.RLIM_INFINITY)], ids=["hard", "soft"])
def test_who_may_not_run_long_before_others_is_not_hurried(
    compile_target: Compile, start_target: Start, limits: tuple[int, int]
) -> None:
    """The kernel ends a process of which a thread in SCHED_FIFO runs longer: the agent is one."""
    process = start_target(compile_target("restless.c", *programs.PIE))
    resource.prlimit(process.pid, resource.RLIMIT_RTTIME, limits)
    for mode in ("auto", "stop"):
        with textpoke.attach(process.pid) as target, target.trace(mode=mode) as trace:
            for tracer in ("function_graph", "nop", "function"):
                trace.tracer = tracer
        assert target.report is not None
        assert target.report.residue == []
    assert process.poll() is None


def test_the_agent_stays_where_the_program_may_run(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("restless.c", *programs.PIE))
    here = min(os.sched_getaffinity(0))
    for tid in tasks(process.pid):
        os.sched_setaffinity(tid, {here})
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            for tracer in ("nop", "function", "nop", "function"):
                trace.tracer = tracer
                assert os.sched_getaffinity(target.agent.tid) == {here}
        assert os.sched_getscheduler(target.agent.tid) == os.SCHED_OTHER


def test_an_agent_whose_tool_was_killed_goes_back_to_how_it_was(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("restless.c", *programs.PIE))
    target = textpoke.attach(process.pid, keep=True)
    tid, before = target.agent.tid, scheduling(target.agent.tid)
    left = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(tid, left, os.sched_param(1))  # as it is in the midst of a command
    os.sched_setaffinity(tid, {min(before[2])})
    target.agent.close()
    wait_until(lambda: not os.sched_getscheduler(tid) & os.SCHED_FIFO, "it is as others are")
    assert scheduling(tid)[1:] == before[1:]
    os.sched_setscheduler(tid, left, os.sched_param(1))
    again = textpoke.attach(process.pid, keep=True)  # comes before it has seen that
    assert again.agent.tid == tid
    wait_until(lambda: not os.sched_getscheduler(tid) & os.SCHED_FIFO, "it is as others are")
    assert again.detach().residue == []
