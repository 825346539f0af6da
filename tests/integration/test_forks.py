# SPDX-License-Identifier: Apache-2.0
"""Processes that a traced program makes run right and record nothing (pitfalls 5, 6)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from typing import TYPE_CHECKING

import programs
import pytest
from observe import (
    agent_task,
    ask,
    hear,
    maps,
    only_child,
    status,
    tell,
    text_equals_files,
    untouched,
    wait_until,
)
from observe import textpoke as command

import textpoke
from textpoke.leave import detach_remains

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start

CHILDREN = {"fork": 300, "spawn": 150, "vfork": 400}
CALLS = {"fork": 3, "spawn": 3, "vfork": 4}  # in the parent's memory, for each child


@pytest.fixture
def forks(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("forks.c", *programs.PIE))


@pytest.mark.parametrize("how", CHILDREN)
def test_children_work_and_only_the_parents_calls_are_recorded(
    forks: subprocess.Popen[str], how: str, tmp_path: Path
) -> None:
    output = tmp_path / "x.tptrace"
    with untouched(forks):
        with textpoke.attach(forks.pid) as target:
            with target.trace("work", output=output) as trace:
                bad, calls = map(int, ask(forks, f"{how} {CHILDREN[how]}").split())
            assert (bad, calls) == (0, CALLS[how] * CHILDREN[how])
            assert (trace.events, trace.lost) == (calls, 0)
        assert target.report is not None
        assert target.report.residue == []
    with textpoke.Capture(output) as capture:
        assert set(capture.threads) >= {forks.pid}


@pytest.mark.parametrize("how", CHILDREN)
def test_children_are_born_right_while_sites_are_toggled(
    forks: subprocess.Popen[str], how: str
) -> None:
    """A child of a moment within a batch has int3s, and finds its own table to leave them."""
    answers: list[str] = []
    with untouched(forks):
        with textpoke.attach(forks.pid) as target:
            tell(forks, f"{how} {CHILDREN[how]}")
            listener = threading.Thread(target=lambda: answers.append(hear(forks)))
            listener.start()
            toggles = 0
            while listener.is_alive() or not toggles:
                with target.trace():
                    toggles += 1
            listener.join()
        assert target.report is not None
        assert target.report.residue == []
    assert answers == [f"0 {CALLS[how] * CHILDREN[how]}"]


@pytest.mark.parametrize("build", ["pie", "non-pie"])
@pytest.mark.parametrize("then", ["detach", "attach"])
def test_a_child_of_a_patched_program_is_cleaned_or_traced(
    compile_target: Compile, start_target: Start, build: str, then: str
) -> None:
    parent = start_target(compile_target("forks.c", *programs.BUILDS[build]))
    with textpoke.attach(parent.pid) as target, target.trace("work"):
        child = int(ask(parent, "stay 0"))
        assert not text_equals_files(child)
        if then == "detach":
            result = command("detach", "-p", child, "--json")
            assert (result.code, json.loads(result.out)["residue"]) == (0, [])
            assert agent_task(child) is None
        else:
            with textpoke.attach(child) as other, other.trace("work") as trace:
                wait_until(lambda: trace.drain() and trace.events > 1000, "the child is traced")
            assert other.report is not None
            assert other.report.residue == []
        assert text_equals_files(child)
        assert not any("textpoke" in line for line in maps(child))
        ask(parent, "work 100")
    assert status(child)["State"][0] in "RS"
    os.kill(child, signal.SIGKILL)


def test_a_child_in_its_parents_memory_is_refused(forks: subprocess.Popen[str]) -> None:
    """Between vfork and exec the parent's agent looks like remains in the child; it is in use."""
    with untouched(forks):
        with textpoke.attach(forks.pid) as target:
            with target.trace("work") as trace:
                tell(forks, "halt 1")
                child = only_child(forks.pid)
                try:
                    for enter in (textpoke.attach, detach_remains):
                        with pytest.raises(textpoke.UnsupportedTarget) as refusal:
                            enter(child)
                        assert refusal.value.reason == "vfork"
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGTERM)
                assert hear(forks) == "1 3"
                assert ask(forks, "work 100") == "0 100"
                trace.drain()
            assert trace.events == 103
        assert target.report is not None
        assert target.report.residue == []
