# SPDX-License-Identifier: Apache-2.0
"""A running program of tiny functions with textpoke in it, ready to be switched on and off."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from targets.many import CHUNK, ENDLESS, Many

from textpoke import tracer
from textpoke.engine import run_request
from textpoke.modes import Mode
from textpoke.poke import Outcome, Poke, Request

if TYPE_CHECKING:
    from types import TracebackType

    from textpoke.model import Site
    from textpoke.plan import Plan

__all__ = ["CHUNK", "ENDLESS", "Sample", "Subject", "complaints"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One switch, on or off.

    Attributes:
        total_ns: Its time in the target, as the engine says.
        wall_ns: Its time as the tool sees it, with the way there and back.
        outcome: What the engine says; None when another than ours did it.
        writes: Writes to text.
        inside: Times that a thread had to be let go again, being inside a site.
    """

    total_ns: int
    wall_ns: int
    outcome: Outcome | None = None
    writes: int = 0
    inside: int = 0


class Subject:
    """A `Many` with the agent in it, its functions found and planned; a context manager.

    Args:
        kind: A key of `many.KINDS`.
        sites: Functions, all of them sites.
        threads: Hot threads.
        quota: Calls that each may make at first.
        ring_bytes: Room for one thread's events.

    Attributes:
        prepare_ms: What planning and mapping pads took, before any batch.
        wrong: Threads that have counted a wrong result, known at the end.
        residue: What the detach has left, known at the end.
    """

    def __init__(
        self,
        kind: str,
        sites: int,
        threads: int,
        *,
        quota: int = ENDLESS,
        ring_bytes: int = 1 << 20,
    ) -> None:
        self.many = Many(kind, sites, threads, quota=quota)
        self.wrong: list[int] = []
        self.residue: list[str] = []
        self._ring_bytes = ring_bytes

    def __enter__(self) -> Self:
        self.many.__enter__()
        try:
            self._prepare()
        except BaseException:
            self.many.__exit__(None, None, None)
            raise
        return self

    def _prepare(self) -> None:
        self.target = tracer.attach(self.many.pid, ring_bytes=self._ring_bytes, rings=32)
        self.chosen: list[Site] = self.target.sites(self.many.pattern)
        start = time.perf_counter()
        self.plan: Plan = self.target.prepare(self.chosen)
        self.target.merge(self.plan)
        self.prepare_ms = (time.perf_counter() - start) * 1e3
        if len(self.plan.sites) != self.many.sites:
            raise RuntimeError(f"{len(self.plan.sites)} of {self.many.sites} sites, {self.plan}")
        sites = self.plan.sites
        self.on = Request.of(Poke(p.site.address, p.off, p.on) for p in sites)
        self.off = Request.of(Poke(p.site.address, p.on, p.off) for p in sites)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self.many.__exit__)
            if exc_type is None:
                self.residue = self.target.detach().residue
                self.wrong = self.many.wrong_threads()
            else:
                self.target.agent.close()

    @property
    def text(self) -> tuple[int, int]:
        """Addresses from the first site to the end of the last."""
        last = self.plan.sites[-1].site
        return self.plan.sites[0].site.address, last.address + last.length

    def switch(self, *, on: bool, one_by_one: bool = False) -> Sample:
        """Switch all sites on or off."""
        request = self.on if on else self.off
        start = time.perf_counter_ns()
        outcome = run_request(self.target.agent, request, mode=Mode.INT3, one_by_one=one_by_one)
        wall_ns = time.perf_counter_ns() - start
        return Sample(outcome.total_ns, wall_ns, outcome, outcome.writes)


def complaints(subjects: list[Subject]) -> list[str]:
    """What went wrong in `subjects` that have ended; empty is how it should be."""
    found = []
    for subject in subjects:
        name = f"{subject.many.program.name}, {subject.many.threads} threads"
        found += [f"{name}: thread {tid} has a wrong result" for tid in subject.wrong]
        found += [f"{name}: {line}" for line in subject.residue]
    return found
