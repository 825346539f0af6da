# SPDX-License-Identifier: Apache-2.0
"""A batch in stop mode is prepared before anybody is held; what was prepared is never stale."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, only_child, tell, untouched, wait_until

import textpoke
from textpoke import Mode
from textpoke._native import lib
from textpoke.engine import run_request
from textpoke.poke import Poke, Request
from textpoke.proc import read_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

NOP5 = bytes.fromhex("0f 1f 44 00 00")
OTHER_NOP5 = bytes.fromhex("0f 1f 44 00 08")
CLC = bytes.fromhex("f8 f8 f8 f8 f8")
STEP = 32
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


def post(agent: textpoke.Agent, request: Request, flags: int, timeout_s: float = 10.0) -> int:
    """Give the agent a batch as the native side does, threads running."""
    assert agent.shared is not None
    start = lib.TP_PAGE_BYTES
    agent.shared[start : start + len(request.data)] = request.data
    return agent.command(lib.TP_CMD_BATCH, len(request.pokes), flags, timeout_s=timeout_s)


@contextmanager
def attached(pid: int) -> Iterator[textpoke.Target]:
    """Attach; the detach leaves nothing."""
    with textpoke.attach(pid) as target:
        yield target
    assert target.report is not None
    assert target.report.residue == []


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
    with attached(process.pid) as target:
        agent = target.agent
        assert post(agent, batch_of(address), PREPARE) == 0
        assert agent.read(address, 5) == NOP5
        assert agent.command(lib.TP_CMD_WRITE) == 0
        assert agent.read(address, 5) == OTHER_NOP5
        assert agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND  # once


def test_any_other_command_forgets_it(program: tuple[subprocess.Popen[str], int]) -> None:
    process, address = program
    with attached(process.pid) as target:
        agent = target.agent
        assert post(agent, batch_of(address), PREPARE) == 0
        agent.keep(on=False)
        assert agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND
        assert agent.read(address, 5) == NOP5
        run_request(agent, batch_of(address), mode=Mode.STOP)
        assert agent.read(address, 5) == OTHER_NOP5


def test_what_changes_in_between_is_refused_and_nothing_is_written(
    program: tuple[subprocess.Popen[str], int],
) -> None:
    """The table of known sites learns what is there when it is written, not what was there."""
    process, address = program
    with attached(process.pid) as target:
        agent = target.agent
        second = Poke(address + STEP, NOP5, OTHER_NOP5)
        request = Request.of([Poke(address, NOP5, OTHER_NOP5), second])
        assert post(agent, request, PREPARE) == 0
        os.pwrite(agent.mem_fd, CLC, second.address)
        assert agent.command(lib.TP_CMD_WRITE) == -errno.EINVAL
        assert agent.read(address, 5) == NOP5
        assert agent.read(second.address, 5) == CLC
        assert agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND
        os.pwrite(agent.mem_fd, NOP5, second.address)
        run_request(agent, request, mode=Mode.STOP)
        assert agent.read(second.address, 5) == OTHER_NOP5


def test_what_cannot_be_left_out_is_not_written(
    program: tuple[subprocess.Popen[str], int],
) -> None:
    process, address = program
    with attached(process.pid) as target:
        agent = target.agent
        assert post(agent, batch_of(address), PREPARE) == 0
        assert agent.command(lib.TP_CMD_WRITE, 1) == -lib.TP_ECOMMAND  # which one?
        assert agent.read(address, 5) == NOP5


@pytest.mark.parametrize("mode", [Mode.INT3, Mode.DIRECT])
def test_other_modes_are_not_prepared(
    mode: Mode, program: tuple[subprocess.Popen[str], int]
) -> None:
    process, address = program
    with attached(process.pid) as target:
        flags = lib.TP_BATCH_PREPARE | mode.number << lib.TP_BATCH_MODE_SHIFT
        assert post(target.agent, batch_of(address), flags) == -lib.TP_EMODE
        assert target.agent.command(lib.TP_CMD_WRITE) == -lib.TP_ECOMMAND


@pytest.mark.parametrize("prepared", [True, False])
def test_a_process_that_is_stopped_writes_nothing_when_it_goes_on(
    prepared: bool, program: tuple[subprocess.Popen[str], int]
) -> None:
    """Whoever waited for it has given up, and holds nobody any more."""
    process, address = program
    with attached(process.pid) as target:
        agent = target.agent
        if prepared:
            assert post(agent, batch_of(address), PREPARE) == 0
            write = partial(agent.command, lib.TP_CMD_WRITE, timeout_s=0.5)
        else:
            write = partial(post, agent, batch_of(address), PREPARE & ~lib.TP_BATCH_PREPARE, 0.5)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: all(t.state == "T" for t in read_threads(process.pid)), "it is stopped")
        try:
            why = f"0.5 s: .*; pid {process.pid} is stopped, let it go on: kill -CONT {process.pid}"
            with pytest.raises(textpoke.AgentTimeout, match=why):
                write()
        finally:
            process.send_signal(signal.SIGCONT)
        assert agent.wire is not None
        wire = agent.wire
        wait_until(lambda: wire.done_seq == wire.command_seq, "the agent has answered")
        assert wire.result == -lib.TP_EHOLD
        assert agent.read(address, 5) == NOP5
        run_request(agent, batch_of(address), mode=Mode.STOP)
        assert agent.read(address, 5) == OTHER_NOP5


def test_guards_beside_records_that_are_there_already(
    program: tuple[subprocess.Popen[str], int],
) -> None:
    """These are not in the table of known sites."""
    process, address = program
    with attached(process.pid) as target:
        there = Poke(address, None, None)
        request = Request.of([there, Poke(address + STEP, NOP5, OTHER_NOP5)])
        flags = lib.TP_BATCH_GUARDS | Mode.STOP.number << lib.TP_BATCH_MODE_SHIFT
        assert post(target.agent, request, flags) == 0
        assert target.agent.read(address + STEP, 5) == OTHER_NOP5


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
    with attached(process.pid) as target:
        agent = target.agent
        assert agent.read(address, 5) == NOP5
        outcome = run_request(agent, batch_of(address), mode=Mode.STOP)
        assert (outcome.finished, outcome.hold_ns > 0) == (1, True)
        assert agent.read(address, 5) == OTHER_NOP5
