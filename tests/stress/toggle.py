# SPDX-License-Identifier: Apache-2.0
"""Toggle the sites of the torn-execution target under 1, 2, 8 and 64 hot threads.

Meanwhile the tracer is switched on and off in the same program, exactly counted, and we leave and
come back, with the threads running.
"""

from __future__ import annotations

import dataclasses
import random
import time
from typing import TYPE_CHECKING

from torn import NEW, OLD, UNSURE, Chooser, Counts, Torn, Violation

import textpoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textpoke import Target

THREADS = (1, 2, 8, 64)
_TRACE_EVERY_S, _SESSION_S, _RINGS = 0.7, 6.0, 96
_QUEUED = 0.05  # of all batches go through the public class


def causes(exc: BaseException | None) -> list[str]:
    """An exception and what came before it, the first one first."""
    if exc is None:
        return []
    return [*causes(exc.__context__), f"{type(exc).__name__}: {exc}"]


class Stage:
    """One target with so many threads."""

    def __init__(self, program: Path, threads: int, seconds: float, seed: int) -> None:
        self.counts = Counts()
        self._deadline = time.monotonic() + seconds
        self._random = random.Random(seed)
        self._torn = Torn(program, threads, life_s=int(seconds) + 120)
        self._chooser = Chooser(len(self._torn.slots), seed)

    def run(self, tick: Callable[[Counts], None]) -> Counts:
        """Until the time is over; what went wrong is in the counts."""
        with self._torn as torn:
            try:
                while time.monotonic() < self._deadline and torn.alive:
                    self._session(tick)
                    if self._bad():
                        break
            except (Violation, textpoke.TextpokeError) as exc:
                self.counts.violations += causes(exc)
            torn.finish(self.counts)
        return self.counts

    def _bad(self) -> bool:
        return self._torn.wrong() or bool(self.counts.violations)

    def _session(self, tick: Callable[[Counts], None]) -> None:
        end = min(self._deadline, time.monotonic() + _SESSION_S)
        with textpoke.attach(self._torn.pid, rings=_RINGS) as target:
            self.counts.attaches += 1
            exact = True
            while time.monotonic() < end and not self._bad():
                self._toggle_until(target, time.monotonic() + _TRACE_EVERY_S)
                (self._trace_exactly if exact else self._trace_hot)(target)
                exact = not exact
                made = int(self._torn.tallies["made"].sum())
                tick(dataclasses.replace(self.counts, calls=made))
            # What only a handler can stand in for, only a batch with that handler can undo.
            if len(back := self._torn.handled_and_new()):
                self._torn.toggle(target, back, self.counts)
            self._torn.is_unsure()
        self._torn.is_old()
        if target.report is None or target.report.residue:
            raise Violation(f"after a detach there is left: {target.report}")

    def _toggle_until(self, target: Target, end: float) -> None:
        while time.monotonic() < end:
            self._toggle(target)

    def _toggle(self, target: Target) -> None:
        chosen = self._chooser.next()
        if self._random.random() < _QUEUED:
            self._torn.toggle_queued(target, chosen[:500], self.counts)
        else:
            self._torn.toggle(target, chosen, self.counts)

    def _trace_exactly(self, target: Target) -> None:
        """Threads rest while it is switched: every call is an event or counted as lost."""
        with self._torn.held():
            before = self._torn.traced()  # now no thread is in the middle of a call
            trace = target.trace("traced_*")
            trace.start()
            self._torn.say_traced(NEW)
        for _ in range(10):
            self._toggle(target)
            trace.drain()
        with self._torn.held():
            trace.stop()
            self._torn.say_traced(OLD)
        after = self._torn.traced()
        made = after[2] - before[2]
        self._account(trace, made, made)
        if after[0] != before[0]:
            raise Violation("a call ran while nobody was to run")

    def _trace_hot(self, target: Target) -> None:
        """Threads run on: calls that began and ended under the trace are all there."""
        for _ in range(10):
            trace = target.trace("traced_*")
            self._torn.say_traced(UNSURE)
            first = self._torn.traced()
            trace.start()
            self._torn.say_traced(NEW)
            self._toggle(target)
            trace.drain()
            self._torn.say_traced(UNSURE)
            trace.stop()
            self._torn.say_traced(OLD)
            with self._torn.held():
                pass  # a thread's last call is counted when it rests
            last = self._torn.traced()
            sure, unsure = last[2] - first[2], last[0] - first[0]
            self._account(trace, sure, sure + unsure + self._torn.threads)

    def _account(self, trace: textpoke.Trace, least: int, most: int) -> None:
        seen = trace.events + trace.lost
        self.counts.events += trace.events
        self.counts.lost_events += trace.lost
        self.counts.trace_rounds += 1
        for outcome in (trace.on, trace.off):
            if outcome is not None:
                self.counts.note(outcome)
        if not least <= seen <= most:
            lost = f"{trace.events} events and {trace.lost} lost"
            raise Violation(f"{least} to {most} calls were made under a trace, {lost} were seen")
