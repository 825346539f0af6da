# SPDX-License-Identifier: Apache-2.0
"""Counting conditional branches: switch the sites on in one batch, read, switch off.

The program counts by itself, in memory of its own; reading is a look at that memory and stops
nobody.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from textpoke import elf, source_lines, target
from textpoke._errors import (
    AgentFailed,
    BadElf,
    ModuleUnavailable,
    NoSuchTarget,
    TargetExited,
    TextpokeError,
)
from textpoke.branch_stubs import COUNTER_BYTES
from textpoke.engine import run_request
from textpoke.model import BranchRow
from textpoke.modes import Mode
from textpoke.plan import BranchPlan
from textpoke.poke import Request, poke_of
from textpoke.switching import held, settle, switch_off

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from textpoke.branches import Found
    from textpoke.model import Branch, Module, Site
    from textpoke.plan import Plan
    from textpoke.poke import Outcome, Poke
    from textpoke.tracer import Target

_NOT_THE_FILES = "its bytes are not those of the file: somebody else has patched it"
_RUN_S = 0.05
_NEAR_BYTES = 4096  # sites closer than this are read together


@dataclass(slots=True)
class BranchCounts:
    """Counts of the branches of chosen functions; a context manager that switches them on and off.

    Attributes:
        target: Where it runs.
        found: The branches, and the sites that count them.
        mode: How sites are written.
        refused: (site, reason) of sites that were not switched on.
        plan: What is on.
        on: Outcome of the batch that switched it on; `off` likewise.
        left_alone: Sites that were not switched off: their module is gone, or somebody else has
            changed them meanwhile.
        timings_ms: How long the parts of the start took.
    """

    target: Target
    found: Found
    mode: Mode = Mode.AUTO
    refused: list[tuple[Site, str]] = field(default_factory=list)
    plan: Plan | None = None
    on: Outcome | None = None
    off: Outcome | None = None
    left_alone: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    _branches: list[Branch] = field(default_factory=list)
    _at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _spans: list[tuple[int, int]] = field(default_factory=list)
    _zero: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    _last: NDArray[np.uint64] | None = None
    _off: list[Poke] = field(default_factory=list)
    _lines: dict[int, tuple[str, int]] | None = None
    _modules: list[Module] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.target.agent.is_ours:  # not in a forked child on its way out
            self.stop()

    def start(self) -> None:
        """Plan, map stubs and counters, switch on in one batch.

        Raises:
            NotPatchable: No site can be patched.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        started = time.perf_counter()
        self._modules = list(self.target.modules)
        sites, changed = self._as_in_file()
        plan = self.target.prepare(sites)
        self.refused = changed + plan.refused
        self._look_at(plan)
        self._zero = self._counters()
        planned = time.perf_counter()
        agent = self.target.agent
        try:
            request = Request.of(poke_of(planned, on=True) for planned in plan.sites)
            outcome = run_request(agent, request, mode=self.mode, leave_busy=True)
            self.plan, busy = settle(agent, plan, outcome, self.mode)
        except BaseException as exc:
            if not isinstance(exc, TextpokeError):  # an interrupt: what the batch did is not known
                self._take_back(plan)
            raise
        self.refused += busy
        self.on = outcome
        self._off = [poke_of(planned, on=False) for planned in self.plan.sites]
        self._look_at(self.plan)
        self._zero = self._zero[np.isin(self._at_of(plan), self._at)]
        self.timings_ms = {
            "plan": (planned - started) * 1e3,
            "batch": (time.perf_counter() - planned) * 1e3,
        }

    def stop(self) -> None:
        """Switch off in one batch, and read a last time. Counts can be read after it, too."""
        if not self._off:
            return
        pokes, self._off = self._off, []
        try:
            self.off, left = switch_off(self.target.agent, pokes, self.mode)
            self.left_alone += left
            self._last = self._counters()
        except (TargetExited, NoSuchTarget):
            pass

    def counts(self) -> NDArray[np.uint64]:
        """Taken and not taken, a row for each branch of `branches`, since the start.

        When the process has ended, or was left: what was read last.
        """
        try:
            self._last = self._counters()
        except (TargetExited, NoSuchTarget, AgentFailed, OSError, ValueError):
            if self._last is None:
                raise
        return self._last - self._zero

    @property
    def branches(self) -> Sequence[Branch]:
        """The branches that are counted."""
        return self._branches

    def read(self, *, lines: bool = True) -> list[BranchRow]:
        """A row for each branch that is counted, in address order.

        Args:
            lines: Look up source files and lines, which takes a while the first time.

        Raises:
            TargetExited: It has ended before anything was read.
        """
        counts = self.counts().tolist()
        where = self._source_lines() if lines else {}
        nowhere = ("", 0)
        return [
            BranchRow(
                branch.address,
                branch.module,
                branch.function,
                branch.address - branch.entry,
                *where.get(branch.address, nowhere),
                taken,
                not_taken,
            )
            for branch, (taken, not_taken) in zip(self._branches, counts, strict=True)
        ]

    def run(self, seconds: float) -> None:
        """Let the program run for some time, or until it ends; keeps what it has counted."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(_RUN_S, max(deadline - time.monotonic(), 0)))
            self.target.agent.require_alive("counting")
            self.counts()

    def _as_in_file(self) -> tuple[list[Site], list[tuple[Site, str]]]:
        """The sites that hold what their file says, and the others."""
        good: list[Site] = []
        changed: list[tuple[Site, str]] = []
        start, content = 0, b""
        for site in sorted(self.found.sites, key=lambda site: site.address):
            at = site.address - start
            if not 0 <= at <= len(content) - len(site.displaced):
                start, at = site.address, 0
                try:
                    content = self.target.agent.read(start, _NEAR_BYTES)
                except AgentFailed:
                    content = b""
            if content[at : at + len(site.displaced)] == site.displaced:
                good.append(site)
            else:
                changed.append((site, _NOT_THE_FILES))
        return good, changed

    def _look_at(self, plan: Plan) -> None:
        """Which branches are read where."""
        planned = [p for p in plan.sites if isinstance(p, BranchPlan)]
        self._branches = [branch for p in planned for branch in _branches_of(p)]
        self._at = self._at_of(plan)
        self._spans = _spans(self._at)

    def _at_of(self, plan: Plan) -> NDArray[np.int64]:
        return np.array(
            [
                p.counters + i * COUNTER_BYTES
                for p in plan.sites
                if isinstance(p, BranchPlan)
                for i in range(len(_branches_of(p)))
            ],
            dtype=np.int64,
        )

    def _counters(self) -> NDArray[np.uint64]:
        """The counters as they are now."""
        values = np.zeros((len(self._at), 2), np.uint64)
        for start, end in self._spans:
            read = np.frombuffer(self.target.agent.read(start, end - start), np.uint64)
            here = np.flatnonzero((self._at >= start) & (self._at < end))
            values[here] = read.reshape(-1, 2)[(self._at[here] - start) // COUNTER_BYTES]
        return values

    def _take_back(self, plan: Plan) -> None:
        agent = self.target.agent
        with suppress(TextpokeError):
            pokes = [poke_of(planned, on=True) for planned in plan.sites]
            there = [poke.reversed() for poke in pokes if held(agent, poke) == poke.new]
            switch_off(agent, there, self.mode)

    def _source_lines(self) -> dict[int, tuple[str, int]]:
        """Source file and line by runtime address."""
        if self._lines is None:
            self._lines = {}
            for module in self._modules:
                wanted = [b for b in self._branches if _is_in(b, module)]
                if wanted:
                    self._lines |= _lines_in(self.target.pid, module, wanted)
        return self._lines


def _branches_of(planned: BranchPlan) -> tuple[Branch, ...]:
    return getattr(planned.site, "branches", ())


def _spans(at: NDArray[np.int64]) -> list[tuple[int, int]]:
    """[start, end) of the memory that holds counters, in few pieces."""
    if not len(at):
        return []
    ordered = np.sort(at)
    cuts = np.flatnonzero(np.diff(ordered) > _NEAR_BYTES)
    firsts = ordered[np.concatenate(([0], cuts + 1))]
    lasts = ordered[np.concatenate((cuts, [len(ordered) - 1]))]
    return [(int(a), int(b) + COUNTER_BYTES) for a, b in zip(firsts, lasts, strict=True)]


def _is_in(branch: Branch, module: Module) -> bool:
    return branch.module == module.name and branch.address - branch.vaddr == module.bias


def _lines_in(pid: int, module: Module, branches: Sequence[Branch]) -> dict[int, tuple[str, int]]:
    try:
        with elf.Image.open(target.open_module(pid, module)) as image:
            lines = source_lines.lines_of(image, module.path, [b.vaddr for b in branches])
    except (BadElf, ModuleUnavailable, OSError):
        return {}
    return {vaddr + module.bias: line for vaddr, line in lines.items()}
