# SPDX-License-Identifier: Apache-2.0
"""A program that blocks all signals for moments, within functions that are traced.

No look beforehand can tell when: an int3 written a moment later kills it. So only the modes without
traps are safe there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import EXIT_CANNOT_TRACE, is_one_error_line
from observe import textpoke as tool

import textpoke
from textpoke.modes import Mode, direct_processor

if TYPE_CHECKING:
    from conftest import Compile, Start

ALL_WELL = 7
SECONDS = 4
TOGGLED_S = 1.5
MODES = [Mode.AUTO, Mode.STOP, *([Mode.DIRECT] if direct_processor() else [])]


@pytest.mark.parametrize("build", ["pie", "non-pie", "static"])
@pytest.mark.parametrize("mode", MODES)
def test_signals_blocked_at_any_moment_do_no_harm(
    compile_target: Compile, start_target: Start, mode: Mode, build: str
) -> None:
    if mode is Mode.DIRECT and build != "pie":
        pytest.skip("its runs of NOPs are merged: more than one byte changes")
    process = start_target(compile_target("masks.c", *programs.BUILDS[build]), str(SECONDS))
    toggles = 0
    with textpoke.attach(process.pid) as target:
        end_s = time.monotonic() + TOGGLED_S
        while time.monotonic() < end_s:
            with target.trace("work", mode=mode):
                toggles += 1
    assert process.wait() == ALL_WELL
    assert toggles > 1


def test_an_int3_that_could_kill_is_refused(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("masks.c", *programs.PIE), "1")
    result = tool("record", "-p", process.pid, "--mode", "int3", "-d", "100ms")
    is_one_error_line(result, EXIT_CANNOT_TRACE, "--mode int3 could kill it")
    assert process.wait() == ALL_WELL
