# SPDX-License-Identifier: Apache-2.0
"""Counting conditional branches by itself, without a trace: switch on, read, switch off."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Self

from textpoke._errors import NoSuchTarget, NotPatchable, TargetExited
from textpoke.branch_counting import BranchCounting
from textpoke.modes import Mode
from textpoke.records import Wants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from textpoke.branches import Found
    from textpoke.model import Branch, BranchRow, Site
    from textpoke.poke import Outcome
    from textpoke.tracer import Target

_RUN_S = 0.05
_numbers = itertools.count(1)


class BranchCounts:
    """Counts of the branches of chosen functions; a context manager that switches them on and off.

    Made by `Target.branches`.

    Args:
        target: Where it runs.
        functions: The chosen functions.
        mode: How sites are written.

    Attributes:
        refused: (site, reason) of sites that were not switched on.
        on: Outcome of the batch that switched it on; `off` likewise.
        left_alone: Sites that were not switched off: their module is gone, or somebody else has
            changed them meanwhile.
        timings_ms: How long the parts of the start took.

    Raises:
        ModuleUnavailable, BadElf: A module's file cannot be read.
    """

    def __init__(self, target: Target, functions: Sequence[Site], mode: Mode = Mode.AUTO) -> None:
        self.target = target
        self.functions = functions
        self.mode = mode
        self.refused: list[tuple[Site, str]] = []
        self.on: Outcome | None = None
        self.off: Outcome | None = None
        self.left_alone = 0
        self.timings_ms: dict[str, float] = {}
        self._name = f"branches {next(_numbers)}"
        self._counting = BranchCounting(target)
        self._counting.find(functions)
        self._is_on = False

    @property
    def found(self) -> Found:
        """The branches, and the sites that count them."""
        return self._counting.found

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
        """Plan, map stubs and counters, switch on in one batch. Counts begin at zero.

        Raises:
            NotPatchable: No site can be patched.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        started = time.perf_counter()
        counting = self._counting
        wants = counting.choose(self.functions)
        if not wants:
            raise NotPatchable(*counting.take_refused()[0])
        counting.begin_anew()
        planned = time.perf_counter()
        with counting.turned(wants) as refused:
            done = self.target.records.switch(self._name, wants, self.mode)
            refused.extend(done.refused)
        self._is_on = True
        self.refused = counting.take_refused() + done.refused
        self.on = done.outcome
        self.timings_ms = {
            "plan": (planned - started) * 1e3,
            "batch": (time.perf_counter() - planned) * 1e3,
        }

    def stop(self) -> None:
        """Switch off in one batch, and read a last time. Counts can be read after it, too."""
        if not self._is_on:
            return
        self._is_on = False
        try:
            with self._counting.turned(None):
                done = self.target.records.switch(self._name, Wants(), self.mode)
        except (TargetExited, NoSuchTarget):
            return
        self.off = done.outcome
        self.left_alone += done.left_alone

    def counts(self) -> NDArray[np.uint64]:
        """Taken and not taken, a row for each branch of `branches`, since the start.

        When the process has ended, or was left: what was read last.
        """
        return self._counting.counts()[self._counting.was_on]

    @property
    def branches(self) -> Sequence[Branch]:
        """The branches that are counted."""
        shown = self._counting.was_on.tolist()
        return [b for b, is_on in zip(self._counting.branches, shown, strict=True) if is_on]

    def read(self, *, lines: bool = True) -> list[BranchRow]:
        """A row for each branch that is counted, in address order.

        Args:
            lines: Look up source files and lines, which takes a while the first time.
        """
        return self._counting.rows(lines=lines)

    def run(self, seconds: float) -> None:
        """Let the program run for some time, or until it ends; keeps what it has counted."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(_RUN_S, max(deadline - time.monotonic(), 0)))
            self.target.agent.require_alive("counting")
            self._counting.look()
