# SPDX-License-Identifier: Apache-2.0
"""Keeps what tracing costs the target within a budget: which functions to switch off, and on again.

Pure policy: somebody counts calls per function and asks once an interval. Over budget, the hottest
functions go first, as few as make the rest fit. One that is off is not seen, so its cost is
guessed: what it was, scaled by how much the process does now. It comes back when that leaves room,
and not before its back-off is over, which doubles each time that it had to go again soon. Where the
guess says that it will never fit, it is tried all the same, now and then: calls come and go. Such
trials together may cost a twentieth of the budget; they widen while they turn out well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Names: TypeAlias = Callable[[int], str]
_NS = 1_000_000_000
_BUDGET = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%(?: of (core|process))?", re.ASCII)
_ROOM = 0.7
"""Functions come back while the load is below this part of the budget."""
_TRIALS = 0.05
"""Part of the budget that may go into trials."""
_IDLE_CORES = 0.01
"""What a process is taken to use at least, or an idle one could never be traced."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What tracing may cost: a share of one core, or of the CPU time that the process uses.

    Attributes:
        share: From 0 to 1.
        of_process: Of the process's CPU time, not of one core.
    """

    share: float
    of_process: bool = False

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "5%", "5% of core" or "5% of process". Raises ValueError."""
        match = _BUDGET.fullmatch(text.strip())
        if match is None or not 0 < float(match[1]) <= 100:
            raise ValueError(f"{text!r} is no budget: write 5%, or 5% of process")
        return cls(float(match[1]) / 100, match[2] == "process")

    def ns_per_s(self, cores: float) -> float:
        """Nanoseconds a second for a process that uses so many cores."""
        return self.share * _NS * (max(cores, _IDLE_CORES) if self.of_process else 1.0)

    def __str__(self) -> str:
        return f"{self.share * 100:g}% of {'process' if self.of_process else 'core'}"


@dataclass(frozen=True, slots=True)
class Step:
    """A function to switch: its return address, and a line for the capture's notes."""

    site: int
    note: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now; the caller does it before the next interval begins."""

    off: list[Step] = field(default_factory=list)
    on: list[Step] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.off or self.on)


@dataclass(slots=True)
class _Off:
    cost: float  # ns a second, when it was last seen
    cores: float  # that the process used then
    retry_s: float
    back_off_s: float


@dataclass(slots=True)
class _Back:
    since_s: float
    back_off_s: float
    is_trial: bool


class Governor:
    """Decides once an interval; all times are the caller's, in seconds.

    Args:
        budget: What tracing may cost.
        back_off_s: How long a function stays off at least.
        most_back_off_s: What that may double to.
        name: Names a return address, for the notes.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        back_off_s: float = 2.0,
        most_back_off_s: float = 120.0,
        name: Names = hex,
    ) -> None:
        self.budget = budget
        self._back_off_s = back_off_s
        self._most_back_off_s = most_back_off_s
        self._name = name
        self._off: dict[int, _Off] = {}
        self._back: dict[int, _Back] = {}
        self._next_trial_s = 0.0
        self._width = 1

    @property
    def off(self) -> set[int]:
        """The functions that are off now."""
        return set(self._off)

    def forget(self, site: int) -> None:
        """A function is gone, or nobody wants it any more."""
        self._off.pop(site, None)
        self._back.pop(site, None)

    def step(
        self,
        now_s: float,
        seconds: float,
        cpu_ns: float,
        calls: Mapping[int, int],
        cost_ns: float,
    ) -> Decision:
        """Look at one interval.

        Args:
            now_s: Its end.
            seconds: Its length.
            cpu_ns: CPU time that the process used in it.
            calls: Calls of each function that is on, by return address.
            cost_ns: What one call costs the target by the tracer that runs.
        """
        cores = cpu_ns / seconds / _NS
        limit = self.budget.ns_per_s(cores)
        costs = {
            site: count * cost_ns / seconds
            for site, count in calls.items()
            if count and site not in self._off  # the last calls of what has just gone off
        }
        load = sum(costs.values())
        self._settle_trials(now_s, seconds, costs, limit, load)
        if load > limit:
            return Decision(off=self._shed(now_s, costs, cores, limit, load))
        return Decision(on=self._restore(now_s, cores, limit, load))

    def _settle_trials(
        self, now_s: float, seconds: float, costs: Mapping[int, float], limit: float, load: float
    ) -> None:
        trials = [site for site, back in self._back.items() if back.is_trial]
        if trials:
            spent = sum(costs.get(site, 0.0) for site in trials) * seconds
            wait_s = spent / (_TRIALS * limit) if load > limit else 0.0
            self._next_trial_s = max(self._next_trial_s, now_s + wait_s)
            self._width = self._width * 2 if load <= limit else 1
        for site, back in list(self._back.items()):
            back.is_trial = False
            if now_s - back.since_s >= back.back_off_s:
                del self._back[site]  # it has stayed: it begins anew

    def _shed(
        self, now_s: float, costs: Mapping[int, float], cores: float, limit: float, load: float
    ) -> list[Step]:
        found = []
        for site in sorted(costs, key=lambda site: (-costs[site], site)):
            if load <= limit:
                break
            back = self._back.pop(site, None)
            back_off_s = back.back_off_s * 2 if back else self._back_off_s
            back_off_s = min(back_off_s, self._most_back_off_s)
            self._off[site] = _Off(costs[site], cores, now_s + back_off_s, back_off_s)
            note = (
                f"governor: {self._name(site)} off: it cost {costs[site] / _NS:.2%} of a core, "
                f"all together {load / _NS:.2%}, the budget is {self.budget} "
                f"({limit / _NS:.2%} of a core); back in {back_off_s:g} s at the earliest"
            )
            load -= costs[site]
            found.append(Step(site, note))
        return found

    def _restore(self, now_s: float, cores: float, limit: float, load: float) -> list[Step]:
        room = limit * _ROOM - load
        ready = [site for site, off in self._off.items() if off.retry_s <= now_s]
        guesses = {site: self._guess(self._off[site], cores) for site in ready}
        found = []
        trials = 0
        for site in sorted(ready, key=lambda site: (guesses[site], site)):
            if guesses[site] <= room:
                room -= guesses[site]
                found.append(self._bring_back(site, now_s, guesses[site], is_trial=False))
            elif now_s >= self._next_trial_s and room > 0 and trials < self._width:
                trials += 1
                found.append(self._bring_back(site, now_s, guesses[site], is_trial=True))
        return found

    @staticmethod
    def _guess(off: _Off, cores: float) -> float:
        # Only downwards: a busier process may be busy with something else.
        return off.cost * min(cores / off.cores, 1.0) if off.cores > 0 else off.cost

    def _bring_back(self, site: int, now_s: float, guess: float, *, is_trial: bool) -> Step:
        off = self._off.pop(site)
        self._back[site] = _Back(now_s, off.back_off_s, is_trial)
        how = "tried again, it once cost" if is_trial else "on again, there is room for some"
        return Step(site, f"governor: {self._name(site)} {how} {guess / _NS:.2%} of a core")
