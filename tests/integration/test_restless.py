# SPDX-License-Identifier: Apache-2.0
"""A thread that never rests can be stopped all the same, and goes on as it was scheduled."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, tasks

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
