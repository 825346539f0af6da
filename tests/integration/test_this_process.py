# SPDX-License-Identifier: Apache-2.0
"""Tracing the very process that asks for it, and programs from before their first instruction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import programs
import pytest

import textpoke
from textpoke.report.counts import count

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Compile

# Runs in a Python of its own: tracing must not depend on what pytest has loaded.
PREAMBLE = """
import ctypes, json, sys, threading
import textpoke

library = ctypes.CDLL(sys.argv[1])
library.top.restype = ctypes.c_ulong
library.top.argtypes = [ctypes.c_void_p, ctypes.c_ulong]
tally = (ctypes.c_ulong * 8)()

def expected(x):
    return ((x * 3 + 1) ^ ((x >> 1) * 3 + 1)) + (x + 7) * 3 + 1

def work(calls):
    return all(library.top(tally, x) == expected(x) for x in range(calls))

def code_of_no_file():
    lines = open("/proc/self/maps").read().splitlines()
    return [line for line in lines if "x" in line.split()[1] and " /" not in line]

assert work(3)
"""


def run(library: Path, body: str) -> dict[str, object]:
    """Run a script in a new Python; returns the object that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body), str(library)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, object] = json.loads(done.stdout)
    return result


def calls_by_thread(capture: textpoke.Capture) -> dict[int, int]:
    return {thread.tid: thread.calls.total for thread in count(capture).threads}


@pytest.fixture
def library(compile_target: Compile) -> Path:
    return compile_target("counter.c", *programs.OBJECT)


def test_this_process_is_traced_and_left_as_it_was(library: Path) -> None:
    said = run(
        library,
        """
        before = code_of_no_file()
        with textpoke.this_process() as target:
            with target.trace("counter*!*", mode="int3") as trace:
                right = work(100)
        print(json.dumps({
            "right": right and work(3), "events": trace.events, "lost": trace.lost,
            "syncs": trace.on.syncs, "residue": target.report.residue,
            "text": len(target.report.text.differing), "same": before == code_of_no_file(),
            "threads": threading.active_count(),
        }))
        """,
    )
    assert said == {
        "right": True,
        "events": 100 * programs.EVENTS_PER_TOP,
        "lost": 0,
        "syncs": 2,
        "residue": [],
        "text": 0,
        "same": True,
        "threads": 1,
    }


def test_this_process_is_toggled_under_its_own_threads(library: Path) -> None:
    said = run(
        library,
        """
        results, stop = [], threading.Event()

        def run():
            while not stop.is_set():
                results.append(work(50))

        workers = [threading.Thread(target=run) for _ in range(2)]
        for worker in workers:
            worker.start()
        with textpoke.this_process() as target:
            for _ in range(50):
                with target.trace("counter*!*"):
                    pass
        stop.set()
        for worker in workers:
            worker.join()
        print(json.dumps({"right": all(results), "residue": target.report.residue}))
        """,
    )
    assert said == {"right": True, "residue": []}


def test_a_capture_of_this_process_names_its_threads(library: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.tptrace"
    said = run(
        library,
        f"""
        with textpoke.this_process() as target:
            with target.trace("top", output={os.fspath(output)!r}) as trace:
                thread = threading.Thread(target=work, args=(10,))
                thread.start()
                thread.join()
                work(5)
        print(json.dumps({{"tid": thread.native_id, "pid": target.pid}}))
        """,
    )
    with textpoke.Capture(output) as capture:
        counts = calls_by_thread(capture)
    assert counts == {said["tid"]: 10, said["pid"]: 5}


def launched(script: str, stdin: str) -> subprocess.CompletedProcess[str]:
    """Run a script that launches a program, which has the script's own standard streams."""
    return subprocess.run(
        [sys.executable, "-c", script],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_launched_program_is_traced_from_its_release(
    compile_target: Compile, tmp_path: Path
) -> None:
    program = os.fspath(compile_target("counter.c", *programs.PIE))
    output = os.fspath(tmp_path / "x.tptrace")
    done = launched(
        f"""
import os, textpoke
with textpoke.launch([{program!r}]) as target:
    with target.trace(output={output!r}) as trace:
        target.release()
        try:
            trace.run(seconds=20)
        except textpoke.TargetExited:
            pass
_, status = os.waitpid(target.pid, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
""",
        "phase 10 1\nquit 4\n",
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout.splitlines()[0] == "ready"
    with textpoke.Capture(output) as capture:
        assert sum(calls_by_thread(capture).values()) == 10 * programs.EVENTS_PER_TOP


def test_a_launched_program_runs_when_it_is_let_go(compile_target: Compile) -> None:
    program = os.fspath(compile_target("counter.c", *programs.PIE))
    done = launched(
        f"""
import os, textpoke
with textpoke.launch([{program!r}]) as target:
    assert [site.function for site in target.sites("top")] == ["top"]
assert target.report.residue == [], target.report.residue
_, status = os.waitpid(target.pid, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
""",
        "ping\nquit 6\n",
    )
    assert (done.returncode, done.stdout) == (6, "ready\npong\n"), done.stderr


def test_a_program_that_does_not_exist_cannot_be_launched() -> None:
    with pytest.raises(FileNotFoundError):
        textpoke.launch(["/nowhere/at/all"])
