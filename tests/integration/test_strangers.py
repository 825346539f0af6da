# SPDX-License-Identifier: Apache-2.0
"""Others who write to the same text, or debug the same program, before and after us (H7, H8)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from observe import agent_task, ask, text_equals_files, untouched
from observe import textpoke as cli

import textpoke

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

INT3, NOP, CALL = b"\xcc", b"\x90", b"\xe8"


@pytest.fixture
def traps(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    """A program that calls `work` for every line it reads, and owns SIGTRAP when told so."""
    return start_target(compile_target("traps.c", *programs.PIE))


def write(pid: int, address: int, byte: bytes) -> bytes:
    """Do as debuggers do; returns what was there."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        old = os.pread(memory.fileno(), 1, address)
        assert os.pwrite(memory.fileno(), byte, address) == 1
    return old


def address_of_work(target: textpoke.Target) -> int:
    [site] = target.sites("work")
    return site.address


def test_a_strangers_breakpoint_refuses_the_batch_and_survives_us(
    traps: subprocess.Popen[str],
) -> None:
    with textpoke.attach(traps.pid) as target:
        work = address_of_work(target)
    assert write(traps.pid, work, INT3) == NOP
    with textpoke.attach(traps.pid) as target:
        with pytest.raises(textpoke.BytesDiffer) as caught:
            target.trace().start()
        assert caught.value.address == work
        assert "debugger" in caught.value.owner
        assert "cc 90 90 90 90" in str(caught.value)
    assert target.report is not None
    assert target.report.residue == []
    assert write(traps.pid, work, NOP) == INT3
    assert ask(traps, "count") == "0"
    assert text_equals_files(traps.pid)


def test_a_strangers_breakpoint_over_our_nop_survives_our_detach(
    traps: subprocess.Popen[str],
) -> None:
    with textpoke.attach(traps.pid) as target:
        work = address_of_work(target)
        with target.trace():
            ask(traps, "count")
        assert write(traps.pid, work, INT3) == NOP
    assert target.report is not None
    assert target.report.handler_restored
    assert write(traps.pid, work, NOP) == INT3
    assert ask(traps, "count") == "0"
    assert text_equals_files(traps.pid)


def test_what_a_stranger_may_write_back_keeps_its_target(traps: subprocess.Popen[str]) -> None:
    """A debugger saved our CALL under its int3; the code must be there when it puts it back."""
    with untouched(traps):
        with textpoke.attach(traps.pid) as target:
            trace = target.trace("work")
            trace.start()
            work = address_of_work(target)
            assert write(traps.pid, work, INT3) == CALL
            trace.stop()
            assert trace.left_alone == 1
        assert target.report is not None
        assert len(target.report.residue) == 2
        assert "somebody's int3 over a CALL of ours" in target.report.residue[1]
        assert agent_task(traps.pid) is not None
        assert write(traps.pid, work, CALL) == INT3
        for _ in range(3):
            assert ask(traps, "count") == "0"
        result = cli("detach", "-p", traps.pid)
        assert result.code == 0, result
        assert "nothing is left" in result.out
        assert ask(traps, "count") == "0"


def test_no_batch_is_run_under_a_debugger(
    traps: subprocess.Popen[str], compile_target: Compile, start_target: Start
) -> None:
    with untouched(traps):
        target = textpoke.attach(traps.pid)
        trace = target.trace()
        trace.start()
        debugger = start_target(compile_target("debugger.c"), str(traps.pid))
        with pytest.raises(textpoke.UnsupportedTarget) as caught:
            trace.stop()
        assert caught.value.reason == "debugger"
        with pytest.raises(textpoke.UnsupportedTarget):
            target.detach()
        assert ask(traps, "count") == "0"  # still patched, and well
        debugger.kill()
        debugger.wait()
        result = cli("detach", "-p", traps.pid)
        assert result.code == 0, result
        assert "nothing is left" in result.out
        assert ask(traps, "count") == "0"
