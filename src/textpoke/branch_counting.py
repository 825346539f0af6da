# SPDX-License-Identifier: Apache-2.0
"""The branches that somebody counts in a target: found, planned, and read.

The program counts by itself, in memory of its own; reading is a look at that memory and stops
nobody. What is on at which time is decided by `records`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np

from textpoke import elf, source_lines, target
from textpoke._errors import (
    AgentFailed,
    BadElf,
    ModuleUnavailable,
    NoSuchTarget,
    NotPatchable,
    TargetExited,
)
from textpoke.branch_stubs import COUNTER_BYTES
from textpoke.branches import Found, entries_of, find_branches
from textpoke.model import BranchRow, BranchSite
from textpoke.plan import BranchPlan
from textpoke.records import NO_PROBE, Wanted, Wants, within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from textpoke.model import Branch, Mapping, Module, Site
    from textpoke.tracer import Target

    Mask = NDArray[np.bool_]
    _Rows = NDArray[np.int64] | slice
    _Span = tuple[int, int, _Rows, _Rows]
    """Start, end, the rows whose counters are there, and which of the counters each has."""

FORMAT_VERSION = 1
NOT_THE_FILES = "its bytes are not those of the file: somebody else has patched it"
_GONE = (TargetExited, NoSuchTarget, AgentFailed, OSError, ValueError)
_NEAR_BYTES = 4096  # counters and sites closer than this are read together
_MOST_MASKS = 64
_NO_COUNTS = np.zeros((0, 2), np.uint64)
_PAIR = np.dtype(np.complex128)  # sixteen bytes that numpy moves whole: taken and not taken
_NO_MASK = np.zeros(0, np.bool_)


class BranchCounting:
    """Counts of branches, while they are on; one for each user.

    Args:
        of: The target.

    Attributes:
        found: The branches of all functions that were asked for, and the sites that count them.
        refused: (site, reason) of sites that cannot be patched.
        branches: Those that are counted, in the order of `counts`.
    """

    def __init__(self, of: Target) -> None:
        self._target = of
        self.found = Found()
        self.refused: list[tuple[Site, str]] = []
        self.branches: list[Branch] = []
        self._by_function: dict[int, list[BranchSite]] = {}
        self._plans: dict[int, BranchPlan] = {}
        self._unplanned: set[int] = set()
        # Kept open for their source lines: those are looked up last, when the process may be gone.
        self._files: dict[Module, int] = {}
        weakref.finalize(self, _close, self._files)
        # A row for each branch: where it is counted, at which site, and the counts.
        self._at = self._site_at = np.zeros(0, np.int64)
        self._zero = self._last = _NO_COUNTS
        self._on = self._was_on = _NO_MASK
        self._is_on = False  # any of them
        self._spans: list[_Span] = []
        self._masks: dict[int, Mask] = {}
        self._lines: dict[int, tuple[str, int]] = {}
        self._turn = 0  # of the target's turns, when ours was last on

    def find(self, functions: Iterable[Site]) -> None:
        """Find the branches of functions that were not looked at yet.

        Raises:
            ModuleUnavailable, BadElf: A module's file cannot be read.
        """
        fresh = [f for f in functions if f.entry not in self._by_function]
        if not fresh:
            return
        found = Found()
        for module in self._target.modules:
            entries = entries_of(module, fresh)
            if entries:
                with self._opened(module) as image:
                    found.add(find_branches(image, module, entries))
        self._by_function |= {f.entry: [] for f in fresh}
        for site, owner in zip(found.sites, found.owners, strict=True):
            self._by_function[owner].append(site)
        self.found.add(found)

    def choose(self, functions: Sequence[Site]) -> Wants:
        """What must be in place to count the branches of some functions, and of no others.

        Raises:
            ModuleUnavailable, BadElf: As `find`.
            AgentFailed: The target has no room where it was planned.
        """
        self.find(functions)
        sites = [site for f in functions for site in self._by_function.get(f.entry, ())]
        known = self._plans.keys() | self._unplanned
        self._prepare([site for site in sites if site.address not in known])
        wanted = sorted({site.address for site in sites} & self._plans.keys())
        return Wants((address, Wanted(self._plans[address], NO_PROBE)) for address in wanted)

    def take_refused(self) -> list[tuple[Site, str]]:
        """(site, reason) of those that cannot be patched and that were not taken before."""
        taken, self.refused = self.refused, []
        return taken

    def forget_in(self, mappings: Sequence[Mapping]) -> None:
        """Other code is mapped there now: what was counted stays, what is chosen is found anew."""
        for entry in within(self._by_function, mappings):
            for site in self._by_function.pop(entry):
                self._plans.pop(site.address, None)
                self._unplanned.discard(site.address)
        self._masks.clear()

    @contextlib.contextmanager
    def turned(self, wanted: Wants | None) -> Iterator[list[tuple[Site, str]]]:
        """While what is in place changes: these are on then; None: none.

        Gives a list for those that could not be switched on, and why.
        """
        if wanted is None and not self._is_on:
            yield []  # it is not about branches
            return
        after = self._mask(wanted)
        fresh = after & ~self._on
        if fresh.any():
            self._skip(fresh)
        before, self._on = self._on, self._on | after
        refused: list[tuple[Site, str]] = []
        now = before
        try:
            yield refused
            now = after
            if refused:
                now = after & ~np.isin(self._site_at, [site.address for site, _ in refused])
        finally:
            if self._is_on:  # else nothing was counted yet
                self.look()
            self._on, self._is_on = now, bool(now.any())
            self._was_on = self._was_on | now
            self._turned()

    def look(self) -> None:
        """Read the counters, if they can be read; what was read last is kept otherwise."""
        with contextlib.suppress(*_GONE):
            now = self._read()
            self._last = now if self._on.all() else np.where(self._on[:, None], now, self._last)

    def begin_anew(self) -> None:
        """Forget what was counted."""
        self._last = self._read()
        self._zero = self._last.copy()
        self._was_on = self._on.copy()

    def counts(self) -> NDArray[np.uint64]:
        """Taken and not taken, a row for each of `branches`, of the times while it was on."""
        self.look()
        return self._last - self._zero

    @property
    def was_on(self) -> Mask:
        """Which of `branches` have been on."""
        return self._was_on

    def rows(self, *, lines: bool = True) -> list[BranchRow]:
        """A row for each branch that was on, in address order.

        Args:
            lines: Look up source files and lines, which takes a while the first time.
        """
        counts = self.counts().tolist()
        shown = self._was_on.tolist()
        where = self._source_lines() if lines else {}
        nowhere = ("", 0)
        rows = [
            BranchRow(
                branch.address,
                branch.module,
                branch.function,
                branch.address - branch.entry,
                *where.get(branch.address, nowhere),
                taken,
                not_taken,
            )
            for branch, (taken, not_taken), is_shown in zip(
                self.branches, counts, shown, strict=True
            )
            if is_shown
        ]
        return sorted(rows, key=lambda row: row.address)

    def as_json(self) -> dict[str, object]:
        """The whole, for the end of a capture: `report.branched` reads it.

        A row: [address, number of the function, offset in it, number of the file, line, taken,
        not taken].
        """
        functions: dict[tuple[str, str], int] = {}
        files: dict[str, int] = {}
        rows = [
            [
                row.address,
                functions.setdefault((row.module, row.function), len(functions)),
                row.offset,
                files.setdefault(row.file, len(files)),
                row.line,
                row.taken,
                row.not_taken,
            ]
            for row in self.rows()
        ]
        return {
            "version": FORMAT_VERSION,
            "functions": [list(names) for names in functions],
            "files": list(files),
            "rows": rows,
            "not_counted": self.found.by_reason,
        }

    def _opened(self, module: Module) -> elf.Image:
        if module not in self._files:
            path = target.open_module(self._target.pid, module)
            try:
                self._files[module] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise ModuleUnavailable(module.path, exc.strerror or "") from exc
        return elf.Image.open(f"/proc/self/fd/{self._files[module]}")

    def _prepare(self, sites: Sequence[BranchSite]) -> None:
        good, changed = self._as_in_file(sites)
        self.refused += changed
        self._unplanned.update(site.address for site, _ in changed)
        if not good:
            return
        try:
            plan = self._target.prepare(good)
        except NotPatchable as exc:
            self.refused += [(site, exc.reason) for site in good]
            self._unplanned.update(site.address for site in good)
            return
        self.refused += plan.refused
        self._unplanned.update(site.address for site, _ in plan.refused)
        planned = [p for p in plan.sites if isinstance(p, BranchPlan)]
        self._plans |= {p.site.address: p for p in planned}
        self._add_rows(planned)

    def _add_rows(self, planned: Sequence[BranchPlan]) -> None:
        rows = [
            (branch, p.site.address, p.counters + i * COUNTER_BYTES)
            for p in planned
            if isinstance(p.site, BranchSite)
            for i, branch in enumerate(p.site.branches)
        ]
        self.branches += [branch for branch, _, _ in rows]
        places = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
        self._site_at = np.concatenate((self._site_at, places[:, 0]))
        self._at = np.concatenate((self._at, places[:, 1]))
        self._spans = _spans(self._at)
        off = np.zeros(len(rows), np.bool_)
        self._on = np.concatenate((self._on, off))
        self._was_on = np.concatenate((self._was_on, off))
        # Whoever counts there already has counted for himself.
        now = self._read()[len(self._last) :]
        self._last = np.concatenate((self._last, now))
        self._zero = np.concatenate((self._zero, now))
        self._masks.clear()

    def _mask(self, wanted: Wants | None) -> Mask:
        """Which rows are on while this is wanted."""
        if wanted is None:
            return np.zeros(len(self._at), np.bool_)
        if wanted.number not in self._masks:
            if len(self._masks) >= _MOST_MASKS:
                self._masks.clear()
            addresses = np.fromiter(wanted.keys(), np.int64, len(wanted))
            self._masks[wanted.number] = np.isin(self._site_at, addresses)
        return self._masks[wanted.number]

    def _skip(self, fresh: Mask) -> None:
        """What others have counted since we were on is not ours.

        If nobody else did, then what came since is of threads that were in a stub when it was
        switched off: that counts.
        """
        of = self._target
        if of.counting_turns != self._turn or of.counting - {id(self)}:
            now = self._read()
            self._zero[fresh] += now[fresh] - self._last[fresh]
            self._last[fresh] = now[fresh]

    def _turned(self) -> None:
        of = self._target
        of.counting_turns += 1
        self._turn = of.counting_turns
        if self._is_on:
            of.counting.add(id(self))
        else:
            of.counting.discard(id(self))

    def _read(self) -> NDArray[np.uint64]:
        """The counters as they are now."""
        values = np.zeros(len(self._at), _PAIR)
        for start, end, here, index in self._spans:
            values[here] = np.frombuffer(self._target.agent.read(start, end - start), _PAIR)[index]
        return values.view(np.uint64).reshape(-1, 2)

    def _as_in_file(
        self, sites: Sequence[BranchSite]
    ) -> tuple[list[BranchSite], list[tuple[Site, str]]]:
        """The sites that hold what their file says or that only we have changed, and the others."""
        good: list[BranchSite] = []
        changed: list[tuple[Site, str]] = []
        start, content = 0, b""
        for site in sorted(sites, key=lambda site: site.address):
            at = site.address - start
            size = len(site.displaced)
            if not 0 <= at <= len(content) - size:
                start, at = site.address, 0
                try:
                    content = self._target.agent.read(start, _NEAR_BYTES)
                except AgentFailed:
                    content = b""
            if content[at : at + size] == site.displaced or self._target.records.holds(
                site.address, site.address + size
            ):
                good.append(site)
            else:
                changed.append((site, NOT_THE_FILES))
        return good, changed

    def _source_lines(self) -> dict[int, tuple[str, int]]:
        """Source file and line by runtime address."""
        fresh = [b for b in self.branches if b.address not in self._lines]
        if fresh:
            self._lines |= {b.address: ("", 0) for b in fresh}
            for module in list(self._files):
                wanted = [b for b in fresh if _is_in(b, module)]
                with contextlib.suppress(BadElf, ModuleUnavailable, OSError):
                    if wanted:
                        self._lines |= self._lines_in(module, wanted)
        return self._lines

    def _lines_in(self, module: Module, branches: Sequence[Branch]) -> dict[int, tuple[str, int]]:
        with self._opened(module) as image:
            lines = source_lines.lines_of(image, module.path, [b.vaddr for b in branches])
        return {vaddr + module.bias: line for vaddr, line in lines.items()}


def _spans(at: NDArray[np.int64]) -> list[_Span]:
    """The memory that holds counters, in few pieces."""
    if not len(at):
        return []
    ordered = np.sort(at)
    cuts = np.flatnonzero(np.diff(ordered) > _NEAR_BYTES)
    firsts = ordered[np.concatenate(([0], cuts + 1))].tolist()
    lasts = ordered[np.concatenate((cuts, [len(ordered) - 1]))].tolist()
    found: list[_Span] = []
    for start, last in zip(firsts, lasts, strict=True):
        here = np.flatnonzero((at >= start) & (at <= last))
        index = (at[here] - start) // COUNTER_BYTES
        found.append((start, last + COUNTER_BYTES, _rows(here), _rows(index)))
    return found


def _rows(numbers: NDArray[np.int64]) -> _Rows:
    """A slice where they follow each other, which they mostly do: that is copied at once."""
    first, end = int(numbers[0]), int(numbers[0]) + len(numbers)
    if np.array_equal(numbers, np.arange(first, end)):
        return slice(first, end)
    return numbers


def _is_in(branch: Branch, module: Module) -> bool:
    return branch.module == module.name and branch.address - branch.vaddr == module.bias


def _close(files: dict[Module, int]) -> None:
    for fd in files.values():
        os.close(fd)
