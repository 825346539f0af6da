# SPDX-License-Identifier: Apache-2.0
"""Unruly control flow through sites that are switched on and off all the while (H3-H6, H13-H18,
H22, H25, H26; pitfalls 2, 4, 5, 18)."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import AGENT, ask, maps, tell, text_equals_files, wait_until
from observe import textpoke as command

import textpoke

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

STORMS = (
    "signals",
    "masks",
    "altstack",
    "jumps",
    "cancel",
    "exits",
    "contexts",
    "locks",
    "jit",
    "spawn",
    "owntraps",
)
# Their programs bear a trap at any moment, so auto must let them meet int3s.
TRAPPED = frozenset(("signals", "jumps", "cancel", "exits", "locks", "jit", "spawn"))
TOGGLE_S = 1.0


def part_of(storm: str) -> tuple[str, ...]:
    return ("-DPART_CONTEXTS",) if storm == "contexts" else ()


def is_right(process: subprocess.Popen[str]) -> bool:
    rounds, wrong = map(int, ask(process, "stop").split())
    return rounds > 0 and wrong == 0


@pytest.mark.parametrize("storm", ["masks", "altstack"])
def test_handlers_that_cannot_bear_a_trap_meet_none(
    compile_target: Compile, start_target: Start, storm: str
) -> None:
    process = start_target(compile_target("storms.c", *programs.PIE), storm)
    with textpoke.attach(process.pid) as target:
        if storm == "masks":  # for alternate stacks, who asks for int3 answers himself
            with pytest.raises(textpoke.UnsupportedTarget) as refusal:
                target.trace(mode="int3").start()
            assert refusal.value.reason == "sigtrap-masked"
        with target.trace() as trace:
            pass
        assert trace.on is not None
        assert "handler" in trace.on.choices[0].why


@pytest.mark.parametrize("build", ["pie", "mcount"])
@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_passes_while_sites_are_toggled(
    compile_target: Compile, start_target: Start, storm: str, build: str
) -> None:
    program = compile_target("storms.c", *programs.BUILDS[build], *part_of(storm))
    survives(start_target(program, storm), traps_come=storm in TRAPPED)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_exceptions_pass_while_sites_are_toggled(
    compile_target: Compile, start_target: Start
) -> None:
    library = ("-Wl,--no-as-needed", "-lstdc++", "-Wl,--as-needed")
    survives(start_target(compile_target("exceptions.cc", *programs.PIE, *library)))


def is_clean(pid: int) -> bool:
    """Detach once more; tell whether nothing is left."""
    return command("detach", "-p", pid).code == 0 and not any(AGENT in line for line in maps(pid))


def survives(process: subprocess.Popen[str], *, traps_come: bool = False) -> None:
    """Attach to a storm, toggle, let go, twice; its results and its end are right.

    With `traps_come`, int3s must have been written; not always, where a newborn thread that a busy
    machine does not let run blocks SIGTRAP for long.
    """
    for _ in range(2):
        ask(process, "go")
        toggles = traps = 0
        modes: set[textpoke.Mode] = set()
        with textpoke.attach(process.pid) as target:
            end = time.monotonic() + TOGGLE_S / 2
            while time.monotonic() < end:
                with target.trace() as trace:
                    toggles += 1
                assert trace.off is not None
                assert trace.off.finished == len(trace.chosen)
                modes |= {choice.mode for choice in trace.off.choices}
                traps += trace.off.traps
        assert toggles > 0
        assert textpoke.Mode.INT3 in modes or not traps_come
        report = target.report
        assert report is not None
        assert report.text.differing == []
        if report.residue:  # threads that raise SIGTRAP all the time are always in our handler
            assert all("handler and agent pages stay" in line for line in report.residue)
            wait_until(lambda: is_clean(process.pid), "a later detach takes the rest out")
        else:
            assert report.handler_restored
        time.sleep(0.05)  # the storm goes on without us
        assert is_right(process)
        assert text_equals_files(process.pid)
    tell(process, "quit")
    assert process.wait(timeout=20) == 0
