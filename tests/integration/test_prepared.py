# SPDX-License-Identifier: Apache-2.0
"""A batch in stop mode is prepared before anybody is held; what was prepared is never stale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, only_child, tell, untouched

import textpoke
from textpoke import Mode
from textpoke._native import lib
from textpoke.engine import run_request
from textpoke.poke import Poke, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

NOP5 = bytes.fromhex("0f 1f 44 00 00")
OTHER_NOP5 = bytes.fromhex("0f 1f 44 00 08")
PREPARE = lib.TP_BATCH_PREPARE | Mode.STOP.number << lib.TP_BATCH_MODE_SHIFT

DIES = """
import os, sys, signal
import textpoke
sys.path.insert(0, sys.argv[2])
from test_prepared import PREPARE, batch_of, post
agent = textpoke.attach(int(sys.argv[1])).agent
assert post(agent, batch_of(int(sys.argv[3])), PREPARE) == 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def batch_of(address: int) -> Request:
    """One site of pokes.c."""
    return Request.of([Poke(address, NOP5, OTHER_NOP5)])


def post(agent: textpoke.Agent, request: Request, flags: int) -> int:
    """Give the agent a batch as the native side does, threads running."""
    assert agent.shared is not None
    start = lib.TP_PAGE_BYTES
    agent.shared[start : start + len(request.data)] = request.data
    return agent.command(lib.TP_CMD_BATCH, len(request.pokes), flags)


@pytest.fixture
def program(
    compile_target: Compile, start_target: Start
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, at rest, and the address of its first site."""
    process = start_target(compile_target("pokes.c", *programs.PIE))
    address = int(ask(process, "where").split()[0])
    with untouched(process):
        yield process, address


def test_it_is_written_by_the_next_command(program: tuple[subprocess.Popen[str], int]) -> None:
    process, address = program
    with textpoke.attach(process.pid) as target:
        agent = target.agent
        assert post(agent, batch_of(address), PREPARE) == 0
        assert agent.read(address, 5) == NOP5
        assert agent.command(lib.TP_CMD_WRITE) == 0
        assert agent.read(address, 5) == OTHER_NOP5
        assert agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND  # once
    assert target.report is not None
    assert target.report.residue == []


def test_any_other_command_forgets_it(program: tuple[subprocess.Popen[str], int]) -> None:
    process, address = program
    with textpoke.attach(process.pid) as target:
        agent = target.agent
        assert post(agent, batch_of(address), PREPARE) == 0
        agent.keep(on=False)
        assert agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND
        assert agent.read(address, 5) == NOP5
        run_request(agent, batch_of(address), mode=Mode.STOP)
        assert agent.read(address, 5) == OTHER_NOP5
    assert target.report is not None
    assert target.report.residue == []


def test_what_differs_is_refused_before_anybody_is_held(
    compile_target: Compile, start_target: Start
) -> None:
    """A parent in vfork cannot be held, and need not be."""
    process = start_target(compile_target("forks.c", *programs.PIE))
    with untouched(process), textpoke.attach(process.pid) as target:
        (site,) = target.sites("work")
        wrong = Request.of([Poke(site.address, OTHER_NOP5, NOP5)])
        tell(process, "halt 1")
        child = only_child(process.pid)
        try:
            with pytest.raises(textpoke.BytesDiffer):
                run_request(target.agent, wrong, mode=Mode.STOP)
        finally:
            os.kill(child, signal.SIGTERM)
        assert hear(process) == "1 3"
        assert target.agent.read(site.address, site.length) == site.old


def test_a_tool_that_dies_behind_it_leaves_nothing(
    program: tuple[subprocess.Popen[str], int],
) -> None:
    process, address = program
    words = [str(process.pid), os.path.dirname(__file__), str(address)]
    died = subprocess.run([sys.executable, "-c", DIES, *words], timeout=60, check=False)
    assert died.returncode == -9
    with textpoke.attach(process.pid) as target:
        agent = target.agent
        assert agent.read(address, 5) == NOP5
        outcome = run_request(agent, batch_of(address), mode=Mode.STOP)
        assert (outcome.finished, outcome.hold_ns > 0) == (1, True)
        assert agent.read(address, 5) == OTHER_NOP5
    assert target.report is not None
    assert target.report.residue == []
