# SPDX-License-Identifier: Apache-2.0
"""Other people's test suites, run while the toggler has hold of every process of theirs.

What passes without the toggler must pass with it, and what fails must fail. A part that differs is
run once more, and if it differs again, without the toggler: these suites have tests that fail on a
busy machine by themselves. But nothing that fails may ever look like a crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
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
        outcomes: How each part (file, or test) has ended, where the suite tells.
    """

    tests: int
    failed: frozenset[str]
    complaints: list[str] = field(default_factory=list)
    seconds: float = 0.0
    outcomes: dict[str, object] = field(default_factory=dict)

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
    return replace(found, seconds=seconds), code


def is_of_a_suite(pid: int) -> bool:
    """Was a process started by a suite of ours? Others may run the same program."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return f"{_MARK}={os.getpid()}-".encode() in file.read()
    return False


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
    **how: object,
) -> Toggler:
    """Run `parts` with the toggler; whatever fails must fail without it too.

    Args:
        start: Runs some parts, with a word for the name of the log.
        parts: The files of the suite.
        programs: Whose processes are toggled.
        figure: Says the counts.
        mode: How sites are written.
        how: More words for `Toggler`.
    """
    plain = Run(0, frozenset())
    with Toggler(programs, mode, **how) as toggler:
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


def require_same_as_without_us(
    start: Callable[[Sequence[str], str], Run],
    parts: Sequence[str],
    programs: Iterable[Path],
    figure: Callable[[str], None],
    parts_of: Callable[[set[str], Run], Sequence[str]],
    **how: object,
) -> Toggler:
    """Run `parts` without the toggler, then with it: every outcome must be the same.

    Args:
        start: Runs some parts, with a word for the name of the log.
        parts: The files of the suite.
        programs: Whose processes are toggled, if the suite has started them.
        figure: Says the counts.
        parts_of: Gives the files to run again for some outcomes that differ.
        how: More words for `Toggler`.
    """
    plain = start(parts, "without-us")
    with Toggler(programs, only=is_of_a_suite, **how) as toggler:
        toggled = start(parts, "with-us")
        differing = _differing(plain.outcomes, toggled.outcomes)
        outcomes, crashes = toggled.outcomes, toggled.crashes()
        if differing:
            again = start(parts_of(differing, toggled), "with-us-again")
            outcomes, crashes = outcomes | again.outcomes, crashes + again.crashes()
    figure(
        f"{plain.tests:,} tests of {len(parts)} files passed without us in {plain.seconds:,.0f} s, "
        f"{toggled.tests:,} with us in {toggled.seconds:,.0f} s; failed parts: "
        f"{len(plain.failed)} and {len(toggled.failed)}"
    )
    for line in toggler.tally.lines():
        figure(line)
    ours = _differing(plain.outcomes, outcomes)
    if ours:
        once_more = start(parts_of(ours, toggled), "without-us-again")
        unsteady = {
            name for name in ours if once_more.outcomes.get(name) != plain.outcomes.get(name)
        }
        figure(f"not steady without us: {', '.join(sorted(unsteady)) or 'nothing'}")
        ours -= unsteady
    for name in sorted(differing):
        how_it_went = "differs again" if name in ours else "as without us when run again"
        figure(f"{name}: {toggled.outcomes.get(name)}, {how_it_went}")
    assert not [text for text in crashes if text not in plain.crashes()], "\n".join(crashes)
    assert not ours, {name: (plain.outcomes.get(name), outcomes.get(name)) for name in ours}
    if toggler.tally.errors:
        pytest.fail("the toggler itself failed: " + "\n".join(toggler.tally.errors))
    return toggler


def _differing(left: dict[str, object], right: dict[str, object]) -> set[str]:
    return {name for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
