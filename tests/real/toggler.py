# SPDX-License-Identifier: Apache-2.0
"""Toggle every site of every process of some programs at 20 Hz, as they come and go.

One thread looks for processes, each target has a thread of its own. Nothing here ever fails a test
of the suite that it disturbs: what went wrong is counted and shown.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import textpoke
from textpoke.engine import run_request
from textpoke.modes import Mode
from textpoke.poke import Outcome, Request, poke_of
from textpoke.process_sites import module_sites
from textpoke.ring import OVERWRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from textpoke.model import Module, Site
    from textpoke.plan import Plan

HZ = 20
STAY_S = 4.0  # then attach anew: modules have come meanwhile, and leaving is tested too
LOOK_S = 0.02
AGAIN_S = 0.25  # after a refusal
MOST_AT_ONCE = 6  # the machine must have time left for the suite
RING_BYTES = 64 << 10
RINGS = 64
_GONE = (textpoke.TargetExited, textpoke.NoSuchTarget, FileNotFoundError, ProcessLookupError)


class Tally:
    """What the toggler did, over all processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.processes: set[int] = set()
        self.attaches = self.exits = self.toggles = self.pokes = self.traps = 0
        self.late_traps = self.most_sites = 0
        self.modes: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.residues: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def attached(self, pid: int, sites: int) -> None:
        with self._lock:
            self.processes.add(pid)
            self.attaches += 1
            self.most_sites = max(self.most_sites, sites)

    def toggled(self, outcome: Outcome) -> None:
        with self._lock:
            self.toggles += 1
            self.pokes += outcome.finished
            self.traps += outcome.traps
            self.late_traps += outcome.late_traps
            self.modes.update(str(choice.mode) for choice in outcome.choices)

    def exited(self) -> None:
        with self._lock:
            self.exits += 1

    def refused(self, refusal: textpoke.TextpokeError) -> None:
        """Count it by class and reason, without what tells processes apart."""
        reason = str(refusal)
        if isinstance(refusal, textpoke.UnsupportedTarget):
            reason = refusal.reason
        elif isinstance(refusal, textpoke.BytesDiffer):
            reason = f"not the file's bytes, {refusal.owner}"
        with self._lock:
            self.refusals[f"{type(refusal).__name__}: {_without_numbers(reason)}"] += 1

    def left(self, residue: Iterable[str]) -> None:
        with self._lock:
            self.residues.update(_without_numbers(line) for line in residue)

    def failed(self) -> None:
        """An exception that is none of textpoke's: our mistake."""
        with self._lock:
            self.errors[traceback.format_exc()] += 1

    def lines(self) -> list[str]:
        """What a test's figures say."""
        modes = ", ".join(f"{n:,} {mode}" for mode, n in self.modes.most_common())
        counts = (
            f"{self.toggles:,} batches ({modes}), {self.pokes:,} site-pokes, {self.traps:,} traps "
            f"({self.late_traps:,} late), {self.attaches:,} attaches to {len(self.processes):,} "
            f"processes, up to {self.most_sites:,} sites, {self.exits:,} ended under us"
        )
        kinds = (("refused", self.refusals), ("left behind", self.residues), ("!", self.errors))
        more = [f"{kind} {n:,} times: {what}" for kind, c in kinds for what, n in c.most_common()]
        return [counts, *more]


def _without_numbers(text: str) -> str:
    return " ".join("N" if any(c.isdigit() for c in w) else w for w in text.split())[:160]


class Toggler:
    """A context manager: toggles every process of `programs` while its block lasts.

    Args:
        programs: Executables; a process counts when it runs one of these very files.
        mode: How their sites are written.
        hz: How often a second all are on and off again.
        find: Gives the sites of a module of a process; by default those with compiler NOPs.
        only: Tells which processes of the programs; by default all.
    """

    def __init__(
        self,
        programs: Iterable[Path],
        mode: Mode = Mode.AUTO,
        *,
        hz: float = HZ,
        find: Callable[[int, Module], list[Site]] = module_sites,
        only: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.tally = Tally()
        self._mode = mode
        self._half_s = 0.5 / hz
        self._find, self._only = find, only
        self._files = {_identity(str(path)) for path in programs}
        self._stop = threading.Event()
        self._workers: dict[int, threading.Thread] = {}
        self._not_before_s: dict[int, float] = {}
        self._known_sites: dict[tuple[int, int] | None, list[Site]] = {}
        self._looker = threading.Thread(target=self._look_again_and_again, name="toggler")

    def __enter__(self) -> Self:
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._looker.join()
        for worker in self._workers.values():
            worker.join()

    def _look_again_and_again(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._workers = {p: w for p, w in self._workers.items() if w.is_alive()}
            for pid in self._waiting():
                if len(self._workers) >= MOST_AT_ONCE:
                    break
                worker = threading.Thread(target=self._work, args=(pid,), name=f"toggler-{pid}")
                self._workers[pid] = worker
                worker.start()

    def _waiting(self) -> list[int]:
        """Processes of the programs that nobody toggles, the ones never toggled first."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        now_s = time.monotonic()
        found = [
            pid
            for pid in pids
            if pid not in self._workers
            and self._not_before_s.get(pid, 0.0) <= now_s
            and _identity(f"/proc/{pid}/exe") in self._files
            and self._only(pid)
        ]
        return sorted(found, key=lambda pid: pid in self.tally.processes)

    def _work(self, pid: int) -> None:
        try:
            self._attach_and_toggle(pid)
        except _GONE:
            self.tally.exited()
        except textpoke.TextpokeError as refusal:
            self._note(pid, refusal)
        except Exception:  # noqa: BLE001 - the suite goes on; the test that owns us looks
            self.tally.failed()

    def _note(self, pid: int, refusal: textpoke.TextpokeError) -> None:
        # A process that is ending refuses for many reasons; only one that lives on counts.
        if _identity(f"/proc/{pid}/exe") in self._files:
            self.tally.refused(refusal)
            self._not_before_s[pid] = time.monotonic() + AGAIN_S
        else:
            self.tally.exited()

    def _attach_and_toggle(self, pid: int) -> None:
        with textpoke.attach(pid, ring_bytes=RING_BYTES, rings=RINGS) as target:
            plan = target.prepare(self._sites_of(target))
            target.merge(plan)
            target.agent.record(on=True, waiting=OVERWRITE)
            self.tally.attached(pid, len(plan.sites))
            self._toggle(target, plan)
        if target.report is not None:
            self.tally.left(target.report.residue)

    def _sites_of(self, target: textpoke.Target) -> list[Site]:
        """What `target.sites()` finds, each file read once for all processes."""
        found = []
        for module in target.modules:
            file = _identity(module.path)
            if file not in self._known_sites:
                read = [s for s in self._find(target.pid, module) if s.patchable]
                self._known_sites[file] = [_moved(s, -module.bias) for s in read]
            found += [_moved(s, module.bias) for s in self._known_sites[file]]
        return found

    def _toggle(self, target: textpoke.Target, plan: Plan) -> None:
        switch = Switch(target, plan, self._mode)
        began_s = next_s = time.monotonic()
        while not self._stop.is_set() and time.monotonic() < began_s + STAY_S:
            with self._refusals_counted(target.pid):
                self.tally.toggled(switch.flip())
            next_s = max(next_s + self._half_s, time.monotonic())
            time.sleep(next_s - time.monotonic() if next_s > time.monotonic() else 0)

    @contextlib.contextmanager
    def _refusals_counted(self, pid: int) -> Iterator[None]:
        """A refused batch has written nothing: count it and go on."""
        try:
            yield
        except _GONE:
            raise
        except (textpoke.BatchRefused, textpoke.UnsupportedTarget) as refusal:
            if _identity(f"/proc/{pid}/exe") not in self._files:
                raise
            self.tally.refused(refusal)


class Switch:
    """Switches the sites of a plan on and off; who has a thread inside is left out of that turn."""

    def __init__(self, target: textpoke.Target, plan: Plan, mode: Mode = Mode.AUTO) -> None:
        self._agent, self._mode = target.agent, mode
        self._on, self._off = (
            Request.of(poke_of(planned, on=on) for planned in plan.sites) for on in (True, False)
        )
        self._back = self._off
        self.is_on = False

    def flip(self) -> Outcome:
        """On if they are off, off if they are on."""
        if self.is_on:
            outcome = run_request(self._agent, self._back, mode=self._mode, all_or_nothing=False)
        else:
            outcome = run_request(self._agent, self._on, mode=self._mode, leave_busy=True)
            left = set(outcome.left)
            there = [i for i in range(len(self._on.pokes)) if i not in left] if left else []
            self._back = self._off.part(there) if left else self._off
        self.is_on = not self.is_on
        return outcome


def _moved(site: Site, by: int) -> Site:
    return replace(site, address=site.address + by, entry=site.entry + by)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
