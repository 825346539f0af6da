# SPDX-License-Identifier: Apache-2.0
"""A program without any library, and so without an fs base by which threads find their rings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import programs
from observe import ask, untouched

import textpoke

if TYPE_CHECKING:
    from conftest import Compile, Start

CALLS = 100
BARE = (programs.NOPS, "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector")
END_STATUS = 7


def test_a_program_without_libraries_is_traced_and_let_go(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("bare.c", *BARE))
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            for _ in range(20):
                with target.trace("work") as trace:
                    assert ask(process, "") == "right"
                assert trace.refused == []
                assert (trace.events, trace.lost_no_ring) == (0, CALLS)
        assert target.report is not None
        assert target.report.residue == []
        assert target.report.handler_restored
    assert ask(process, "") == "right"
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == END_STATUS
    process.stdin = None
