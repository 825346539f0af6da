# SPDX-License-Identifier: Apache-2.0
"""Processes that a traced program makes run right and record nothing (pitfalls 5, 6)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, tell, untouched

import textpoke

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
