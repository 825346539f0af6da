# SPDX-License-Identifier: Apache-2.0
"""A target that executes another program at any moment of an attach or detach is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import programs
import pytest

import textpoke

if TYPE_CHECKING:
    from conftest import Compile, Start

TIMES = 600
ALL_WELL = 7


@pytest.mark.parametrize("life_us", [500, 4000, 20_000])
def test_a_program_that_is_executed_anew_gets_none_of_our_calls(
    compile_target: Compile, start_target: Start, life_us: int
) -> None:
    """What we knew of the old program's memory is anything in the new one's."""
    times = TIMES * 500 // life_us
    program = compile_target("execs.c", *programs.PIE)
    process = start_target(program, str(times), str(life_us))
    tries = 0
    while process.poll() is None:
        tries += 1
        try:
            with textpoke.attach(process.pid) as target, target.trace("work"):
                pass
        except textpoke.TextpokeError:
            continue  # it is another program by now, or in between
    assert process.returncode == ALL_WELL
    assert tries > 1
