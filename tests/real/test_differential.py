# SPDX-License-Identifier: Apache-2.0
"""Functions of C libraries give the same results while they are patched and let go all the time.

Two processes call the same functions with the same inputs: one is left alone, in the other all
functions of those libraries go on and off at 10 Hz, from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from debian_programs import install
from differential import LIBRARIES, build
from processes import BUILT, LOGS, differing_text
from unmodified import Toggling

HERE = Path(__file__).parent
PYTHON = "/usr/bin/python3"  # Debian's, unmodified
ROUNDS, INPUTS = 80, 64
HZ = 10.0
FUNCTIONS = 1000
ANSWER_TIMEOUT_S = 900


class Worker:
    """A process that calls them all, round after round, when it is told to."""

    def __init__(self, library: Path, log: str, rounds: int = ROUNDS, **environment: str) -> None:
        words = [PYTHON, "-I", HERE / "differential.py", library, rounds, INPUTS]
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f"{log}.log").open("wb") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        self.pid = self.process.pid
        self._watch = threading.Timer(ANSWER_TIMEOUT_S, self.process.kill)

    def __enter__(self):
        self._watch.start()
        self.functions = self._read()["ready"]
        return self

    def __exit__(self, *_):
        self._watch.cancel()
        self.process.kill()
        self.process.communicate()

    def _read(self):
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait()}"
        return json.loads(line)

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rounds(self):
        """All results; the process waits then."""
        self.go_on()
        found = []
        while "end" not in (row := self._read()):
            found.append(row)
        return found


@pytest.fixture(scope="session")
def differential_library():
    install("differential")
    return build(BUILT / "differential")


def differences(left, right):
    """(round, function) of every result that differs."""
    assert len(left) == len(right)
    return [
        (number, name)
        for number, (a, b) in enumerate(zip(left, right, strict=True), 1)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def called(functions):
    """Module and ELF address of the libraries' functions that are called."""
    stems = {name.partition(".so")[0] for name in LIBRARIES}
    return {
        (about["module"], about["offset"])
        for about in functions.values()
        if about["module"].partition(".so")[0] in stems
    }


@pytest.mark.timeout(900)
def test_untouched_processes_agree(differential_library):
    """Also when the heap's first content and the stack's place are others."""
    results = []
    for environment in ({}, {"MALLOC_PERTURB_": "173", "PADDING": "x" * 3000}):
        name = f"differential-{len(results)}"
        with Worker(differential_library, name, ROUNDS // 4, **environment) as worker:
            assert len(called(worker.functions)) >= FUNCTIONS
            results.append(worker.rounds())
    assert not differences(*results)


@pytest.mark.timeout(1800)
def test_functions_give_the_same_results_while_they_are_toggled(differential_library, figure):
    with Worker(differential_library, "differential-untouched") as worker:
        right = worker.rounds()
        there = {module for module, _ in called(worker.functions)}
    with Worker(differential_library, "differential-toggled") as worker:
        assert not differing_text(worker.pid)
        with Toggling(worker.pid, sorted(there), HZ) as toggling:
            results = worker.rounds()
        toggling.require_no_failure()
        assert not differing_text(worker.pid)
        assert toggling.report.clean, toggling.report.residue
        functions = called(worker.functions)
        worker.go_on()
        assert worker.process.wait(60) == 0
    patched = functions & toggling.entries
    calls = len(functions) * ROUNDS * INPUTS
    figure(
        f"{len(functions):,} functions called, {len(patched):,} of them patched, {calls:,} inputs; "
        f"{toggling.sites:,} sites toggled {toggling.toggles:,} times in {toggling.seconds:,.0f} "
        f"s, {toggling.traps:,} traps, {toggling.left:,} left out of a turn"
    )
    figure(", ".join(f"{n:,} of {module}" for module, n in toggling.by_module.most_common()))
    wrong = differences(right, results)
    assert not wrong, f"{len(wrong)} results differ, the first: {wrong[:10]}"
    assert len(patched) >= FUNCTIONS
    assert toggling.toggles >= HZ * toggling.seconds / 4
