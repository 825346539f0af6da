# SPDX-License-Identifier: Apache-2.0
"""Other people's test suites, run while the toggler has hold of every process of theirs.

What passes without the toggler must pass with it. A part that fails is run once more, and if it
fails again, without the toggler: these suites have tests that fail on a busy machine by themselves.
But nothing that fails may ever look like a crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from processes import LOGS
from toggler import Toggler

from textpoke.modes import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

SHORT = os.environ.get("SUITES", "full") == "short"
SUITE_TIMEOUT_S = 1200
_MARK = "TEXTPOKE_SUITE"
_CRASH = re.compile(
    r"SIG(?:TRAP|SEGV|ILL|BUS)|crashed by signal|[Ss]egmentation fault|[Tt]race/breakpoint trap"
    r"|[Ii]llegal instruction|died with <Signals|(?:[Ee]xit|return)[ _]?code[ :=]*-(?:4|5|7|11)\b",
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Run:
    """What a run of a suite came to.

    Attributes:
        tests: Tests that passed.
        failed: Parts (files) with a test that failed.
        complaints: What the suite printed about those.
        seconds: How long it took.
    """

    tests: int
    failed: frozenset[str]
    complaints: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def crashes(self) -> list[str]:
        return [text for text in self.complaints if _CRASH.search(text)]


def run(
    words: Sequence[object], directory: Path, log: str, read: Callable[[str], Run]
) -> tuple[Run, int]:
    """Run a suite to its end; returns what `read` made of its output, and its exit code."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{log}.log"
    began_s = time.monotonic()
    mark = f"{_MARK}={os.getpid()}-{log}"
    with path.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, _MARK: mark.partition("=")[2]},
            start_new_session=True,
        )
        try:
            code = process.wait(SUITE_TIMEOUT_S)
        finally:
            _end_all(mark)
            process.wait()
    seconds = time.monotonic() - began_s
    found = read(_COLOUR.sub("", path.read_text(errors="replace")))
    return Run(found.tests, found.failed, found.complaints, seconds), code


def _end_all(mark: str) -> None:
    """Nothing that a suite has started outlives it: all of it has the mark in its environment."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if mark.encode() in file.read().split(b"\0"):
                os.kill(int(name), signal.SIGKILL)


def require_same_under_toggling(
    start: Callable[[Sequence[str], str], Run],
    parts: Sequence[str],
    programs: Iterable[Path],
    figure: Callable[[str], None],
    mode: Mode = Mode.AUTO,
) -> Toggler:
    """Run `parts` with the toggler; whatever fails must fail without it too.

    Args:
        start: Runs some parts, with a word for the name of the log.
        parts: The files of the suite.
        programs: Whose processes are toggled.
        figure: Says the counts.
        mode: How sites are written.
    """
    plain = Run(0, frozenset())
    with Toggler(programs, mode) as toggler:
        first = start(parts, "toggled")
        again = start(sorted(first.failed), "again") if first.failed else plain
    if again.failed:
        plain = start(sorted(again.failed), "plain")
    figure(f"{first.tests:,} tests of {len(parts)} files passed in {first.seconds:,.0f} s")
    for line in toggler.tally.lines():
        figure(line)
    for name in sorted(first.failed):
        how = "passed when run again" if name not in again.failed else "fails without us too"
        figure(f"{name} failed, {how}")
    crashes = [*first.crashes(), *again.crashes()]
    assert not crashes, "\n".join(crashes)
    ours = again.failed - plain.failed
    assert not ours, "\n".join(text for text in again.complaints if any(n in text for n in ours))
    if toggler.tally.errors:
        pytest.fail("the toggler itself failed: " + "\n".join(toggler.tally.errors))
    return toggler
