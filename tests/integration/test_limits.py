# SPDX-License-Identifier: Apache-2.0
"""Programs that leave us no room, or that draw limits around themselves while we are attached
(H21, H24; pitfalls 8, 14, 16)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import programs
import pytest
from observe import agent_task, ask, status, tell, text_equals_files, untouched, wait_until

import textpoke

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Compile, Start

    Program = Callable[..., subprocess.Popen[str]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel lets only root do that")


@pytest.fixture
def program(compile_target: Compile, start_target: Start) -> Program:
    """Return the function that starts tests/targets/limits.c."""
    path = compile_target("limits.c", *programs.PIE)
    return lambda *words: start_target(path, *words)


def runs_on(process: subprocess.Popen[str], lines: int) -> None:
    """It has worked once for every line, does so again, and ends well."""
    assert int(ask(process, "work")) == lines + 1
    assert text_equals_files(process.pid)
    tell(process, "quit")
    assert process.wait(timeout=20) == 0


def left_clean(target: textpoke.Target) -> None:
    assert target.report is not None
    assert target.report.residue == []
    assert target.report.handler_restored


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        ("as", errno.ENOMEM),
        ("fsize", errno.EFBIG),
        ("nofile", errno.EMFILE),
        pytest.param("nproc", errno.EAGAIN, marks=needs_root),
        ("lock", errno.EAGAIN),
    ],
)
def test_a_limit_that_is_too_small_for_us_is_named_and_nothing_is_left(
    program: Program, limit: str, error: int
) -> None:
    process = program(limit)
    with untouched(process):
        with pytest.raises(textpoke.AgentFailed) as caught:
            textpoke.attach(process.pid)
        assert caught.value.errno == error
    assert agent_task(process.pid) is None
    runs_on(process, 0)


def test_no_room_near_a_module_refuses_its_sites_by_name(program: Program) -> None:
    process = program("crowd")
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            with pytest.raises(textpoke.NotPatchable) as caught:
                target.trace("work").start()
            assert "no free memory within 2 GiB" in caught.value.reason
        left_clean(target)
    runs_on(process, 0)


@pytest.mark.parametrize("line", ["as", "fsize", "nofile", "undumpable", "crowd"])
def test_a_limit_that_is_set_while_we_are_attached_does_no_harm(
    program: Program, line: str
) -> None:
    process = program()
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            assert ask(process, line) == "0"
            ask(process, "work")
        with target.trace("work") as again:
            ask(process, "work")
        assert (trace.events, again.events) == (2, 1)
    left_clean(target)
    runs_on(process, 3)


# A user namespace is refused to every process of more than one thread, and the agent is one.
UNSHARED = {"mnt": 0, "pid": 0, "user": errno.EINVAL}


@needs_root
@pytest.mark.parametrize("what", UNSHARED)
def test_a_program_enters_a_namespace_while_we_are_attached(program: Program, what: str) -> None:
    process = program()
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            assert int(ask(process, f"unshare {what}")) == UNSHARED[what]
        with target.trace("work"):
            ask(process, "work")
        assert trace.events == 1
    left_clean(target)
    if what == "user":
        assert ask(process, "unshare user") == "0"  # as without us
        ask(process, "work")
    assert int(ask(process, "work")) == 3 + 2 * (what == "user")


@pytest.mark.parametrize("how", ["errno", "kill"])
def test_a_filter_over_the_programs_threads_leaves_pages_and_no_harm(
    program: Program, how: str
) -> None:
    process = program()
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            assert ask(process, f"filter one {how}") == "0"
            assert ask(process, "thread") == "0"  # its first event is its first call of ours
        assert (trace.events, trace.lost) == (3, 0)
        with target.trace("work") as again:
            assert ask(process, "thread") == "0"
        assert again.events == 2
    assert target.report is not None
    assert len(target.report.residue) == 1
    assert "seccomp filter" in target.report.residue[0]
    assert agent_task(process.pid) is None
    runs_on(process, 5)


@pytest.mark.parametrize("how", ["errno", "kill"])
def test_a_filter_over_our_thread_too_ends_our_work_and_not_the_program(
    program: Program, how: str
) -> None:
    process = program()
    target = textpoke.attach(process.pid)
    trace = target.trace("work")
    trace.start()
    assert ask(process, f"filter all {how}") == "0"
    with pytest.raises(textpoke.UnsupportedTarget) as caught:
        trace.stop()
    assert caught.value.reason == "seccomp"
    with pytest.raises(textpoke.UnsupportedTarget):
        target.detach()
    watches = int(status_of(process.pid, "voluntary_ctxt_switches"))
    wait_until(
        lambda: int(status_of(process.pid, "voluntary_ctxt_switches")) > watches + 2,
        "the agent has looked around",
    )
    assert ask(process, "thread") == "0"  # the site is still patched, and well
    assert int(ask(process, "work")) == 4
    tell(process, "quit")
    assert process.wait(timeout=20) == 0


def status_of(pid: int, field: str) -> str:
    """A field of the agent's own status."""
    agent = agent_task(pid)
    assert agent is not None
    return status(pid, agent)[field]
