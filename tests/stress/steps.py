# SPDX-License-Identifier: Apache-2.0
"""Death at every step: the tool, or its target, is killed at the k-th call of a function, every k.

The functions are those through which the tool acts on its target and learns of it
(tests/targets/killer.c): ptrace (a thread is held), syscall (commands to the agent), waitpid,
reads and writes of memory, files of proc, the hand-over of descriptors.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kills import Before, Kills, clean, compare, judge, leave_patched
from torn import PATIENCE_S, TARGETS, Torn, Violation

import textpoke

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CALLS = ("ptrace", "syscall", "waitpid", "pread64", "pwrite64", "open64", "sendmsg")
VERBS = ("record", "detach")
VICTIMS = ("tool", "target")


def build(directory: Path) -> Path:
    """Compile what is preloaded into the tool."""
    library = directory / "killer.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", str(TARGETS / "killer.c"), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    return library


class StepKills:
    """Every step of attach, batch, record and detach.

    Args:
        program: The torn-execution target.
        killer: What is preloaded into the tool.
        kills: Takes the results.
        share: The part of all steps that is tried, evenly; 1.0 for every one.
        seed: Where the even part begins.
    """

    def __init__(self, program: Path, killer: Path, kills: Kills, share: float, seed: int) -> None:
        self._program = program
        self._killer = killer
        self._kills = kills
        self._share = share
        self._random = random.Random(seed)

    def run(
        self,
        tick: Callable[[Kills], None],
        victims: Sequence[str] = VICTIMS,
        verbs: Sequence[str] = VERBS,
        calls: Sequence[str] = CALLS,
    ) -> None:
        """Kill these victims at these verbs in these calls."""
        for verb in verbs:
            for call in calls:
                steps = self._steps(self._count(verb, call))
                for victim in victims:
                    (self._tools if victim == "tool" else self._targets)(verb, call, steps, tick)

    def _steps(self, count: int) -> list[int]:
        if count == 0:
            return []
        wanted = max(1, round(count * self._share))
        first = self._random.random()
        return sorted({1 + int((i + first) * count / wanted) for i in range(wanted)})

    def _count(self, verb: str, call: str) -> int:
        """How many steps there are; only some calls of a whole run are missed by its chance."""
        with Torn(self._program, 1) as torn:
            path = Path(f"{torn.path}.count")
            self._prepare(verb, torn)
            code, err = self._tool(verb, torn, call, {"KILL_COUNT": str(path)})
            if code:
                raise Violation(f"{verb} ended with {code}: {err}")
            try:
                return int(path.read_text())
            finally:
                path.unlink()

    def _prepare(self, verb: str, torn: Torn) -> None:
        torn.is_unsure()
        if verb == "detach":
            leave_patched(torn)

    def _tool(self, verb: str, torn: Torn, call: str, variables: dict[str, str]) -> tuple[int, str]:
        words = [verb, "-p", str(torn.pid)]
        output = f"{torn.path}.tptrace"
        if verb == "record":
            words += ["-q", "-f", "-o", output, "-d", "10ms"]
        preload = {"LD_PRELOAD": str(self._killer), "KILL_IN": call}
        done = subprocess.run(
            [sys.executable, "-m", "textpoke", *words],
            env={**os.environ, **preload, "KILL_FROM": f"/proc/{torn.pid}", **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(output)
        return done.returncode, done.stderr

    def _tools(self, verb: str, call: str, steps: list[int], tick: Callable[[Kills], None]) -> None:
        left = list(steps)
        while left:
            with Torn(self._program, 1) as torn:
                before = Before.of(torn)
                while left and not self._kills.violations:
                    self.one_tool(torn, verb, call, left.pop(0), before)
                    tick(self._kills)
                torn.finish(self._kills.counts)
            if self._kills.violations:
                return

    def one_tool(self, torn: Torn, verb: str, call: str, step: int, before: Before) -> None:
        """Kill a tool at one step, clean up, compare."""
        where = f"{verb}, tool killed at {call} {step}"
        self._prepare(verb, torn)
        try:
            code, err = self._tool(verb, torn, call, {"KILL_AT": str(step)})
            if code not in (-9, 0) or err:
                self._kills.wrong(f"{where}: it ended with {code}: {err[-600:]}")
            self._kills.tool += code == -9
            self._kills.add("by_work", f"{verb} {call} tool")
            clean(self._kills, torn, where, by_attaching=step % 2 == 0)
            compare(self._kills, torn, where, before)
        except (Violation, textpoke.TextpokeError, subprocess.TimeoutExpired) as exc:
            self._kills.wrong(f"{where}: {type(exc).__name__}: {exc}")

    def _targets(
        self, verb: str, call: str, steps: list[int], tick: Callable[[Kills], None]
    ) -> None:
        for step in steps:
            with Torn(self._program, 1) as torn:
                self._prepare(verb, torn)
                where = f"{verb}, target killed at {call} {step}"
                victim = {"KILL_AT": str(step), "KILL_PID": str(torn.pid)}
                try:
                    code, err = self._tool(verb, torn, call, victim)
                except subprocess.TimeoutExpired:
                    self._kills.wrong(f"{where}: the tool does not end")
                    continue
                judge(self._kills, where, verb, code, err)
                self._kills.target += torn.process.poll() is not None
                self._kills.add("by_work", f"{verb} {call} target")
            tick(self._kills)
