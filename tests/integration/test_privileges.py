# SPDX-License-Identifier: Apache-2.0
"""The agent is no more than its program is, and lives where that can live (8, 14, 15)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from observe import POWERLESS, agent_task, ask, recording, status, untouched, wait_until
from observe import textpoke as cli

import textpoke

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Compile, Start

    Program = Callable[..., subprocess.Popen[str]]

NOBODY = 65534
FOLLOWING = 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID
CAPABILITIES = ("CapInh", "CapPrm", "CapEff")
IDS = ("Uid", "Gid", "Groups")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")


@pytest.fixture
def program(compile_target: Compile, start_target: Start) -> Program:
    """Return the function that starts tests/targets/privileges.c."""
    path = compile_target("privileges.c", *programs.PIE)
    return lambda *words: start_target(path, *words)


def follows(pid: int) -> bool:
    """Tell whether the agent has the program's ids, and no power at all."""
    agent = agent_task(pid)
    assert agent is not None
    ours, theirs = status(pid, agent), status(pid)
    return all(ours[name] == theirs[name] for name in IDS) and not any(
        int(ours[name], 16) for name in CAPABILITIES
    )


def records_and_leaves(process: subprocess.Popen[str]) -> None:
    """Attach, count three calls, let go without a trace."""
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            with target.trace("work") as trace:
                for _ in range(3):
                    ask(process, "work")
            assert trace.events == 3
        assert target.report is not None
        assert target.report.residue == []
        assert target.report.text.differing == []


@needs_root
def test_the_agent_of_root_keeps_only_what_following_needs(program: Program) -> None:
    process = program()
    with textpoke.attach(process.pid) as target:
        fields = status(process.pid, target.agent.tid)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == FOLLOWING


@needs_root
def test_the_agent_follows_a_program_that_drops_root(program: Program) -> None:
    process = program()
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            assert ask(process, "drop") == "0"
            assert f"{NOBODY}" in status(process.pid)["Uid"]
            wait_until(lambda: follows(process.pid), "the agent has followed")
            ask(process, "work")
        assert trace.events == 2
        with target.trace("work"):
            ask(process, "work")
    assert target.report is not None
    assert target.report.residue == []


@needs_root
def test_the_agent_follows_a_command_that_drops_root(
    compile_target: Compile, tmp_path: Path
) -> None:
    path = compile_target("privileges.c", *programs.PIE)
    output = tmp_path / "x.tptrace"
    with recording("-o", output, "--", path, stdin="drop\n") as tool:
        [child] = map(int, children(tool.process.pid))
        wait_until(lambda: f"{NOBODY}" in status(child)["Uid"], "it has dropped root")
        wait_until(lambda: follows(child), "the agent has followed")
        tool.tell("work")
        tool.tell("quit")
        result = tool.end()
    assert result.code == 0
    assert "3 events, 0 lost" in result.err


def children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return file.read().split()


@needs_root
def test_following_leaves_the_program_as_dumpable_as_it_wants_to_be(program: Program) -> None:
    process = program()
    with textpoke.attach(process.pid):
        ask(process, "drop")
        assert ask(process, "dumpable") == "0"
        wait_until(lambda: follows(process.pid), "the agent has followed")
        assert ask(process, "is dumpable") == "1"


@needs_root
def test_a_program_that_is_not_dumpable(program: Program) -> None:
    records_and_leaves(program("undumpable"))


@needs_root
def test_a_program_of_another_user(program: Program) -> None:
    records_and_leaves(program("nobody"))


@needs_root
def test_a_program_in_a_root_directory_without_proc(program: Program, tmp_path: Path) -> None:
    process = program(f"chroot={tmp_path}")
    with textpoke.attach(process.pid) as target:
        with target.trace("work") as trace:
            ask(process, "work")
        assert trace.events == 1
    assert target.report is not None
    assert target.report.residue == []


def test_no_power_is_needed_for_a_program_of_ones_own(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    program = compile_target("privileges.c", *programs.PIE)
    process = start_target(Path("setpriv"), *POWERLESS[1:], str(program))
    with untouched(process):
        words = ("-p", process.pid, "-o", tmp_path / "x.tptrace", "-d", "100ms", "--json")
        result = cli("record", *words, prefix=POWERLESS)
    assert result.code == 0, result
    assert json.loads(result.out)["detach"]["clean"]


def has_mdwe() -> bool:
    """Tell whether the kernel knows PR_SET_MDWE (Linux 6.3)."""
    return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 3)


@pytest.mark.skipif(not has_mdwe(), reason="PR_SET_MDWE came with Linux 6.3")
def test_a_program_that_forbids_itself_new_code(program: Program) -> None:
    records_and_leaves(program("mdwe"))


@needs_root
def test_a_program_in_a_pid_namespace_of_its_own(
    compile_target: Compile, start_target: Start
) -> None:
    path = compile_target("privileges.c", *programs.PIE)
    outer = start_target(Path("unshare"), "--pid", "--fork", "--kill-child", str(path))
    [pid] = map(int, children(outer.pid))
    with textpoke.attach(pid) as target:
        with target.trace("work") as trace:
            ask(outer, "work")
        assert trace.events == 1
    assert target.report is not None
    assert target.report.residue == []
    assert agent_task(pid) is None
    assert ask(outer, "work").isdecimal()
