# SPDX-License-Identifier: Apache-2.0
"""A tool that can make no guard holds threads itself, and lets all of them go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, only_child, tell, untouched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

TOOL = """
import sys
import textpoke

with textpoke.attach(int(sys.argv[1])) as target:
    print("attached", flush=True)
    for line in sys.stdin:
        with target.trace("work", mode="stop") as trace:
            pass
        print("switched", trace.on.finished, flush=True)
print(*target.report.residue, "left", flush=True)
"""


@pytest.fixture
def tool(
    compile_target: Compile, start_target: Start
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """A target, and a tool without guards that is attached to it."""
    process = start_target(compile_target("forks.c", *programs.PIE))
    preloaded = str(compile_target("no_clone.c", "-shared", "-fPIC"))
    with untouched(process):
        made = subprocess.Popen(
            [sys.executable, "-c", TOOL, str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_PRELOAD": preloaded},
        )
        try:
            assert hear(made) == "attached"
            yield process, made
        finally:
            made.kill()
            made.wait()
            for pipe in (made.stdin, made.stdout):
                assert pipe is not None
                pipe.close()


def end(tool: subprocess.Popen[str]) -> None:
    """It leaves nothing in the target."""
    assert tool.stdin is not None
    tool.stdin.close()
    assert hear(tool) == "left"
    assert tool.wait(20) == 0


def test_it_switches_and_leaves(
    tool: tuple[subprocess.Popen[str], subprocess.Popen[str]],
) -> None:
    process, made = tool
    for _ in range(3):
        assert ask(made, "go") == "switched 1"
    assert ask(process, "work 100") == "0 100"
    end(made)


def test_who_is_in_vfork_for_long_goes_on_when_the_child_has_ended(
    tool: tuple[subprocess.Popen[str], subprocess.Popen[str]],
) -> None:
    """It does not stop in time, but later: then nobody may forget to let it go."""
    process, made = tool
    tell(process, "halt 1")
    child = only_child(process.pid)
    try:
        tell(made, "go")
        time.sleep(0.5)  # five times what it has to stop
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    assert hear(process) == "1 3"
    assert hear(made) == "switched 1"
    assert ask(process, "work 100") == "0 100"
    end(made)
