# SPDX-License-Identifier: Apache-2.0
"""The agent relies on no descriptor of the program's, and keeps none of them open (pitfalls 1)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import programs
from observe import agent_task, ask, tell, untouched

import textpoke

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start

TOGGLES = 20


def fds(pid: int, task: int | None = None) -> set[str]:
    """What a thread's descriptors lead to."""
    folder = f"/proc/{pid}/task/{task or pid}/fd"
    return {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def start(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("descriptors.c", *programs.PIE))


def test_a_program_that_takes_every_number_keeps_its_file(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start(compile_target, start_target)
    mine, output = tmp_path / "mine", tmp_path / "x.tptrace"
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            ask(process, f"reopen {mine}")
            for _ in range(TOGGLES):
                with target.trace():
                    pass
            with target.trace(output=output) as trace:
                ask(process, "work 100")
                ask(process, f"reopen {mine}")
            assert trace.events == 100
        assert target.report is not None
        assert target.report.residue == []
    assert mine.read_bytes() == b""


def test_the_agents_descriptors_are_not_the_programs(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start(compile_target, start_target)
    ask(process, f"reopen {tmp_path / 'mine'}")
    before = fds(process.pid)
    with textpoke.attach(process.pid) as target:
        agent = agent_task(process.pid)
        assert agent == target.agent.tid
        assert fds(process.pid) == before
        held = fds(process.pid, agent)
        assert not held & before
        assert len(held) == 5  # the shared object; the mem, status, stat files; the task directory
    assert fds(process.pid) == before


def test_a_reader_sees_the_end_of_what_the_program_closes(
    compile_target: Compile, start_target: Start
) -> None:
    """And a program without any standard stream is traced like every other."""
    process = start(compile_target, start_target)
    assert process.stdout is not None
    with textpoke.attach(process.pid) as target:
        with target.trace() as trace:
            tell(process, "close")
            assert process.stdout.read() == ""  # would wait for ever if the agent held it
            assert process.poll() is None
            trace.drain()
        with target.trace():
            pass
    assert target.report is not None
    assert target.report.residue == []
    assert process.wait() == 0
