# SPDX-License-Identifier: Apache-2.0
"""A program with io_uring's workers among its threads: they block every signal, and are no threads
of the program's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, tasks, tell, text_equals_files

import textpoke

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

ENTRIES = 8


def start(compile_target: Compile, start_target: Start, how: str) -> subprocess.Popen[str]:
    program = compile_target("io_uring.c", *programs.PIE)
    try:
        return start_target(program, how)
    except AssertionError as exc:
        if "no io_uring" in str(exc):
            pytest.skip(f"this kernel gives us no io_uring: {exc}")
        raise


def workers(pid: int) -> list[str]:
    """Names of the kernel's threads in the program's task list."""
    names = []
    for tid in tasks(pid):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip())
    return [name for name in names if name.startswith("iou-")]


@pytest.mark.parametrize("how", ["enter", "poll"])
def test_a_program_with_kernel_workers_is_traced_and_let_go(
    compile_target: Compile, start_target: Start, how: str
) -> None:
    process = start(compile_target, start_target, how)
    assert workers(process.pid)
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            assert ask(process, "read 100") == "0"
        assert (trace.events, trace.lost) == (100 * ENTRIES, 0)
        tell(process, "read 4000")
        for _ in range(50):
            with target.trace():
                pass
        assert hear(process) == "0"
        assert workers(process.pid)
    assert target.report is not None
    assert target.report.residue == []
    assert target.report.handler_restored
    assert text_equals_files(process.pid)
    assert ask(process, "read 1") == "0"
    tell(process, "quit")
    assert process.wait(timeout=20) == 0
