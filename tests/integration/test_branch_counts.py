# SPDX-License-Identifier: Apache-2.0
"""Branches counted on live programs: exact to the last count, and nothing left behind."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from observe import ask, hear_until_end, tell, text_equals_files, untouched, wait_until

import textpoke

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Compile, Start

    from textpoke.branch_counts import BranchCounts

    Program = Callable[..., subprocess.Popen[str]]

BUILDS = {
    "O0": ("-O0",),
    "O1": ("-O1",),
    "O2": ("-O2",),
    "O3": ("-O3",),
    "Os": ("-Os",),
    "non-pie": ("-O2", "-no-pie", "-fno-pie"),
    "cf-protection": ("-O2", "-fcf-protection=full"),
    "nops": ("-O2", "-fpatchable-function-entry=5"),
    "debug-free": ("-O2", "-g0"),
}
NUMBERS = range(14)
WRONG = 32
Own = dict[int, tuple[int, int]]


@pytest.fixture
def program(compile_target: Compile, start_target: Start) -> Program:
    """Return the function that starts tests/targets/branches.c in one of its builds."""

    def start(build: str) -> subprocess.Popen[str]:
        process = start_target(compile_target("branches.c", *BUILDS[build]))
        assert ask(process, "phase 1 4") == "done"  # stacks that libc keeps
        return process

    return start


def own(process: subprocess.Popen[str]) -> Own:
    """What the program has counted itself: taken and not, by number."""
    tell(process, "own")
    return {number: (taken, not_taken) for number, taken, not_taken in hear_until_end(process)}


def table(process: subprocess.Popen[str]) -> dict[int, int]:
    """Where its branches are: number by address."""
    tell(process, "table")
    return dict(map(tuple, hear_until_end(process)))


def counted(counts: BranchCounts, where: dict[int, int]) -> Own:
    """What was counted, by number; without those of which some copy cannot be counted."""
    sums: dict[int, list[int]] = collections.defaultdict(lambda: [0, 0])
    rows = {row.address: row for row in counts.read()}
    missing = {number for address, number in where.items() if address not in rows}
    for address, number in where.items():
        if number not in missing:
            sums[number][0] += rows[address].taken
            sums[number][1] += rows[address].not_taken
    return {number: (taken, not_taken) for number, (taken, not_taken) in sums.items()}


def minus(after: Own, before: Own) -> Own:
    """What has been added."""
    return {n: (after[n][0] - before[n][0], after[n][1] - before[n][1]) for n in after}


def matches(ours: Own, theirs: Own) -> None:
    """Assert that every branch was counted to the last time, and that most were counted."""
    assert len(ours) >= len(NUMBERS) - 1
    assert ours == {number: theirs[number] for number in ours}


@pytest.mark.parametrize("build", BUILDS)
def test_counts_are_those_of_the_program(program: Program, build: str) -> None:
    process = program(build)
    where = table(process)
    with untouched(process), textpoke.attach(process.pid) as target:
        counts = target.branches()
        before = own(process)
        with counts:
            assert ask(process, "phase 3000 4") == "done"
            now = counted(counts, where)
        after = own(process)
        matches(now, minus(after, before))
        assert counted(counts, where) == now  # switched off, it can be read still
        assert ask(process, "phase 100 2") == "done"
        assert counted(counts, where) == now
        assert after[WRONG] == (0, 0)
        assert counts.refused == []
        assert counts.left_alone == 0
    assert target.report is not None
    assert target.report.clean
    assert counted(counts, where) == now  # and let go


def test_counts_of_signal_handlers_that_nest_are_exact(program: Program) -> None:
    process = program("O2")
    where = table(process)
    with textpoke.attach(process.pid) as target:
        counts = target.branches()
        before = own(process)
        with counts:
            assert ask(process, "signals 50") == "signals"
            assert ask(process, "phase 5000 4") == "done"
            assert ask(process, "signals 0") == "signals"
            now = counted(counts, where)
        after = own(process)
    matches(now, minus(after, before))
    assert sum(now[13]) > 100
    assert after[WRONG] == (0, 0)


@pytest.mark.parametrize("mode", ["int3", "stop"])
@pytest.mark.parametrize("build", ["O0", "O2", "non-pie"])
def test_toggling_under_load_harms_nothing(program: Program, build: str, mode: str) -> None:
    process = program(build)
    where = table(process)
    with untouched(process), textpoke.attach(process.pid) as target:
        assert ask(process, "hot 3") == "hot"
        counts = target.branches(mode=mode)
        for _ in range(50):
            with counts:
                time.sleep(0.005)
            assert counts.left_alone == 0
        assert ask(process, "stop") == "stopped"
        assert own(process)[WRONG] == (0, 0)
        before = own(process)
        with counts:  # all of it is still right
            assert ask(process, "phase 500 2") == "done"
        matches(counted(counts, where), minus(own(process), before))


def test_reading_stops_nobody_and_only_grows(program: Program) -> None:
    process = program("O2")
    assert ask(process, "hot 2") == "hot"
    with textpoke.attach(process.pid) as target, target.branches() as counts:
        last = counts.counts()
        for _ in range(50):
            now = counts.counts()
            assert (now >= last).all()
            last = now
        assert last.sum() > 0
    assert ask(process, "stop") == "stopped"


def test_counts_begin_at_zero_again(program: Program) -> None:
    process = program("O2")
    with textpoke.attach(process.pid) as target:
        for calls in (500, 20):
            with target.branches("hot") as counts:
                assert ask(process, f"phase {calls} 1") == "done"
            rows = counts.read()
            assert {row.function for row in rows} == {"hot"}
            # Of 2 branches one is executed once more a call.
            assert min(row.total for row in rows) > 0
        first, second = rows
        assert first.total < 20 * 20 * 2
        assert second.total < 20 * 20 * 2


def test_rows_name_source_lines(program: Program) -> None:
    process = program("O0")
    with textpoke.attach(process.pid) as target, target.branches("recurse") as counts:
        assert ask(process, "phase 10 1") == "done"
    row, *_ = counts.read()
    assert row.file.endswith("tests/targets/branches.c")
    assert row.line > 0
    assert (row.module, row.function) == (counts.found.branches[0].module, "recurse")
    plain, *_ = counts.read(lines=False)
    assert (plain.file, plain.line, plain.taken) == ("", 0, row.taken)


def test_a_function_trace_and_counts_exclude_each_other_where_they_overlap(
    program: Program,
) -> None:
    process = program("O2")
    with (
        textpoke.attach(process.pid) as target,
        target.trace("compare"),
        target.branches("compare") as counts,
    ):
        assert ask(process, "phase 10 1") == "done"
        assert len(counts.refused) in (0, 1)
        for site, why in counts.refused:
            assert site.function == "compare"
            assert "another trace" in why
    assert target.report is not None
    assert target.report.clean


def test_a_program_that_ends_leaves_what_was_read(program: Program) -> None:
    process = program("O2")
    with textpoke.attach(process.pid) as target, target.branches("hot") as counts:
        assert ask(process, "phase 100 1") == "done"
        total = counts.counts().sum()
        process.kill()
        process.wait()
        with contextlib.suppress(textpoke.TargetExited):
            counts.run(1)
        assert counts.counts().sum() == total


def test_what_has_no_branch_is_refused_by_name(program: Program) -> None:
    process = program("O2")
    with textpoke.attach(process.pid) as target:
        with pytest.raises(textpoke.UnknownFunction):
            target.branches("nothing_like_this")
        with pytest.raises(textpoke.NotPatchable, match="none of its branches"):
            target.branches("_start")


def test_the_own_process_counts_its_interpreters_branches() -> None:
    code = """
import json, sysconfig, textpoke
shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
library = sysconfig.get_config_var("INSTSONAME") if shared else ""
with textpoke.this_process() as target:
    main = next(m.name for m in target.modules if m.is_main)
    counts = target.branches(f"{library or main}!PyDict_*")
    for _ in range(3):
        with counts:
            for _ in range(100):
                json.loads(json.dumps({"a": [1, 2, 3]}))
        assert counts.counts().sum() > 1000
assert target.report.clean, target.report.residue
print("right")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_a_killed_tool_leaves_a_right_program_and_its_own_text(program: Program) -> None:
    process = program("O2")
    code = f"""
import time, textpoke
with textpoke.attach({process.pid}) as target, target.branches():
    print("on", flush=True)
    time.sleep(100)
"""
    tool = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert tool.stdout is not None
    assert tool.stdout.readline() == "on\n"
    assert not text_equals_files(process.pid)
    assert ask(process, "hot 2") == "hot"
    tool.kill()
    tool.communicate()
    wait_until(lambda: text_equals_files(process.pid), "the agent has put everything back")
    assert ask(process, "stop") == "stopped"
    with textpoke.attach(process.pid) as target, target.branches("recurse") as counts:
        assert ask(process, "phase 100 1") == "done"
        assert counts.counts().sum() > 0
    assert target.report is not None
    assert target.report.clean
    assert own(process)[WRONG] == (0, 0)
