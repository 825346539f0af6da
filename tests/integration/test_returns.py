# SPDX-License-Identifier: Apache-2.0
"""Redirected returns: no way to leave a function breaks a program, nor what walks its stack."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import agent_task, ask, maps, text_equals_files, textpoke, untouched

import textpoke as api
from textpoke.capture import Capture

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Compile, Start

CPP = ("-std=c++20", str(programs.TARGETS / "returns.S"))
BUILDS = {
    "O2": programs.PIE,
    "O0": (*programs.PIE, "-O0"),
    "static-libgcc": (*programs.PIE, "-static-libgcc"),
    "static": (programs.NOPS, "-static"),
}
PARTS = {
    "exceptions": 20,
    "passed": 20,
    "jumps": 500,
    "handlers": 500,
    "switched": 20,
    "contexts": 50,
    "moved": 10,
    "generated": 50,
    "ended": 5,
    "processes": 5,
    "deep": 1,
    "values": 50,
    "walked": 50,
    "ticked": 1,
}
# A part of a program can run in several threads at a time, but for these.
STORMS = tuple(part for part in PARTS if part not in {"contexts", "deep"})
TRACERS = ("function_graph", "profile")
LIBC = (
    "*",
    "libc.so*!mem*",
    "libc.so*!str*",
    "libc.so*!*printf*",
    "libc.so*!malloc",
    "libc.so*!free",
)
SWITCHES = 24


@pytest.fixture
def start(compile_target: Compile, start_target: Start):
    def started(build: str = "O2") -> subprocess.Popen[str]:
        process = start_target(compile_target("returns.cc", *BUILDS[build], *CPP))
        ask(process, "run ended 1")  # stacks that libc keeps, libraries that it loads
        return process

    return started


@pytest.mark.parametrize(
    ("build", "tracer"), [("O2", "profile"), *((build, "function_graph") for build in BUILDS)]
)
def test_every_way_out_of_a_function_ends_right(start, build: str, tracer: str) -> None:
    process = start(build)
    for part, rounds in PARTS.items():
        with api.attach(process.pid) as target, target.trace(tracer=tracer) as trace:
            assert ask(process, f"run {part} {rounds}") == "0", part
            trace.drain()
        assert target.report is not None
        assert target.report.residue == [], part
        assert text_equals_files(process.pid)
    ask(process, "run exceptions 1")


def let_go(process: subprocess.Popen[str], target: api.Target) -> None:
    """What could not be removed while the program stormed can be when it does not."""
    assert target.report is not None
    for line in target.report.residue:
        assert "code" in line or "first bytes" in line, line
    if target.report.residue:
        with api.attach(process.pid) as again:
            pass
        assert again.report is not None
        assert again.report.residue == []
    assert text_equals_files(process.pid)
    assert agent_task(process.pid) is None


@pytest.mark.parametrize("part", STORMS)
def test_tracers_are_switched_under_load(start, part: str) -> None:
    process = start()
    with api.attach(process.pid) as target, target.trace(tracer="function_graph") as trace:
        ask(process, f"storm {part} 3")
        for i in range(SWITCHES):
            trace.tracer = ("nop", "profile", "function_graph", "function")[i % 4]
            trace.drain()
            time.sleep(0.01)
    # The detach came in the middle of it.
    rounds, wrong = map(int, ask(process, "calm").split())
    assert rounds > 0
    assert wrong == 0
    let_go(process, target)
    assert ask(process, f"run {part} 1") == "0"


@pytest.mark.parametrize("tracer", TRACERS)
def test_functions_of_libc_too(start, tracer: str) -> None:
    process = start()
    parts = ("exceptions", "jumps", "switched", "moved", "values", "walked", "ended")
    with (
        api.attach(process.pid) as target,
        target.trace(LIBC, tracer=tracer, everything=True) as trace,
    ):
        for part in parts:
            assert ask(process, f"run {part} 5") == "0", part
            trace.drain()
    let_go(process, target)


@pytest.mark.parametrize("walks", [0, 1])
def test_signals_at_a_high_rate(start, walks: int) -> None:
    process = start()
    with api.attach(process.pid) as target, target.trace(tracer="function_graph") as trace:
        ask(process, f"tick 100 {walks}")
        for part in ("ticked", "exceptions", "jumps", "values", "switched", "ticked"):
            assert ask(process, f"run {part} 5") == "0", part
            trace.drain()
        signals = int(ask(process, "tick 0 0").split()[0])
    assert signals > 10
    let_go(process, target)


def test_a_scheduler_in_a_signal_handler(start) -> None:
    process = start()
    with api.attach(process.pid) as target, target.trace(tracer="function_graph"):
        assert ask(process, "run preempted 1") == "0"
    # Stacks that were given up in the middle of a probe look like stacks that wait.
    assert target.report is not None
    assert ask(process, "run exceptions 5") == "0"


def test_an_unwinder_that_comes_later(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("cancelled.c", *programs.PIE))
    assert "libgcc_s" not in str(maps(process.pid))
    with api.attach(process.pid) as target, target.trace(tracer="function_graph"):
        assert ask(process, "run 50") == "0"
    assert "libgcc_s" in str(maps(process.pid))
    let_go(process, target)


def test_a_static_program_without_names_is_refused(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    program, bare = compile_target("returns.cc", *BUILDS["static"], *CPP), tmp_path / "bare"
    subprocess.run(["strip", "-o", str(bare), str(program)], check=True)
    process = start_target(bare)
    with untouched(process), api.attach(process.pid) as target:
        with pytest.raises(api.UnsupportedTarget) as caught:
            target.trace(tracer="function_graph").start()
        assert caught.value.reason == "returns"
        assert "unwinder has no name" in str(caught.value)
    assert ask(process, "run exceptions 2") == "0"


def test_too_deep_is_counted_and_not_fatal(start, tmp_path: Path) -> None:
    process, output = start(), tmp_path / "x.tptrace"
    with api.attach(process.pid) as target:
        with target.trace(tracer="function_graph", overwrite=True, output=output) as trace:
            assert ask(process, "run deep 1") == "0"
        assert 190_000 < trace.overruns < 200_000
    with Capture(output) as capture:
        assert capture.end is not None
        assert capture.end.overruns == trace.overruns
    assert "not followed: 19" in textpoke("report", output).out
    let_go(process, target)


@pytest.mark.parametrize("how", ["plain", "rich", "profile"])
def test_functions_that_take_their_arguments_off_the_stack(start, how: str) -> None:
    process = start()
    tracer = "profile" if how == "profile" else "function_graph"
    with api.attach(process.pid) as target:
        trace = target.trace("takes_words", tracer=tracer)
        trace.sample = 2 if how == "rich" else 1
        with trace:
            assert ask(process, "run values 50") == "0"
            trace.drain()
            hits = [row.hits for row in trace.profile().values()]
    assert (trace.events, hits) == {"plain": (100, []), "rich": (50, []), "profile": (0, [50])}[how]
    let_go(process, target)


def test_calls_on_other_stacks_are_not_in_a_profile(start) -> None:
    process = start()
    with api.attach(process.pid) as target:
        with target.trace(["*descend*", "*::moved()"], tracer="profile") as trace:
            assert ask(process, "run moved 3") == "0"
            rows = trace.profile().values()
            assert [row.hits for row in rows if row.hits] == [3]
            assert all(sum(row.buckets) == row.hits for row in rows)
        assert trace.overruns >= 3 * 10
    let_go(process, target)


def test_a_profile_counts_who_was_jumped_back_to(start) -> None:
    """__builtin_longjmp calls nobody: frames of who was left still stand above at the return."""
    process = start()
    with api.attach(process.pid) as target:
        with target.trace("*jump*", tracer="profile") as trace:
            there = trace.sites_by_return()
            names = {address: site.function.rpartition("::")[2] for site, address in there}
            assert ask(process, "run jumps 50") == "0"
            rows = {names[address]: row for address, row in trace.profile().items()}
        hits = {name: row.hits for name, row in rows.items() if row.hits}
        assert hits == {"builtin_jumps()": 50, "jumps()": 50}
        assert all(sum(row.buckets) == row.hits for row in rows.values())
        assert rows["builtin_jumps()"].total <= rows["jumps()"].total - rows["jumps()"].self
    let_go(process, target)


def test_on_the_stacks_of_coroutines_no_return_is_redirected(start, tmp_path: Path) -> None:
    process, output = start(), tmp_path / "x.tptrace"
    with api.attach(process.pid) as target:
        with target.trace("*::moved()", tracer="function_graph") as trace:
            assert ask(process, "run moved 3") == "0"
        assert (trace.events, trace.overruns) == (6, 0)
        with target.trace("*descend*", tracer="function_graph", output=output) as trace:
            assert ask(process, "run moved 3") == "0"
        assert trace.events == 0
        assert trace.overruns >= 3 * 10
    assert "not followed: " in textpoke("report", output).out
    let_go(process, target)


TOOL = """
import sys, time, textpoke
with textpoke.attach(int(sys.argv[1])) as target, target.trace(tracer=sys.argv[2]) as trace:
    print("tracing", flush=True)
    while True:
        trace.drain()
        time.sleep(0.01)
"""


@pytest.mark.parametrize("part", ["exceptions", "ended", "switched", "walked"])
def test_the_tool_is_killed_while_returns_are_redirected(start, part: str) -> None:
    process = start()
    for i in range(2):
        words = [sys.executable, "-c", TOOL, str(process.pid), TRACERS[i % 2]]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tool:
            assert tool.stdout is not None
            assert tool.stdout.readline() == "tracing\n"
            ask(process, f"storm {part} 2")
            time.sleep(0.2)
            tool.kill()
        time.sleep(0.6)  # the agent cleans up, as far as it may
        rounds, wrong = map(int, ask(process, "calm").split())
        assert rounds > 0
        assert wrong == 0
    with api.attach(process.pid) as target:
        pass
    let_go(process, target)
    assert ask(process, f"run {part} 2") == "0"
