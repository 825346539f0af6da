# SPDX-License-Identifier: Apache-2.0
"""One recording: switch the chosen sites on in one batch, drain, switch off, finish the capture."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from textpoke import elf, modes, profile, tracers
from textpoke._capture_format import KEPT
from textpoke._errors import (
    AgentFailed,
    CaptureWrite,
    NoSuchTarget,
    PokeError,
    SiteError,
    TargetError,
    TargetExited,
    TextpokeError,
    UnsupportedTarget,
)
from textpoke._native import lib
from textpoke._version import __version__
from textpoke.agent import hurried
from textpoke.capture_log import CaptureLog, clock_point
from textpoke.captures import Captures
from textpoke.modes import Mode
from textpoke.profile import Counted
from textpoke.records import Wants, within
from textpoke.ring import Copied, Drained, RingReader
from textpoke.tracer_names import BLK, BRANCH, FUNCTION, LIBC, PROFILE
from textpoke.wire import plausible

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from textpoke.arguments import Spec
    from textpoke.branch_counting import BranchCounting
    from textpoke.capture import CaptureWriter
    from textpoke.model import BranchRow, Module, Site
    from textpoke.model import Mapping as Mapped
    from textpoke.plan import Plan, SitePlan
    from textpoke.poke import Outcome
    from textpoke.profile_columns import Columns
    from textpoke.profile_rows import ProfileRow
    from textpoke.records import Switched
    from textpoke.ring import Span
    from textpoke.ring_sets import RingSet
    from textpoke.tracer import Target

_DRAIN_S = 0.002
_FINAL_DRAINS = 50
_QUIET_NS = 1_000_000_000
_LOOK_S = 0.1  # between looks for new modules
_HEADERS_BYTES = 4096  # ELF and program headers, and the notes behind them
_COUNTS_S = 0.05  # between looks at branches


class Trace:
    """One recording; a context manager that switches it on and off.

    Made by `Target.trace`. Several can run on one target at a time, each with its own tracer,
    functions and rings: ftrace's instances.

    Attributes:
        target: Where it runs.
        name: Tells it from others on the same target.
        chosen: The sites that are traced.
        triggered: Addresses of those that the blk tracer does not leave out: triggers sit there.
        find_in: Chooses sites of modules that come later; None: nothing is looked for.
        everything: Functions without NOPs may be chosen too, in modules that were compiled for
            tracing (`Target.sites`).
        traps: An int3 may stay where nothing else is possible.
        plan: How the sites are patched; None before it was made.
        refused: (site, reason) of chosen sites that are not traced.
        totals: Everything drained so far.
        on: Outcome of the batch that switched it on; `off` likewise.
        switched_on: When the batch was done, on the clock of time.perf_counter().
        left_alone: Sites that were not switched off: their module is gone, or somebody else has
            changed them meanwhile.
        merged: Outcome of the batch that made runs of NOPs one instruction, if one was needed.
        last: Outcome of the last batch.
        remarks: Arguments and results that cannot be captured, and why, one line each; take and
            clear.
        on_demand: With `overwrite`: nothing goes to the capture but what `copy` takes there.
    """

    def __init__(  # noqa: PLR0913 - Target.trace names them
        self,
        target: Target,
        chosen: list[Site],
        output: str | os.PathLike[str] | CaptureWriter | None = None,
        *,
        overwrite: bool = False,
        force: bool = False,
        command: Sequence[str] = (),
        mode: Mode = Mode.AUTO,
        find_in: Callable[[Sequence[Module]], list[Site]] | None = None,
        everything: bool = False,
        traps: bool = False,
        tracer: str = FUNCTION,
        options: tracers.Options | None = None,
        arguments: Sequence[Spec] = (),
        name: str = "",
        sample: int = 1,
        filters: tuple[Sequence[str], Sequence[str]] = ((), ()),
        ring_bytes: int = 0,
        functions: Callable[[], list[Site]] | None = None,
    ) -> None:
        self.target = target
        self.chosen, self.triggered = chosen, frozenset[int]()
        self.output = output
        self.overwrite = overwrite
        self.force = force
        self.command = command
        self.mode = mode
        self.find_in = find_in
        self.everything, self.traps = everything, traps
        self.name = name
        self.refused: list[tuple[Site, str]] = []
        self.totals = Drained()
        self._drained = Drained()  # totals that nobody corrects
        self.on: Outcome | None = None
        self.off: Outcome | None = None
        self.last: Outcome | None = None
        self.merged: Outcome | None = None
        self.left_alone = 0
        self.remarks: list[str] = []
        self.timings_ms: dict[str, float] = {}
        self.reason = "stopped"
        self.switched_on = 0.0
        self.plan: Plan | None = None
        self._filter, self._notrace = (list(patterns) for patterns in filters)
        self._tracer = tracers.known(tracer)
        self._options = options or tracers.Options()
        self._arguments = tuple(arguments)
        self._captures = Captures()  # what calls carry
        self._plans: dict[int, SitePlan] = {}  # of what is chosen, by address
        self._prepared: dict[int, SitePlan] = {}  # and of what was before
        self._stale: set[int] = set()  # of those: other code is there now
        self._wants: dict[str, Wants] = {}  # by tracer
        self._events: RingSet | None = None
        self._profile: RingSet | None = None
        self._measured: dict[str, object] = {}  # for the end of the capture
        self._reader: RingReader | None = None
        self._log: CaptureLog | None = None
        self._seen: set[tuple[str, int, int]] = set()
        self._next_look = self._next_counts = 0.0
        self._lost_no_ring = self._overruns = 0
        self._counted = Counted()  # when it ended
        self._tap = -1
        self._tell: Callable[[int], None] = lambda _fd: None
        self._clock: dict[str, int] = {}
        self._sample = max(sample, 1)
        self._ring_bytes = ring_bytes
        self.on_demand = False
        self._written = 0
        self._functions = functions  # what was chosen, with entries that cannot be patched
        self._branches: BranchCounting | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.target.agent.is_ours:
            return  # a forked child on its way out: the recording is its parent's
        if exc_type is not None:
            self.reason = "interrupted" if exc_type is KeyboardInterrupt else "error"
        self.stop()

    @property
    def lost(self) -> int:
        """Events lost so far: full rings, and threads without a ring."""
        return self.totals.lost + self.lost_no_ring

    @property
    def lost_no_ring(self) -> int:
        """Events of threads for which no ring was left."""
        return self._reader.lost_no_ring if self._reader else self._lost_no_ring

    @property
    def events(self) -> int:
        """Events taken so far."""
        return self.totals.events

    @property
    def function_count(self) -> int:
        """Functions that are traced, those of libc among them that the tracer stands on."""
        refused = {site.address for site, _ in self.refused}
        return sum(planned.site.address not in refused for planned in self._traced())

    @property
    def is_on(self) -> bool:
        """True between `start` and `stop`."""
        return self._reader is not None

    @property
    def tracer(self) -> str:
        """Name of the tracer (`tracers.TRACERS`); set it to switch, while the program runs.

        One batch leads every site from one probe to the other: no call goes unseen in between.
        Raises as `start`; then the old one stays.
        """
        return self._tracer

    @tracer.setter
    def tracer(self, name: str) -> None:
        before, self._tracer = self._tracer, tracers.known(name)
        if not self.is_on:
            return
        began = int(lib.tp_rdtsc())
        knows = self.target.records.knows(self.name, self._wants.get(name))
        try:
            with hurried() if knows else nullcontext():
                self._switch()
        except BaseException:
            self._tracer = before
            raise
        self._note_moment({"tracer": name, "switched": [began, int(lib.tp_rdtsc())]})

    @property
    def sample(self) -> int:
        """One of so many calls of a function is recorded, by each thread; 1 for all."""
        return self._sample

    @sample.setter
    def sample(self, number: int) -> None:
        if number != self._sample:
            self._sample = number
            self._wants.clear()

    @property
    def filter(self) -> list[str]:
        """What is traced: expressions as `Target.trace` takes them; empty for what is usual.

        Set it to trace other functions from now on, while the program runs: one batch switches what
        differs. `notrace` is what is left out, whatever this says.

        Raises:
            UnknownFunction, NoSites, NotPatchable: Nothing was changed.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        return list(self._filter)

    @filter.setter  # noqa: A003
    def filter(self, include: str | Sequence[str]) -> None:
        wanted = [include] if isinstance(include, str) else list(include)
        self._choose_matching(wanted, self._notrace)
        self._filter = wanted

    @property
    def notrace(self) -> list[str]:
        """What is never traced; set it as `filter`."""
        return list(self._notrace)

    @notrace.setter
    def notrace(self, exclude: str | Sequence[str]) -> None:
        unwanted = [exclude] if isinstance(exclude, str) else list(exclude)
        self._choose_matching(self._filter, unwanted)
        self._notrace = unwanted

    def choose(self, sites: Sequence[Site]) -> None:
        """Trace these sites from now on. Raises as `filter` does when it is set."""
        self._choose(sites, None)

    def _choose_matching(self, include: list[str], exclude: list[str]) -> None:
        functions = functools.partial(self.target.functions, include, exclude)
        try:
            sites = self.target.sites(
                include, exclude, everything=self.everything, traps=self.traps
            )
        except SiteError:
            if self._tracer != BRANCH:
                raise
            functions()  # those whose entries cannot be patched have branches, too
            sites = []
        self._choose(sites, functions)

    def _choose(self, sites: Sequence[Site], functions: Callable[[], list[Site]] | None) -> None:
        before = self.chosen, self._functions, self._plans
        self.chosen, self._functions = list(sites), functions
        if not self.is_on:
            return
        try:
            self._switch_to_chosen()
        except BaseException:
            self.chosen, self._functions, self._plans = before
            self._wants.clear()
            raise

    def _switch_to_chosen(self) -> None:
        fresh = [
            site
            for site in self.chosen
            if site.address not in self._prepared or site.address in self._stale
        ]
        with self._carrying(self.chosen):
            if fresh:
                self._prepare(fresh)
            addresses = [site.address for site in self.chosen]
            self._plans = {a: self._prepared[a] for a in addresses if a in self._prepared}
            self._wants.clear()
            self._switch()

    @contextmanager
    def _carrying(self, chosen: Sequence[Site]) -> Iterator[None]:
        """While more sites are prepared and switched on: their calls carry what was asked for."""
        more, notes = self._captures.of_more(self.target, self._arguments, chosen)
        planned = [self._prepared[a] for a in more if a in self._prepared.keys() - self._stale]
        if planned and self._log is not None:  # of the others, `_prepare` tells
            self._log.more_sites([], self._captures.notes(self._tracer, planned, self._options))
        try:
            yield
        except BaseException:
            self._captures.forget(more)
            raise
        self.remarks += notes

    def forget_in(self, mappings: Sequence[Mapped]) -> None:
        """Other code is mapped there now: what was chosen there is gone (`Target.modules`)."""
        addresses = self._prepared.keys() | {site.address for site in self.chosen}
        gone = set(within(addresses, mappings))
        self._stale |= gone
        self._captures.forget(gone)
        self.chosen = [site for site in self.chosen if site.address not in gone]
        self._plans = {a: p for a, p in self._plans.items() if a not in gone}
        if self._branches is not None:
            self._branches.forget_in(mappings)
        self._wants.clear()

    def start(self) -> None:
        """Plan, map what is needed, open the capture, switch on in one batch.

        Raises:
            CaptureExists, CaptureWrite: The output cannot be written; nothing was switched on.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        started = time.perf_counter()
        try:
            self.target.add_trace(self)
            self._seen = {module.key for module in self.target.modules}
            self.on, self.refused, self._branches = None, [], None
            self._counted = Counted()
            self.plan = plan = self.target.prepare(self.chosen, traps=self.traps)
            self.refused += plan.refused
            self._plans = {p.site.address: p for p in plan.sites}
            self._prepared = dict(self._plans)
            self._stale.clear()
            self._wants.clear()
            self.remarks = self._captures.of_arguments(self.target, self._arguments, self.chosen)
            self._prepare_libc()
            planned = time.perf_counter()
            self._open()
            ready = time.perf_counter()
            self.merged = self.target.merge(plan, self.mode)
            self._switch()
            self.switched_on = time.perf_counter()
            # A full disk must not leave it on.
            self._note_moment({"switched_on": int(lib.tp_rdtsc())})
        except BaseException:
            self._abandon()
            raise
        self.timings_ms = {
            "plan": (planned - started) * 1e3,
            "open": (ready - planned) * 1e3,
            "batch": (self.switched_on - ready) * 1e3,
        }

    def _open(self) -> None:
        """Take rings and open the capture."""
        self._events = self.target.ring_sets.take(ring_bytes=self._ring_bytes)
        self._reader = RingReader(self._events, -1, overwrite=self.overwrite)
        if self.output is not None:
            self._log = CaptureLog(self.output, self.target.pid, force=self.force)
            self._log.begin(self._meta())
            self.target.agent.witnesses.append(self._log.pokes)
            self._reader.write_to(self._log.fd, packed=True)
        if self._tap >= 0:
            self.divert(self._tap, self._tell)
        self._reader.know(self.return_addresses.values())
        self._events.record(on=True, waiting=self._reader.waiting)

    def _rings_of(self, tracer: str) -> RingSet:
        if tracer != PROFILE and self._events is not None:
            return self._events
        if self._profile is None:
            self._profile = self.target.ring_sets.take(profiled=len(self._plans))
            profile.clear(self._profile)
            self._profile.record(on=True)
        return self._profile

    def _switch(self) -> None:
        """Let what the tracer wants be in place, and nothing else of ours: one batch."""
        if self._tracer in tracers.REDIRECTING:
            self.target.make_ready_for_returns(self.mode)
        self._prepare_libc()
        rings = self._rings_of(self._tracer)
        self._captures.upload(rings, self._tracer, self._prepared)
        wanted = self._wants.get(self._tracer)
        if wanted is None:
            wanted = self._wants[self._tracer] = self._wanted(rings)
        with self._counting(wanted) as refused:
            done = self.target.records.switch(self.name, wanted, self.mode)
            refused.extend(done.refused)
        self._note(done)

    def _wanted(self, rings: RingSet) -> Wants:
        if self._tracer == BRANCH:
            return self._wanted_branches()
        options = replace(self._options, sample=self._sample)
        wish = tracers.Wish(self._tracer, rings, options, self.target.returns.why_not)
        return wish.of(self._traced(), self._captures.programs(self._tracer))

    def _wanted_branches(self) -> Wants:
        """The sites that count the branches of what is chosen."""
        if self._branches is None:
            from textpoke.branch_counting import BranchCounting  # here: it needs numpy

            self._branches = BranchCounting(self.target)
        functions = {site.entry: site for site in self.chosen}
        if self._functions is not None:
            with suppress(SiteError):  # of modules that are gone
                functions |= {site.entry: site for site in self._functions()}
        wanted = self._branches.choose(list(functions.values()))
        self.refused += self._branches.take_refused()
        return wanted

    def _counting(self, wanted: Wants) -> AbstractContextManager[list[tuple[Site, str]]]:
        """While sites are switched: branches count from now on, or do not any more."""
        if self._branches is None:
            return nullcontext([])
        return self._branches.turned(wanted if wanted.alone else None)

    def branch_counts(self, *, lines: bool = True) -> list[BranchRow]:
        """What the branch tracer has counted so far, by branch; nothing is stopped.

        Args:
            lines: Look up source files and lines, which takes a while the first time.
        """
        return self._branches.rows(lines=lines) if self._branches else []

    def _traced(self) -> list[SitePlan]:
        """What the tracer looks at: what was chosen, but blk; and its functions of libc."""
        libc = self._captures.libc(self._tracer)
        own = self._plans
        if self._tracer == BLK:
            own = {a: planned for a, planned in own.items() if a in self.triggered}
        return [*(p for a, p in own.items() if a not in libc)] + [
            self._prepared[address] for address in libc if address in self._prepared
        ]

    def _prepare_libc(self) -> None:
        """Plan the functions of libc that the tracer stands on, once."""
        if self._tracer not in LIBC or self._captures.libc(self._tracer):
            return
        found = self.target.libc_sites(self._tracer)
        self.refused += [(site, site.reason or "") for site, _ in found if not site.patchable]
        good = {site.address: function for site, function in found if site.patchable}
        fresh = [site for site, _ in found if site.patchable and site.address not in self._prepared]
        self._captures.of_libc(self._tracer, good)
        if fresh:
            self._prepare(fresh)

    def _note(self, done: Switched) -> None:
        self.refused += done.refused
        self.left_alone += done.left_alone
        self.last = done.outcome
        self.on = self.on or done.outcome

    @property
    def return_addresses(self) -> dict[int, int]:
        """What events call each site that is traced: its return address, by its own."""
        return {address: p.return_address for address, p in self._prepared.items()}

    def sites_by_return(self) -> list[tuple[Site, int]]:
        """The same with the sites themselves."""
        return [(p.site, p.return_address) for p in self._prepared.values()]

    @property
    def durations(self) -> dict[int, int]:
        """In threshold mode: where the duration stands in an EXIT's data, by return address."""
        if not self._options.threshold_ticks:
            return {}
        return dict.fromkeys(self.return_addresses.values(), 0)

    @property
    def durations_only(self) -> bool:
        """In threshold mode: calls that are shorter leave nothing."""
        return bool(self._options.threshold_ticks)

    @property
    def overruns(self) -> int:
        """Calls that are not there, because their return could not be waited for.

        They were too deep, on a stack that is not their thread's own (a coroutine's, a signal
        handler's), of a thread without a shadow stack, or from code that its runtime walks by
        itself: a JIT's, or a language's with tables of return addresses.
        """
        sets = (self._events, self._profile)
        now = sum(rings.overruns() for rings in sets if rings is not None)
        return plausible(now) or self._overruns

    def divert(self, fd: int, tell: Callable[[int], None]) -> None:
        """Let events go to `fd`; `tell` is told where the capture is, for who sends them on."""
        self._tap, self._tell = fd, tell
        if self._reader is not None:
            self._reader.write_to(fd)
            tell(self._log.fd if self._log is not None else -1)

    def note(self, fields: Mapping[str, object]) -> None:
        """Put a note into the capture."""
        if self._log is not None:
            self._log.more_sites([], fields)

    def _note_moment(self, fields: Mapping[str, object]) -> None:
        """Note that a tracer is on, and what was the case just then."""
        if self._log is not None:
            self.note({**fields, **self._captures.when_on(self.target.pid, self._tracer)})

    def snapshot_fields(self) -> tuple[dict[str, object], dict[int, str], dict[str, object]]:
        """META, names of threads and END's clock for a capture of a part of this one."""
        threads = self._log.thread_names if self._log is not None else {}
        return {**self._meta(), "clock": self._clock}, threads, {"clock": clock_point()}

    def profile(self) -> dict[int, ProfileRow]:
        """What the profile tracer has counted so far, by return address; nothing is stopped."""
        return profile.read(self._profile) if self._profile else {}

    @property
    def counted(self) -> Counted:
        """How much the profile tracer has counted so far; after the end, in all."""
        return profile.counted(self._profile) if self._profile else self._counted

    def profile_columns(self) -> Columns | None:
        """The same as columns, for many functions; None before the profile tracer was on."""
        from textpoke.profile_columns import read  # here: it needs numpy

        return read(self._profile) if self._profile else None

    def drain(self) -> Drained:
        """Take what the rings hold to the capture; call it every few milliseconds.

        In overwrite mode nothing is taken before the end: the rings keep the last events.

        Raises:
            CaptureWrite: The capture cannot be written; tracing goes on until `stop`.
        """
        if self._reader is not None:
            self._look_for_modules()
            self._look_at_branches()
            self._look_at_sleepers()
        if self._reader is None or (self.overwrite and not self.on_demand):
            return Drained()
        if self._log is not None:
            self._log.note()
        return Drained() if self.on_demand else self._drain(final=False)

    def copy(self, span: Span, fd: int | None = None) -> Copied:
        """Write a stretch of time of rings that are overwritten to the capture, or to `fd`.

        Raises:
            CaptureWrite: The capture cannot be written.
        """
        if self._reader is None:
            return Copied()
        own = self._log.fd if self._log is not None else -1
        try:
            copied = self._reader.copy(span, own if fd is None else fd, packed=fd is None)
        except OSError as exc:
            if self._log is None or fd is not None:
                raise CaptureWrite(str(self.output or ""), exc.errno or 0) from exc
            raise self._log.failed(exc.errno or 0) from exc
        if fd is None:
            self.totals.add(Drained(copied.events, copied.lost, copied.bytes))
        return copied

    def written(self, quiet_ns: int = _QUIET_NS) -> int:
        """Events that threads have written so far, whether or not they went to the capture.

        Args:
            quiet_ns: In overwrite mode: rings whose threads have been gone for so long may serve
                others.
        """
        if self._reader is not None:
            if self.overwrite:
                self._written = self._reader.written(quiet_ns)
            else:
                self._written = self._drained.events + self._drained.lost
        return self._written

    def record(self, *, on: bool) -> None:
        """Let threads write events, or not; everything stays patched."""
        if self._events is not None and self._reader is not None:
            self._events.record(on=on, waiting=self._reader.waiting)

    def _look_for_modules(self) -> None:
        """Switch on what was asked for in modules that have come since the last look."""
        if self.find_in is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        try:
            modules = self.target.modules
        except TargetError as exc:
            raise TargetExited(self.target.pid, "the recording") from exc
        fresh = [module for module in modules if module.key not in self._seen]
        before, self._seen = self._seen, {module.key for module in modules}
        # A process that is being taken apart may show a part of its modules, under other names.
        try:
            if fresh:
                self._drop_unsafe_traps()
            if before != self._seen:
                self._guard_returns()
            self._trace_in(self.find_in, fresh)
        except NoSuchTarget as exc:
            raise TargetExited(self.target.pid, "the recording") from exc

    def _look_at_branches(self) -> None:
        """What a program has counted is gone with it: remember it now and then."""
        if self._tracer == BRANCH and self._branches and time.monotonic() >= self._next_counts:
            self._next_counts = time.monotonic() + _COUNTS_S
            self._branches.look()

    def _look_at_sleepers(self) -> None:
        """Threads that were on their way back into a wait when the tracer was switched on."""
        fields = self._captures.later(self.target.pid, self._tracer)
        if fields:
            self.note(fields)

    def _guard_returns(self) -> None:
        """What has come may unwind the stack; where a module was may be code of another kind.

        Raises UnsupportedTarget ("returns").
        """
        if self._tracer in tracers.REDIRECTING:
            with suppress(PokeError, SiteError, AgentFailed):  # closed again meanwhile, perhaps
                self.target.make_ready_for_returns(self.mode)

    def _drop_unsafe_traps(self) -> None:
        """What was opened since may block SIGTRAP: int3s that stay must not meet that."""
        staying = [address for address, p in self._plans.items() if p.handler]
        if not staying:
            return
        try:
            why = modes.why_no_trap_stays(self.target.agent)
            unsafe = {address: why(address) for address in staying if why(address)}
        except UnsupportedTarget as exc:
            unsafe = dict.fromkeys(staying, exc.detail)
        if not unsafe:
            return
        self.refused += [(self._plans.pop(address).site, unsafe[address]) for address in unsafe]
        self._wants.clear()
        self._switch()

    def _trace_in(
        self, find_in: Callable[[Sequence[Module]], list[Site]], fresh: Sequence[Module]
    ) -> None:
        found = find_in(fresh) if fresh else []
        if not found:
            return
        try:
            self._switch_on_more(found)
        except (PokeError, SiteError, AgentFailed, UnsupportedTarget) as exc:
            # It was closed again meanwhile, perhaps.
            self.refused += [(site, str(exc)) for site in found]
            for site in found:
                self._plans.pop(site.address, None)
            self._wants.clear()

    def _switch_on_more(self, found: list[Site]) -> None:
        with self._carrying(found):
            plan = self._prepare(found)
            self.chosen += found
            self._plans |= {p.site.address: p for p in plan.sites}
            self._wants.clear()
            self._switch()

    def _prepare(self, fresh: Sequence[Site]) -> Plan:
        plan = self.target.prepare(fresh, traps=self.traps)
        self.target.merge(plan, self.mode)
        self.refused += plan.refused
        self._prepared |= {p.site.address: p for p in plan.sites}
        self._stale -= self._prepared.keys() & {site.address for site in fresh}
        if self._reader is not None:
            self._reader.know(self.return_addresses.values())
        if self._log is not None:
            captures = self._captures.notes(self._tracer, plan.sites, self._options)
            captures["build_ids"] = self._build_ids(plan.sites)
            self._log.more_sites(_names(plan.sites), captures)
        return plan

    def run(self, seconds: float | None = None, stop: threading.Event | None = None) -> None:
        """Drain until the time is over, `stop` is set or the target has ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self.drain()
            if stop is not None and stop.is_set():
                return
            self.target.agent.require_alive("the recording")
            time.sleep(_DRAIN_S)

    def stop(self, before_end: Callable[[], Mapping[str, object]] | None = None) -> None:
        """Switch off in one batch, take the rest, finish the capture.

        Args:
            before_end: Called when all events have been taken; gives further fields for the end.
        """
        if self._reader is None:
            self.target.remove_trace(self)  # an interrupt may have come in the last moment
            return
        failure: TextpokeError | None = None
        self._measured = self._captures.at_end(self.target.pid, self._tracer)
        try:
            self._switch_off()
        except (TargetExited, NoSuchTarget):
            self.reason = "target exited"
        except TextpokeError as exc:
            failure = exc
        if self._profile is not None:
            self._measured["profile"] = profile.as_json(self._profile)
        if self._branches is not None:
            self._measured["branch"] = self._branches.as_json()
        try:
            self._drain_rest()
            if before_end is not None:
                self._measured |= before_end()
            if self._log is not None:
                self._log.finish(self._end())
        finally:
            self._forget_log()
            self._close()
        if failure is not None:
            raise failure

    def _switch_off(self) -> None:
        with self._counting(Wants()):
            done = self.target.records.switch(self.name, Wants(), self.mode)
        self.left_alone += done.left_alone
        self.off = done.outcome
        for rings in (self._events, self._profile):
            if rings is not None:
                rings.record(on=False)

    def _close(self) -> None:
        self._overruns = self.overruns
        self._counted = self.counted
        self._written = self.written()
        if self._reader is not None:
            self._lost_no_ring = self._reader.lost_no_ring
        self._reader = None
        for rings in (self._events, self._profile):
            if rings is not None:
                self.target.ring_sets.give_back(rings)
        self._events = self._profile = None
        self.target.remove_trace(self)

    def _drain(self, *, final: bool) -> Drained:
        if self._reader is None:
            return Drained()
        try:
            drained = self._reader.drain(final=final)
        except OSError as exc:
            self._reader.write_to(-1)
            if self._log is None:
                raise
            raise self._log.failed(exc.errno or 0) from exc
        self.totals.add(drained)
        self._drained.add(drained)
        return drained

    def _drain_rest(self) -> None:
        # A thread may have reserved its last event and not yet written it.
        if self.on_demand:
            return
        for _ in range(_FINAL_DRAINS):
            if not self._drain(final=False).incomplete:
                break
            time.sleep(_DRAIN_S)
        self._drain(final=True)

    def _meta(self) -> dict[str, object]:
        self._clock = self._clock or clock_point()
        plans = list(self._prepared.values())
        return {
            "pid": self.target.pid,
            "exe": self.target.exe,
            "command": list(self.command) or self.target.command_line,
            "tracer": self._tracer,
            "mode": KEPT if self.on_demand else "overwrite" if self.overwrite else "drop",
            "clock": self._clock,
            "sites": _names(plans),
            "modules": [[m.name, m.path, m.bias] for m in self.target.modules],
            "build_ids": self._build_ids(plans),
            "cpus": os.cpu_count() or 0,
            "textpoke": __version__,
            **self._captures.notes(self._tracer, plans, self._options),
            **self._captures.at_start(self.target.pid, self._tracer),
        }

    def _build_ids(self, plans: Iterable[SitePlan]) -> dict[str, str]:
        """By path, of the modules that have sites among these."""
        names = {planned.site.module for planned in plans}
        found: dict[str, str] = {}
        for module in self.target.modules:
            if module.name in names and module.mappings and not module.mappings[0].offset:
                with suppress(TextpokeError):  # its headers are not as the linker left them
                    first = self.target.agent.read(module.mappings[0].start, _HEADERS_BYTES)
                    found[module.path] = elf.build_id(elf.Image(first, module.path)).hex()
        return {path: name for path, name in found.items() if name}

    def _end(self) -> dict[str, object]:
        return {
            "clock": clock_point(),
            "events": self.totals.events,
            "lost": self.totals.lost,
            "lost_no_ring": self.lost_no_ring,
            "overruns": self.overruns,
            "reason": self.reason,
            "on": self.on.as_dict() if self.on else None,
            "off": self.off.as_dict() if self.off else None,
            "hold_ns": self.target.agent.timings.hold_ns,
            "refused": dict(Counter(reason for _, reason in self.refused)),
            **self._measured,
        }

    def _abandon(self) -> None:
        """Nothing was switched on: leave no capture that would say otherwise."""
        with suppress(TextpokeError):
            self._switch_off()
        if self._log is not None:
            self._log.discard()
        self._forget_log()
        self._close()

    def _forget_log(self) -> None:
        if self._log is not None:
            with suppress(ValueError):  # it was never begun
                self.target.agent.witnesses.remove(self._log.pokes)
        self._log = None


def _names(plans: Iterable[SitePlan]) -> list[list[object]]:
    return [[p.return_address, p.site.module, p.site.function] for p in plans]
