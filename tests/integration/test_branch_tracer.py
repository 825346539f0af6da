# SPDX-License-Identifier: Apache-2.0
"""The branch tracer as one of a trace's tracers: live, exact, and in captures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from observe import ask, hear_until_end, tell, text_equals_files, textpoke, untouched, wait_until

import textpoke as api
from textpoke import UnknownFunction
from textpoke.capture import Capture
from textpoke.report import branched

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.model import BranchRow
    from textpoke.one_trace import Trace

WRONG = 32
BUILDS = {"entries": ("-O2",), "nops": ("-O2", "-fpatchable-function-entry=5")}
Own = dict[int, tuple[int, int]]


@pytest.fixture(params=BUILDS)
def process(
    compile_target: Compile, start_target: Start, request: pytest.FixtureRequest
) -> subprocess.Popen[str]:
    started = start_target(compile_target("branches.c", *BUILDS[request.param]))
    assert ask(started, "phase 1 4") == "done"  # stacks that libc keeps
    return started


def own(process: subprocess.Popen[str]) -> Own:
    tell(process, "own")
    return {number: (taken, not_taken) for number, taken, not_taken in hear_until_end(process)}


def where(process: subprocess.Popen[str]) -> dict[int, int]:
    tell(process, "table")
    return dict(map(tuple, hear_until_end(process)))


def by_number(rows: list[BranchRow], table: dict[int, int]) -> Own:
    """What was counted, without branches of which some copy cannot be counted."""
    known = {row.address: row for row in rows}
    missing = {number for address, number in table.items() if address not in known}
    sums: Own = {}
    for address, number in table.items():
        if number not in missing:
            taken, not_taken = sums.get(number, (0, 0))
            row = known[address]
            sums[number] = taken + row.taken, not_taken + row.not_taken
    return sums


def plus(first: Own, second: Own) -> Own:
    return {n: (first[n][0] + second[n][0], first[n][1] + second[n][1]) for n in second}


def minus(after: Own, before: Own) -> Own:
    return {n: (after[n][0] - before[n][0], after[n][1] - before[n][1]) for n in after}


def count(trace: Trace) -> int:
    return sum(row.total for row in trace.branch_counts(lines=False))


def nothing() -> Own:
    return dict.fromkeys(range(WRONG + 1), (0, 0))


def test_only_what_happens_under_branch_is_counted(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    table = where(process)
    expected = nothing()
    output = tmp_path / "x.tptrace"
    with untouched(process), api.attach(process.pid) as target:
        with target.trace(tracer="function_graph", output=output) as trace:
            for _ in range(50):
                trace.tracer = "branch"
                events = trace.events
                before = own(process)
                assert ask(process, "phase 20 2") == "done"
                expected = plus(expected, minus(own(process), before))
                trace.drain()
                trace.tracer = "function_graph"
                assert ask(process, "phase 5 2") == "done"
                trace.drain()
                assert trace.events > events
        rows = trace.branch_counts()
        assert trace.lost == 0
        assert trace.left_alone == 0
    assert target.report is not None
    assert target.report.clean
    assert text_equals_files(process.pid)
    counted = by_number(rows, table)
    assert len(counted) >= 13
    assert counted == {number: expected[number] for number in counted}
    assert own(process)[WRONG] == (0, 0)
    with Capture(output) as capture:
        found = branched.records(capture)
    assert {r["address"]: (r["taken"], r["not_taken"]) for r in found["rows"]} == {
        row.address: (row.taken, row.not_taken) for row in rows
    }
    result = textpoke("report", "--by", "branch", "--json", output)
    assert result.code == 0, result
    assert json.loads(result.out)["rows"] == found["rows"]


def test_switching_under_load_loses_no_count(process: subprocess.Popen[str]) -> None:
    table = where(process)
    with untouched(process), api.attach(process.pid) as target:
        with target.trace(tracer="function_graph") as trace:
            assert ask(process, "hot 3") == "hot"
            total = 0
            for _ in range(50):
                trace.tracer = "branch"
                wait_until(lambda: count(trace) > total, "it counts")  # noqa: B023
                trace.drain()
                trace.tracer = "function_graph"
                total = count(trace)
                time.sleep(0.002)
                trace.drain()
                assert count(trace) == total
            assert ask(process, "stop") == "stopped"
            # Threads that stood in a stub when it was switched off have counted since.
            trace.tracer = "branch"
            first = by_number(trace.branch_counts(), table)
            for number, counts in own(process).items():
                if number in first:
                    assert all(c <= o for c, o in zip(first[number], counts, strict=True))
            before = own(process)
            assert ask(process, "phase 300 3") == "done"
            expected = minus(own(process), before)
        last = by_number(trace.branch_counts(), table)
        assert minus(last, first) == {number: expected[number] for number in first}
        assert trace.left_alone == 0
    assert own(process)[WRONG] == (0, 0)
    assert text_equals_files(process.pid)


def test_filters_change_what_is_counted(process: subprocess.Popen[str]) -> None:
    with (
        untouched(process),
        api.attach(process.pid) as target,
        target.trace("recurse", tracer="branch") as trace,
    ):
        assert ask(process, "phase 10 1") == "done"
        first = trace.branch_counts()
        assert {row.function for row in first} == {"recurse"}
        trace.filter = "hot"
        assert ask(process, "phase 10 1") == "done"
        second = trace.branch_counts()
        assert [r for r in second if r.function == "recurse"] == first
        assert sum(row.total for row in second if row.function == "hot") > 0
        trace.filter = ["hot", "recurse"]
        assert ask(process, "phase 10 1") == "done"
        third = [row for row in trace.branch_counts() if row.function == "recurse"]
        assert sum(r.total for r in third) == 2 * sum(r.total for r in first)
        trace.notrace = "hot"
        assert ask(process, "phase 10 1") == "done"
        fourth = {row.address: row.total for row in trace.branch_counts()}
        hot = [row for row in trace.branch_counts() if row.function == "hot"]
        assert sum(r.total for r in hot) >= sum(r.total for r in second if r.function == "hot")
        assert sum(fourth[r.address] for r in first) == 3 * sum(r.total for r in first)
        before = sum(r.total for r in hot)
        assert ask(process, "phase 10 1") == "done"
        hot = [row for row in trace.branch_counts() if row.function == "hot"]
        assert sum(r.total for r in hot) == before
        with pytest.raises(UnknownFunction):
            trace.filter = "no_such_function"
        assert (trace.filter, trace.notrace) == (["hot", "recurse"], ["hot"])
    assert target.report is not None
    assert target.report.clean


def test_functions_whose_entries_cannot_be_patched_are_counted(
    process: subprocess.Popen[str],
) -> None:
    with api.attach(process.pid) as target:
        refused = [s for s in target.functions() if not s.patchable]
        counted = (
            {
                site.function
                for function in refused
                for site in target.branches(function.function).found.sites
                if function.entry == site.entry
            }
            if refused
            else set()
        )
        with target.trace(tracer="branch") as trace:
            rows = trace.branch_counts(lines=False)
    assert counted <= {row.function for row in rows}


def test_two_traces_count_for_themselves(process: subprocess.Popen[str]) -> None:
    table = where(process)
    with untouched(process), api.attach(process.pid) as target:
        with target.trace(tracer="branch") as one:
            start = own(process)
            assert ask(process, "phase 20 1") == "done"
            with target.trace(tracer="branch", name="two") as two:
                expected = nothing()
                for tracer in ("nop", "branch", "nop", "branch"):
                    before = own(process)
                    assert ask(process, "phase 30 2") == "done"
                    if two.tracer == "branch":
                        expected = plus(expected, minus(own(process), before))
                    two.tracer = tracer
            assert ask(process, "phase 20 1") == "done"
            end = own(process)
        ours, theirs = (by_number(trace.branch_counts(), table) for trace in (one, two))
        assert ours == {n: minus(end, start)[n] for n in ours}
        assert theirs == {n: expected[n] for n in theirs}
        assert len(theirs) >= 13
    assert target.report is not None
    assert target.report.clean


def test_traces_of_calls_and_of_branches_exclude_each_other(
    process: subprocess.Popen[str],
) -> None:
    """Whoever is there first stays; nothing is ever half of the one and half of the other."""
    table = where(process)
    with untouched(process), api.attach(process.pid) as target:
        with target.trace(tracer="function_graph"), target.trace(tracer="branch", name="b") as b:
            for _ in range(3):
                b.tracer = "function"
                b.tracer = "branch"
            before = own(process)
            base = by_number(b.branch_counts(), table)
            assert ask(process, "phase 100 2") == "done"
            expected = minus(own(process), before)
            now = by_number(b.branch_counts(), table)
            assert now
            assert minus(now, base) == {n: expected[n] for n in now}
        with target.trace(tracer="branch"), target.trace(tracer="function", name="f") as f:
            assert ask(process, "phase 10 1") == "done"
            f.drain()
            assert f.lost == 0
    assert target.report is not None
    assert target.report.clean
    assert own(process)[WRONG] == (0, 0)


def test_record_and_report(process: subprocess.Popen[str], tmp_path: Path) -> None:
    output = tmp_path / "x.tptrace"
    record = [sys.executable, "-m", "textpoke", "record", "-o", str(output)]
    tool = subprocess.Popen(
        [*record, "-p", str(process.pid), "-t", "nop"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: textpoke("switch", "-p", process.pid, "branch").code == 0, "it records")
    table = where(process)
    before = own(process)
    assert ask(process, "phase 100 2") == "done"
    expected = minus(own(process), before)
    switched = textpoke("switch", "-p", process.pid, "nop")
    assert switched.code == 0, switched
    assert ask(process, "phase 100 2") == "done"
    assert textpoke("switch", "-p", process.pid, "branch").code == 0
    tool.send_signal(signal.SIGINT)
    tool.communicate(timeout=60)
    result = textpoke("report", "--by", "branch", "--json", output)
    assert result.code == 0, result
    rows = {row["address"]: row for row in json.loads(result.out)["rows"]}
    sums = {n: [0, 0] for n in table.values()}
    for address, number in table.items():
        if address in rows:
            sums[number][0] += rows[address]["taken"]
            sums[number][1] += rows[address]["not_taken"]
    exact = [n for n in sums if tuple(sums[n]) == expected[n]]
    assert len(exact) >= 13
    assert text_equals_files(process.pid)


def test_a_program_that_ends_under_record(compile_target: Compile, tmp_path: Path) -> None:
    """What it had counted by the last look is there, with its lines."""
    program = compile_target("branches.c", "-O0")
    output = tmp_path / "x.tptrace"
    record = [sys.executable, "-m", "textpoke", "record", "-o", str(output)]
    with subprocess.Popen(
        [*record, "-t", "branch", "-i", "recurse", "--", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline() == "ready\n"
        assert ask(tool, "phase 50 2") == "done"
        time.sleep(0.5)
        tool.communicate(timeout=60)
    result = textpoke("report", output)
    assert result.code == 0, result
    head, *_, row = result.out.splitlines()
    assert "tracer branch: 2 branches" in head
    assert row.split()[3] == "recurse"
    assert "branches.c:" in row


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": [[1, 2, 3]]},
        {"rows": [[1, 9, 3, 0, 0, 1, 1]], "functions": [["a", "b"]], "files": [""]},
        {"rows": [[1, 0, 3, 0, 0, -1, 1]], "functions": [["a", "b"]], "files": [""]},
        {"rows": [[1, 0, 3, 0, 0, 1, 1]], "functions": [["a"]], "files": [""]},
        {"rows": "x", "functions": 3},
        {"rows": [[1, 0, 3, 0, 0, "1", 1]], "functions": [["a", "b"]], "files": [""]},
    ],
)
def test_damaged_tables_are_refused(damage: dict) -> None:
    class End:
        raw = {"branch": damage}  # noqa: RUF012

    class Damaged:
        path, end = "x", End

    with pytest.raises(api.CaptureFormat):
        branched._rows(Damaged)
