# SPDX-License-Identifier: Apache-2.0
"""A thread that sleeps in a system call never learns that it was held (pitfalls 7)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear, in_call, untouched, wait_until

import textpoke

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

RESTART_SYSCALL = 219
# name: number, what the call returns when it is woken, its errno, handlers run
CALLS = {
    "epoll_wait": (232, 1, 0, 0),
    "poll": (7, 1, 0, 0),
    "ppoll": (271, 1, 0, 0),
    "select": (270, 1, 0, 0),  # libc calls pselect6
    "read": (0, 1, 0, 0),
    "recv": (45, 1, 0, 0),
    "recvmsg": (47, 1, 0, 0),
    "semtimedop": (220, 0, 0, 0),
    "msgrcv": (70, 1, 0, 0),
    "sigtimedwait": (128, 10, 0, 0),
    "futex": (202, 0, 0, 0),
    "sigsuspend": (130, -1, errno.EINTR, 1),
    "pause": (34, -1, errno.EINTR, 1),
    "wait4": (61, 1, 0, 0),
    "nanosleep": (230, 0, 0, 0),
}


def wake(process: subprocess.Popen[str], name: str) -> str:
    """Wake the sleeper, which must have fallen asleep again, and return what it says."""
    if name == "nanosleep":
        return hear(process)
    sleeps_again(process, name)
    return ask(process, "wake up")


def sleeps_again(process: subprocess.Popen[str], name: str) -> None:
    """Wait until the sleeper is back in its call, whose mask of signals may be another one."""
    numbers = (CALLS[name][0], RESTART_SYSCALL)
    wait_until(lambda: any(in_call(process.pid, n) for n in numbers), "it sleeps again")


@pytest.mark.parametrize("name", CALLS)
def test_attach_and_detach_interrupt_no_call(
    compile_target: Compile, start_target: Start, name: str
) -> None:
    number, result, error, signals = CALLS[name]
    process = start_target(compile_target("waiting.c", *programs.PIE), name)
    wait_until(lambda: in_call(process.pid, number), f"it sits in {name}")
    with untouched(process):
        for _ in range(2):
            with textpoke.attach(process.pid) as target, target.trace() as trace:
                assert {site.function for site in trace.chosen} > {"wait_poll", "wait_read"}
            assert target.report is not None
            assert target.report.residue == []
        sleeps_again(process, name)
    last = wake(process, name)
    assert [int(word) for word in last.split()] == [result, error, 1, signals]
    assert process.wait() == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_killed_tools_successor_interrupts_no_call(
    compile_target: Compile, start_target: Start, name: str
) -> None:
    """Repair and detach by a second connection hold the same thread once more."""
    number, result, error, signals = CALLS[name]
    process = start_target(compile_target("waiting.c", *programs.PIE), name)
    wait_until(lambda: in_call(process.pid, number), f"it sits in {name}")
    first = textpoke.attach(process.pid)
    first.trace().start()
    first.agent.close()  # as the kernel does when the tool is killed
    with textpoke.attach(process.pid) as second:
        assert second.repaired > 0
    assert second.report is not None
    assert second.report.residue == []
    last = wake(process, name)
    assert [int(word) for word in last.split()] == [result, error, 1, signals]
