# SPDX-License-Identifier: Apache-2.0
"""Attach, poke, trace, detach, a thousand times on one loaded process: nothing may be left.

The state after the first cycle is what the others are compared with: pages of text that were
written once stay private copies (equal to the file) for ever, and stacks have held a signal frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torn import OLD, UNSURE, Chooser, Counts, Torn, Violation

import textpoke

if TYPE_CHECKING:
    from collections.abc import Callable

_THREADS, _SLACK_PAGES, _WARM = 2, 8, 3
_SIGNALS = ("SigCgt", "SigIgn", "SigBlk")


@dataclass(frozen=True)
class Facts:
    """What a detach must leave as it was; memory in KiB."""

    maps: tuple[str, ...]
    threads: tuple[str, ...]
    files: tuple[str, ...]
    signals: tuple[str, ...]
    dirty_text_kib: int
    anonymous_kib: int
    rss_kib: int

    def differences(self, now: Facts) -> list[str]:
        """One line for everything that is not as it was."""
        found = [
            f"{name}: {sorted(set(was) ^ set(is_))[:6]}"
            for name in ("maps", "threads", "files", "signals")
            if (was := getattr(self, name)) != (is_ := getattr(now, name))
        ]
        if now.dirty_text_kib > self.dirty_text_kib:
            found.append(f"dirty text: {self.dirty_text_kib} -> {now.dirty_text_kib} KiB")
        # A stack may be used a little deeper by chance; a leak grows with the cycles.
        if now.anonymous_kib > self.anonymous_kib + 4 * _SLACK_PAGES:
            found.append(f"anonymous memory: {self.anonymous_kib} -> {now.anonymous_kib} KiB")
        return found


def _smaps(pid: int) -> tuple[list[str], int, int, int]:
    names: list[str] = []
    dirty_text = anonymous = rss = 0
    perms = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        word, *values = line.split()
        if not word.endswith(":"):
            perms = values[0]
            grows = line.endswith(("[heap]", "[stack]"))
            names.append(line.split()[-1] if grows else line)
        elif word == "Rss:":
            rss += int(values[0])
        elif word == "Anonymous:":
            anonymous += int(values[0])
        elif word == "Private_Dirty:" and "x" in perms:
            dirty_text += int(values[0])
    return names, dirty_text, anonymous, rss


def facts(pid: int) -> Facts:
    """Read them."""
    names, dirty_text, anonymous, rss = _smaps(pid)
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return Facts(
        tuple(names),
        tuple(sorted(os.listdir(f"/proc/{pid}/task"))),
        tuple(f"{n} {os.readlink(f'/proc/{pid}/fd/{n}')}" for n in os.listdir(f"/proc/{pid}/fd")),
        tuple(line for line in status if line.startswith(_SIGNALS)),
        dirty_text,
        anonymous,
        rss,
    )


@dataclass
class Soak:
    """The result.

    Attributes:
        cycles: Attach-detach cycles done.
        residue: Lines of residue and of differences to the state after the first cycle.
        first: Facts after the first cycle, `last` after the last one.
        tool_files: Open files of this process before and after; `tool_rss_kib` its memory.
    """

    cycles: int = 0
    residue: list[str] = field(default_factory=list)
    first: Facts | None = None
    last: Facts | None = None
    worst_hold_us: float = 0.0
    hold_us: list[float] = field(default_factory=list)
    tool_files: tuple[int, int] = (0, 0)
    tool_rss_kib: tuple[int, int] = (0, 0)
    counts: Counts = field(default_factory=Counts)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        first, last = self.first, self.last
        assert first is not None
        assert last is not None
        return {
            "cycles": self.cycles,
            "residue": len(self.residue),
            "residue_lines": self.residue[:20],
            "anonymous_kib": [first.anonymous_kib, last.anonymous_kib],
            "dirty_text_kib": [first.dirty_text_kib, last.dirty_text_kib],
            "rss_kib": [first.rss_kib, last.rss_kib],
            "mappings": [len(first.maps), len(last.maps)],
            "threads": [len(first.threads), len(last.threads)],
            "files": [len(first.files), len(last.files)],
            "tool_files": self.tool_files,
            "tool_rss_kib": self.tool_rss_kib,
            "hold_us_median": float(np.median(self.hold_us)),
            "hold_us_worst": max(self.hold_us),
            "counts": vars(self.counts),
        }


def _cycle(torn: Torn, chooser: Chooser, soak: Soak) -> None:
    first = soak.cycles == 0
    with textpoke.attach(torn.pid) as target:
        for _ in range(6 if first else 2):
            chosen = np.arange(len(torn.slots)) if first else chooser.next()
            torn.toggle(target, chosen, soak.counts)
        if first or soak.cycles % 2:
            torn.say_traced(UNSURE)
            with target.trace("traced_*") as trace:
                trace.drain()
            soak.counts.events += trace.events
            torn.say_traced(OLD)
        if len(back := torn.handled_and_new()):
            torn.toggle(target, back, soak.counts)
        torn.is_unsure()
    torn.is_old()
    soak.counts.attaches += 1
    soak.hold_us.append(target.hold_ns / 1e3)
    assert target.report is not None
    soak.residue += [f"cycle {soak.cycles}: {line}" for line in target.report.residue]
    if target.report.left_alone or target.report.foreign:
        soak.residue.append(f"cycle {soak.cycles}: {target.report.as_dict()}")


def soak(program: Path, cycles: int, seed: int, tick: Callable[[Soak], None]) -> Soak:
    """Run the cycles; whatever is wrong stands in the result."""
    result = Soak()
    with Torn(program, _THREADS, life_s=120 + 2 * cycles) as torn:
        chooser = Chooser(len(torn.slots), seed)
        before = facts(torn.pid)
        tool_before = _tool()
        try:
            while result.cycles < cycles and torn.alive:
                _cycle(torn, chooser, result)
                result.cycles += 1
                result.last = facts(torn.pid)
                if result.cycles == 1:
                    result.first = result.last
                    result.residue += _same_outside_memory(before, result.last)
                elif wrong := result.first.differences(result.last):
                    result.residue += [f"cycle {result.cycles}: {line}" for line in wrong]
                if result.cycles == _WARM:
                    tool_before = _tool()
                tick(result)
        except (Violation, textpoke.TextpokeError) as exc:
            result.counts.violations.append(f"cycle {result.cycles}: {type(exc).__name__}: {exc}")
        tool_after = _tool()
        result.tool_files = (tool_before[0], tool_after[0])
        result.tool_rss_kib = (tool_before[1], tool_after[1])
        torn.finish(result.counts)
    return result


def _same_outside_memory(before: Facts, after: Facts) -> list[str]:
    return [
        f"cycle 1: {name} differ"
        for name in ("maps", "threads", "files", "signals")
        if getattr(before, name) != getattr(after, name)
    ]


def _tool() -> tuple[int, int]:
    status = Path("/proc/self/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    return len(os.listdir("/proc/self/fd")), rss
