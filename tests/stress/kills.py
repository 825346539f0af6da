# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the tool, and of the target, at random moments of attach, toggle, record and detach.

No target may die of its tool's death, no tool may end its target's death with more than a line,
and the next tool must find and remove what was left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak import Facts, facts
from torn import PATIENCE_S, Counts, Torn, Violation

import textpoke

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
_THREADS = 2
_MOST_S = {"attach": 0.08, "toggle": 0.10, "detach": 0.12, "record": 0.15, "command": 0.45}
_NAMES = ("maps", "threads", "files", "signals")


@dataclass
class Kills:
    """What was done and seen.

    Attributes:
        tool: Tools killed; `target`: targets killed.
        by_work: What the killed one, or its tool, was doing.
        left: Tools killed that left an agent, `patched` sites behind for the next one.
        exits: Exit codes of tools whose target was killed.
        violations: What must never be.
    """

    tool: int = 0
    target: int = 0
    by_work: dict[str, int] = field(default_factory=dict)
    left: int = 0
    patched: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**vars(self), "counts": vars(self.counts)}

    def wrong(self, line: str) -> None:
        """Note what must never be, and say it at once."""
        self.violations.append(line)
        print(f"VIOLATION {line}", file=sys.stderr, flush=True)

    def add(self, name: str, key: str) -> None:
        """Count one more of `key`."""
        counts = getattr(self, name)
        counts[key] = counts.get(key, 0) + 1


def _start(work: str, torn: Torn) -> subprocess.Popen[str]:
    if work == "command":
        words = ["-m", "textpoke", "record", "-q", "-f", "-p", str(torn.pid)]
        words += ["-o", f"{torn.path}.tptrace"]
    elif work == "command-detach":
        words = ["-m", "textpoke", "detach", "-p", str(torn.pid)]
    else:
        words = [str(HERE / "victim.py"), work, str(torn.pid), torn.path]
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def _at_work(work: str, torn: Torn) -> Iterator[subprocess.Popen[str]]:
    """A tool that has begun; it is not there any more at the end."""
    tool = _start(work, torn)
    try:
        if not work.startswith("command"):
            assert tool.stdout is not None
            select.select([tool.stdout], [], [], PATIENCE_S)
            tool.stdout.readline()
        yield tool
    finally:
        tool.kill()
        tool.communicate()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{torn.path}.tptrace")


def leave_patched(torn: Torn, sites: int = 64) -> None:
    """What a killed tool leaves, for a detach to be disturbed at."""
    target = textpoke.attach(torn.pid)
    torn.toggle(target, torn.emulated()[:sites], Counts())
    torn.is_unsure()
    target.agent.close()  # as the kernel does it for a tool that is killed


def _has_agent(pid: int) -> bool:
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/task/{tid}/comm").read_text() == "textpoke\n":
                return True
    return False


def wait_for_moment(
    torn: Torn, tool: subprocess.Popen[str], work: str, dice: random.Random
) -> float:
    """Half of the time from the tool's begin, half of the time from its agent's on."""
    deadline = time.monotonic() + PATIENCE_S
    after_s = dice.uniform(0.0, _MOST_S.get(work, 0.45))
    if dice.random() < 0.5:
        while tool.poll() is None and not _has_agent(torn.pid) and time.monotonic() < deadline:
            time.sleep(0.0005)
        after_s /= 2
    time.sleep(after_s)
    return after_s


def _text(pid: int) -> str:
    """A digest of all code of files."""
    digest = hashlib.sha256()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, perms, *_ = line.split()
            if "x" in perms and "/" in line:
                start, end = (int(word, 16) for word in span.split("-"))
                digest.update(os.pread(memory.fileno(), end - start, start))
    return digest.hexdigest()


@dataclass(frozen=True)
class Before:
    """What a target was before any tool came."""

    facts: Facts
    text: str

    @classmethod
    def of(cls, torn: Torn) -> Before:
        """Look at it now."""
        return cls(facts(torn.pid), _text(torn.pid))


def clean(kills: Kills, torn: Torn, where: str, *, by_attaching: bool) -> None:
    """Remove what a killed tool has left; raises when that cannot be done."""
    if not torn.alive:
        raise Violation(f"the target ended with {torn.process.returncode}")
    kills.left += _has_agent(torn.pid)
    if by_attaching:
        with textpoke.attach(torn.pid) as target:
            kills.patched += target.repaired
        assert target.report is not None
        if not target.report.clean:
            kills.wrong(f"{where}: {target.report}")
        return
    words = [sys.executable, "-m", "textpoke", "detach", "--json", "-p", str(torn.pid)]
    left = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if left.returncode or left.stderr:
        raise Violation(f"detach ended with {left.returncode}: {left.stderr}{left.stdout}")
    said = json.loads(left.stdout)
    kills.patched += (said["outcome"] or {"finished": 0})["finished"]
    if not said["clean"] or said["left_alone"] or said["text_equal"] != said["text_pages"]:
        kills.wrong(f"{where}: {said}")


def compare(kills: Kills, torn: Torn, where: str, before: Before) -> None:
    """Nothing may be left, every call must do what it did."""
    if _text(torn.pid) != before.text:
        kills.wrong(f"{where}: the text is not what it was")
    now = facts(torn.pid)
    for name in _NAMES:
        was, is_ = getattr(before.facts, name), getattr(now, name)
        if was != is_:
            kills.wrong(f"{where}: {name} changed: {sorted(set(was) ^ set(is_))[:5]}")
    torn.is_old()
    time.sleep(0.005)  # calls that must all be old ones
    if torn.wrong() or not torn.alive:
        kills.wrong(f"{where}: wrong results, or none any more")


def judge(kills: Kills, where: str, work: str, code: int, err: str) -> None:
    """A tool whose target was killed owes its user one line at most, and an exit code."""
    lines = err.splitlines()
    kills.add("exits", f"{work}: {code}")
    if lines:
        kills.add("messages", "".join("N" if c.isdigit() else c for c in lines[-1]))
    if "Traceback" in err or code not in (0, 1, 3):
        kills.wrong(f"{where}: exit {code}: {err[-800:]}")
    elif len(lines) > 1 or (lines and not lines[0].startswith("textpoke: error: ")):
        kills.wrong(f"{where}: more than one line: {err[-800:]}")
    elif code and not lines:
        kills.wrong(f"{where}: exit {code} without a word")


class ToolKills:
    """Tools are killed, one after the other, at one target."""

    WORKS = ("attach", "toggle", "detach", "record", "command", "command-detach")

    def __init__(self, program: Path, kills: Kills, seed: int) -> None:
        self._random = random.Random(seed)
        self._kills = kills
        self._program = program
        self._done = 0

    def run(self, count: int, tick: Callable[[Kills], None]) -> None:
        """Kill `count` tools; a new target when one is spoilt."""
        while self._done < count:
            with Torn(self._program, _THREADS, life_s=300 + 10 * count) as torn:
                before = Before.of(torn)
                while self._done < count:
                    work = self.WORKS[self._done % len(self.WORKS)]
                    problems = len(self._kills.violations)
                    self._one(torn, work, before)
                    self._done += 1
                    tick(self._kills)
                    if len(self._kills.violations) > problems:
                        break
                torn.finish(self._kills.counts)
        self._kills.violations += self._kills.counts.violations

    def _one(self, torn: Torn, work: str, before: Before) -> None:
        if work == "command-detach":
            leave_patched(torn)
        torn.is_unsure()
        with _at_work(work, torn) as tool:
            after_s = wait_for_moment(torn, tool, work, self._random)
            code = tool.poll()
            if code not in (None, 0):
                assert tool.stderr is not None
                self._kills.wrong(f"{work} ended with {code}: {tool.stderr.read()[-600:]}")
            tool.kill()
        torn.is_unsure()  # it may have said that it is sure
        self._kills.tool += 1
        self._kills.add("by_work", work)
        where = f"{work} killed after {after_s * 1e3:.1f} ms (kill {self._done})"
        try:
            clean(self._kills, torn, where, by_attaching=self._done % 3 == 0)
            compare(self._kills, torn, where, before)
        except (Violation, textpoke.TextpokeError, subprocess.TimeoutExpired) as exc:
            self._kills.wrong(f"{where}: {type(exc).__name__}: {exc}")


class TargetKills:
    """Targets are killed, a fresh one each time, while a tool works at them."""

    WORKS = ("attach", "toggle", "detach", "record", "command", "command-detach")

    def __init__(self, program: Path, kills: Kills, seed: int) -> None:
        self._random = random.Random(seed)
        self._kills = kills
        self._program = program

    def run(self, count: int, tick: Callable[[Kills], None]) -> None:
        """Kill `count` targets."""
        for i in range(count):
            work = self.WORKS[i % len(self.WORKS)]
            with Torn(self._program, _THREADS) as torn:
                self._one(torn, work)
            tick(self._kills)

    def _one(self, torn: Torn, work: str) -> None:
        if work == "command-detach":
            leave_patched(torn)
        torn.is_unsure()
        with _at_work(work, torn) as tool:
            after_s = wait_for_moment(torn, tool, work, self._random)
            where = f"{work}, target killed after {after_s * 1e3:.1f} ms"
            if torn.process.poll() is not None:
                self._kills.wrong(f"{where}: it was dead already, {torn.process.returncode}")
            torn.process.kill()
            torn.process.wait()
            self._kills.target += 1
            try:
                _, err = tool.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._kills.wrong(f"{where}: the tool does not end")
                return
        judge(self._kills, where, work, tool.returncode, err)


def kill_all(
    program: Path, tools: int, targets: int, seed: int, tick: Callable[[Kills], None]
) -> Kills:
    """Kill so many of each; whatever is wrong stands in the result."""
    kills = Kills()
    ToolKills(program, kills, seed).run(tools, tick)
    TargetKills(program, kills, seed).run(targets, tick)
    return kills
