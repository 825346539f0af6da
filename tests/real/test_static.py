# SPDX-License-Identifier: Apache-2.0
"""Static programs on other run-times than glibc: musl, and Go without and with C."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from processes import Program, built

import textpoke

FUNCTIONS = ["top", "middle", "leaf"]
EVENTS_PER_TOP = 5
ATTACHES = 10
TOGGLE_S = 3.0


def ask(process, line):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def phase(process, calls, threads):
    rows = [ask(process, f"phase {calls} {threads}")]
    while rows[-1] != "end":
        rows.append(process.stdout.readline().strip())
    return [list(map(int, row.split())) for row in rows[:-1]]


def toggle(target, functions, seconds):
    toggles, traps, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with target.trace(functions) as trace:
            toggles += 1
        traps += trace.on.traps + trace.off.traps
    return toggles, traps


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["static", "static-pie"])
def test_static_musl(untouched, figure, kind):
    program = built("musl") / f"counter-{kind}"
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            phase(process, 1, 2)
            unchanged = untouched(process.pid)
            with textpoke.attach(process.pid) as target:
                with target.trace(FUNCTIONS) as trace:
                    rows = phase(process, 1000, 2)
                assert (trace.events, trace.lost) == (2 * 1000 * EVENTS_PER_TOP, 0)
                assert [row[4] for row in rows] == [0, 0]
                assert ask(process, "hot 2") == "hot"
                toggles, traps = toggle(target, FUNCTIONS, TOGGLE_S)
                ask(process, "stop")
                while process.stdout.readline() != "end\n":
                    pass
            unchanged(target.report)
            assert ask(process, "ping") == "pong"
        finally:
            process.kill()
    figure(f"{toggles} toggles, {traps} traps")


def results(program):
    """Rounds and wrong results, from a line that is printed from now on."""
    return tuple(map(int, program.wait_for_lines(2)[-1].split()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["pure", "cgo"])
def test_static_go(figure, kind):
    with Program([built("go") / f"churn-{kind}"], f"go-{kind}") as program:
        before = results(program)
        toggles, traps = 0, 0
        for _ in range(ATTACHES):
            with textpoke.attach(program.pid) as target:
                if kind == "cgo":
                    more = toggle(target, "work", TOGGLE_S / ATTACHES)
                    toggles, traps = toggles + more[0], traps + more[1]
                else:
                    assert not [site for site in target.all_sites() if site.patchable]
                    time.sleep(TOGGLE_S / ATTACHES)
            assert target.report.residue == []
            assert target.report.handler_restored
            assert target.report.text.differing == []
        after = results(program)
        assert after[0] > before[0]
        assert after[1] == 0
        assert not any("textpoke" in name.read_text() for name in task_names(program.pid))
    figure(f"{ATTACHES} attaches, {toggles} toggles, {traps} traps, {after[0]:,} rounds")


def task_names(pid):
    return list(Path(f"/proc/{pid}/task").glob("*/comm"))
