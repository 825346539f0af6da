# SPDX-License-Identifier: Apache-2.0
"""Direct and stop mode: programs in which an int3 would be deadly are traced all the same."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, doctor_line, hear_until_end, status, tell, textpoke, untouched

import textpoke as api
from textpoke import Mode, modes

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

BUILDS = ("pie", "non-pie", "nop5", "nop10", "static", "larger-n")
WAYS = {"blocked": "--block-signal=TRAP", "ignored": "--ignore-signal=TRAP"}
PHASE = "phase 200 2"
AMD = modes.direct_processor()
ROUNDS = 20


def started(start_target: Start, *words: object) -> subprocess.Popen[str]:
    """Start counter.c; its libc then has the stacks that it keeps."""
    program, *arguments = map(str, words)
    process = start_target(Path(program), *arguments)
    tell(process, "phase 1 4")
    hear_until_end(process)
    return process


def start_so(way: str, start_target: Start, program: Path) -> subprocess.Popen[str]:
    """Start a program all of whose threads block SIGTRAP, or that ignores it."""
    return started(start_target, shutil.which("env"), WAYS[way], program)


def traced(target: api.Target, process: subprocess.Popen[str], mode: str = "auto") -> api.Trace:
    """Trace its functions during one phase of work, and count as the program does."""
    with target.trace(sorted(programs.FUNCTIONS), mode=mode) as trace:
        tell(process, PHASE)
        rows = hear_until_end(process)
    assert trace.lost == 0
    assert trace.events == sum(sum(row[1:]) for row in rows)
    return trace


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", BUILDS)
def test_where_no_trap_may_come_tracing_works(
    build: str, way: str, compile_target: Compile, start_target: Start
) -> None:
    process = start_so(way, start_target, compile_target("counter.c", *programs.BUILDS[build]))
    with untouched(process):
        with api.attach(process.pid) as target:
            for _ in range(3):
                trace = traced(target, process)
                for outcome in (trace.on, trace.off):
                    assert outcome is not None
                    assert outcome.traps == outcome.late_traps == 0
                    assert {choice.mode for choice in outcome.choices} <= {Mode.DIRECT, Mode.STOP}
                    assert "SIGTRAP" in outcome.choices[0].why
                    assert sum(len(choice.indexes) for choice in outcome.choices) == outcome.sites
        assert target.report is not None
        assert target.report.residue == []


@pytest.mark.parametrize("mode", ["int3", "direct", "stop"])
@pytest.mark.parametrize("build", BUILDS)
def test_every_mode_on_a_program_at_work(
    build: str, mode: str, compile_target: Compile, start_target: Start
) -> None:
    process = started(start_target, compile_target("counter.c", *programs.BUILDS[build]))
    with untouched(process), api.attach(process.pid) as target:
        if mode == "direct" and (build in {"non-pie", "nop5", "nop10", "static"} or not AMD):
            with pytest.raises((api.BatchRefused, api.UnsupportedTarget)):
                target.trace(mode=mode).start()
            return
        trace = traced(target, process, mode)
        assert trace.on is not None
        assert [choice.mode for choice in trace.on.choices] == [Mode(mode)]
        assert trace.on.mode_of(0).why == "asked for"
        assert (trace.on.hold_ns > 0) == (mode == "stop")
        assert trace.on.syncs == {"int3": trace.on.syncs, "direct": 1, "stop": 1}[mode]
        tell(process, "phase 20000 4")
        for _ in range(ROUNDS):  # under load, with threads that come and go
            with target.trace(mode=mode):
                pass
        hear_until_end(process)


def test_stop_mode_replaces_whole_instructions_under_running_threads(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("pokes.c", *programs.PIE))
    old, new, *_ = (int(word) for word in ask(process, "where").split())
    nop = bytes.fromhex("0f 1f 44 00 00")
    ask(process, "hot 2")  # stacks that libc keeps
    tell(process, "stop")
    hear_until_end(process)
    with untouched(process), api.attach(process.pid) as target:
        ask(process, "hot 2")
        for turn in range(2 * ROUNDS):
            with target.batch(mode="stop") as batch:
                for i in range(8):
                    jump = b"\xe9" + struct.pack("<i", new - old - 5)
                    pair = (jump, nop) if turn % 2 == 0 else (nop, jump)
                    batch.queue(old + 32 * i, *pair)
        tell(process, "stop")
        rows = hear_until_end(process)
    assert all(row[2] == row[3] == 0 for row in rows), "nobody trapped, nothing was torn"
    assert all(row[0] > 0 and row[1] > 0 for row in rows)


@pytest.mark.parametrize(
    "name",
    ["libc.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0", "ld-musl-x86_64.so.1", "libc-2.31.so"],
)
def test_a_runtime_that_masks_signals_never_holds_an_int3(
    name: str, compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    library = tmp_path / name
    library.write_bytes(compile_target("counter.c", *programs.OBJECT).read_bytes())
    process = started(start_target, compile_target("counter.c", *programs.OBJECT_USER), library)
    with untouched(process), api.attach(process.pid) as target:
        trace = traced(target, process)
    assert trace.on is not None
    [choice] = trace.on.choices
    assert choice.mode is Mode.STOP  # it was opened, and may be closed
    assert "may close" in choice.why


def test_an_ignored_sigtrap_stays_ignored(compile_target: Compile, start_target: Start) -> None:
    process = start_so("ignored", start_target, compile_target("counter.c", *programs.PIE))
    with untouched(process), api.attach(process.pid) as target:
        traced(target, process)
        assert int(status(process.pid)["SigIgn"], 16) & 0x10
        assert not int(status(process.pid)["SigCgt"], 16) & 0x10


def test_the_tool_says_which_mode_and_why(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_so("blocked", start_target, compile_target("counter.c", *programs.PIE))
    with untouched(process):
        doctor = textpoke("doctor", "-p", process.pid)
        output = tmp_path / "x.tptrace"
        result = textpoke("record", "-p", process.pid, "-d", "100ms", "-o", output)
    assert doctor.code == 0
    assert "direct or stop mode" in doctor_line(doctor.out, "SIGTRAP blocked")
    assert result.code == 0
    assert f"mode for 3 sites: thread {process.pid} (" in result.err
    assert "blocks SIGTRAP" in result.err


def test_a_process_is_stopped_by_its_helper() -> None:
    with api.this_process() as target:
        outcome = target.batch(mode="stop").commit()
    assert [choice.mode for choice in outcome.choices] == [Mode.STOP]
    assert outcome.hold_ns > 0
    assert target.report is not None
    assert target.report.residue == []
