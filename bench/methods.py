# SPDX-License-Identifier: Apache-2.0
"""Three ways to switch sites on and off: one batch, one by one, all threads stopped by ptrace."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common import build_helper, median
from subject import Sample, Subject
from targets.many import BUILD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_SITE = struct.Struct("<QB15s15sx")  # struct site of stop_world.c


class Method(Protocol):
    """A way to switch all sites of a subject."""

    name: str

    def pairs(self, subject: Subject, budget_s: float, most: int) -> list[Sample]:
        """On and off for `budget_s` seconds, at least once, at most `most` times."""
        ...

    def toggling(
        self, subject: Subject, seconds: float, hz: float
    ) -> AbstractContextManager[Callable[[], int]]:
        """Gives what goes on and off `hz` times a second, or as often as it can: says how often."""
        ...


class Batch:
    """All sites in one run of the protocol."""

    name = "batch"
    one_by_one = False

    def pairs(self, subject: Subject, budget_s: float, most: int) -> list[Sample]:
        """See `Method`."""
        samples: list[Sample] = []
        end = time.monotonic() + budget_s
        while not samples or (len(samples) < 2 * most and time.monotonic() < end):
            samples += self._pair(subject)
        return samples

    @contextlib.contextmanager
    def toggling(self, subject: Subject, seconds: float, hz: float) -> Iterator[Callable[[], int]]:
        """See `Method`."""
        yield lambda: self.toggle(subject, seconds, hz)

    def toggle(self, subject: Subject, seconds: float, hz: float) -> int:
        """On and off `hz` times a second, or as often as it goes. Returns how often."""
        start = time.monotonic()
        done = 0
        while time.monotonic() < start + seconds:
            self._pair(subject)
            done += 1
            time.sleep(max(0.0, start + done / hz - time.monotonic()))
        return done

    def _pair(self, subject: Subject) -> list[Sample]:
        return [subject.switch(on=on, one_by_one=self.one_by_one) for on in (True, False)]


class OneByOne(Batch):
    """The same engine, a run of the protocol for each site."""

    name = "one by one"
    one_by_one = True


class StopWorld:
    """All threads stopped by ptrace, a write a page, let go (stop_world.c); no agent needed."""

    name = "ptrace stop"
    _GUESS_S = 0.02  # for one pair

    def pairs(self, subject: Subject, budget_s: float, most: int) -> list[Sample]:
        """See `Method`; the number of pairs is guessed beforehand."""
        count = max(1, min(most, int(budget_s / self._GUESS_S)))
        with self._helper(subject, count, 0) as helper:
            return [_sample(line) for line in _run(helper)]

    @contextlib.contextmanager
    def toggling(self, subject: Subject, seconds: float, hz: float) -> Iterator[Callable[[], int]]:
        """See `Method`."""
        with self._helper(subject, max(1, round(seconds * hz)), round(hz)) as helper:

            def toggle() -> int:
                start = time.monotonic()
                done = len(_run(helper)) // 2
                time.sleep(max(0.0, start + seconds - time.monotonic()))
                return done

            yield toggle

    @contextlib.contextmanager
    def _helper(self, subject: Subject, pairs: int, hz: int) -> Iterator[subprocess.Popen[str]]:
        """The helper, ready to begin; its loading of the sites is not part of any time."""
        pid, agent = subject.many.pid, subject.target.agent.tid
        with tempfile.NamedTemporaryFile(dir=BUILD) as file:
            for p in subject.plan.sites:
                file.write(_SITE.pack(p.site.address, len(p.off), p.off, p.on))
            file.flush()
            numbers = (str(pairs), str(hz))
            with subprocess.Popen(
                [build_helper("stop_world"), str(pid), str(agent), file.name, *numbers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as helper:
                try:
                    assert helper.stdout is not None
                    if helper.stdout.readline() != "ready\n":
                        raise RuntimeError("stop_world did not start")
                    yield helper
                finally:
                    helper.kill()


def _run(helper: subprocess.Popen[str]) -> list[str]:
    answer, _ = helper.communicate("go\n")
    if helper.returncode:
        raise RuntimeError(f"stop_world ended with {helper.returncode}")
    return answer.splitlines()


def _sample(line: str) -> Sample:
    total_ns, _stop, _write, _release, _threads, writes, inside = map(int, line.split())
    return Sample(total_ns, total_ns, None, writes, inside)


@dataclass(frozen=True, slots=True)
class Throughput:
    """What the hot threads get done while sites are toggled, against before and after.

    Attributes:
        calls_ratio: Calls per second of wall time.
        cpu_ratio: Calls per second of their own CPU time: what is lost without being stopped
            or kept from the CPU by the tool.
        hz: Times on and off per second that came about.
        calls_per_s: Calls per second without toggling.
    """

    calls_ratio: float
    cpu_ratio: float
    hz: float
    calls_per_s: float


@dataclass(frozen=True, slots=True)
class _Rate:
    calls_per_s: float
    calls_per_cpu_s: float
    hz: float


def throughput(
    method: Method, subject: Subject, seconds: float, windows: int, hz: float = 10.0
) -> Throughput:
    """Windows of `seconds` without and with toggling, turn by turn, in one run; medians."""
    quiet = [_rate(subject, None, seconds, hz)]
    busy = []
    for _ in range(windows):
        busy.append(_rate(subject, method, seconds, hz))
        quiet.append(_rate(subject, None, seconds, hz))
    return Throughput(
        _ratio([r.calls_per_s for r in quiet], [r.calls_per_s for r in busy]),
        _ratio([r.calls_per_cpu_s for r in quiet], [r.calls_per_cpu_s for r in busy]),
        median(b.hz for b in busy),
        median(q.calls_per_s for q in quiet),
    )


def _ratio(quiet: list[float], busy: list[float]) -> float:
    """The median of each busy window against the mean of the quiet ones around it."""
    around = zip(busy, quiet, quiet[1:], strict=False)
    return median(2 * b / (before + after) for b, before, after in around)


def _rate(subject: Subject, method: Method | None, seconds: float, hz: float) -> _Rate:
    with contextlib.ExitStack() as stack:
        toggle = stack.enter_context(method.toggling(subject, seconds, hz)) if method else None
        before, start = subject.many.tallies(), time.perf_counter()
        done = toggle() if toggle else 0
        if not toggle:
            time.sleep(seconds)
        elapsed_s = time.perf_counter() - start
        pairs = list(zip(before, subject.many.tallies(), strict=True))
    calls = sum(b.calls - a.calls for a, b in pairs)
    clock_calls = sum(b.clock_calls - a.clock_calls for a, b in pairs)
    clock_ns = sum(b.clock_ns - a.clock_ns for a, b in pairs)
    return _Rate(calls / elapsed_s, clock_calls / max(clock_ns, 1) * 1e9, done / elapsed_s)
