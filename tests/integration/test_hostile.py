# SPDX-License-Identifier: Apache-2.0
"""A target that scribbles over all it shares with us: the tool says one line, harms nobody."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import Result, ask, recording, textpoke, untouched

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start

RINGS, HEADER, COMMANDS, IMAGE = 1, 2, 4, 8
BORDERS, ONES, ZEROS, BITS = range(4)
CODES = (0, 1, 3)
PATIENCE_S = 60


@pytest.fixture
def hostile(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("hostile.c", *programs.PIE))


def ended_well(result: Result) -> None:
    """Assert an honest end: an exit code of ours, and for a failure one line that says why."""
    assert "Traceback" not in result.err + result.out, result
    assert result.code in CODES, result
    errors = [line for line in result.err.splitlines() if line.startswith("textpoke: error: ")]
    assert len(errors) == (result.code != 0 and not result.out), result


@pytest.mark.parametrize(
    ("where", "how", "tracer"),
    [
        (RINGS, BORDERS, "function"),
        (RINGS, ONES, "function"),
        (RINGS, ONES, "function_graph"),
        (RINGS, ONES, "profile"),
        (RINGS, BITS, "profile"),
        (HEADER, BITS, "function"),
        (COMMANDS, BORDERS, "function"),
        (COMMANDS, ZEROS, "function"),
        (IMAGE, BORDERS, "function"),
        (IMAGE, BITS, "function"),
        (RINGS | HEADER | COMMANDS | IMAGE, BORDERS, "function"),
    ],
)
def test_whatever_a_target_writes_the_tool_ends_with_one_line(
    hostile: subprocess.Popen[str],
    compile_target: Compile,
    start_target: Start,
    tmp_path: Path,
    where: int,
    how: int,
    tracer: str,
) -> None:
    """Record, status and detach while the target lies; a bystander stays as it was."""
    bystander = start_target(compile_target("hostile.c", *programs.PIE))
    output = tmp_path / "x.tptrace"
    words = ("-p", hostile.pid, "-i", "hostile*!*", "-t", tracer, "-o", output, "-d", "0.4s")
    with untouched(bystander):
        started = time.monotonic()
        with recording(*words) as record:
            assert ask(hostile, f"start {where} {how}") in ("started", "no agent")
            ended_well(textpoke("status", "-p", hostile.pid))
            out, _ = record.process.communicate(timeout=PATIENCE_S)
            ended_well(Result(record.process.returncode, out, record.errors.read_text()))
        ended_well(textpoke("detach", "-p", hostile.pid))
        assert time.monotonic() - started < PATIENCE_S
    if output.exists():
        report = textpoke("report", "--json", output)
        assert report.code == 0, report
        assert json.loads(report.out)["lost"] >= 0
