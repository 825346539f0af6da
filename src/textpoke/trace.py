# SPDX-License-Identifier: Apache-2.0
"""One recording: switch the chosen sites on in one batch, drain, switch off, finish the capture."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from textpoke import modes
from textpoke._errors import (
    AgentFailed,
    BatchRefused,
    NoSuchTarget,
    PokeError,
    SiteError,
    TargetError,
    TargetExited,
    TextpokeError,
    UnsupportedTarget,
)
from textpoke._version import __version__
from textpoke.capture_log import CaptureLog, clock_point
from textpoke.engine import run_request
from textpoke.modes import Mode
from textpoke.poke import Outcome, Request, poke_of
from textpoke.ring import Drained, RingReader
from textpoke.switching import held, settle, switch_off

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from textpoke.model import Module, Site
    from textpoke.plan import Plan, SitePlan
    from textpoke.poke import Poke
    from textpoke.tracer import Target

_DRAIN_S = 0.002
_FINAL_DRAINS = 50
_LOOK_S = 0.1  # between looks for new modules


@dataclass(slots=True)
class Trace:
    """One recording of function entries; a context manager that switches it on and off.

    Attributes:
        target: Where it runs.
        chosen: The sites that are traced.
        find_in: Chooses sites of modules that come later; None: nothing is looked for.
        traps: An int3 may stay where nothing else is possible.
        plan: How the sites are patched; None before it was made.
        refused: (site, reason) of chosen sites for which no room was found.
        totals: Everything drained so far.
        on: Outcome of the batch that switched it on; `off` likewise.
        switched_on: When the batch was done, on the clock of time.perf_counter().
        left_alone: Sites that were not switched off: their module is gone, or somebody else has
            changed them meanwhile.
        merged: Outcome of the batch that made runs of NOPs one instruction, if one was needed.
    """

    target: Target
    chosen: list[Site]
    output: str | os.PathLike[str] | None = None
    overwrite: bool = False
    force: bool = False
    command: Sequence[str] = ()
    mode: Mode = Mode.AUTO
    find_in: Callable[[Sequence[Module]], list[Site]] | None = None
    traps: bool = False
    refused: list[tuple[Site, str]] = field(default_factory=list)
    totals: Drained = field(default_factory=Drained)
    on: Outcome | None = None
    off: Outcome | None = None
    merged: Outcome | None = None
    left_alone: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    reason: str = "stopped"
    switched_on: float = 0.0
    plan: Plan | None = None
    _reader: RingReader | None = None
    _log: CaptureLog | None = None
    _off: dict[int, Poke] = field(default_factory=dict)  # by address
    _seen: set[tuple[str, int, int]] = field(default_factory=set)
    _next_look: float = 0.0
    _lost_no_ring: int = 0

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

    def start(self) -> None:
        """Plan, map what is needed, open the capture, switch on in one batch.

        Raises:
            CaptureExists, CaptureWrite: The output cannot be written; nothing was switched on.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        agent = self.target.agent
        started = time.perf_counter()
        self._seen = {module.key for module in self.target.modules}
        plan = self.target.prepare(self.chosen, traps=self.traps)
        self.refused = plan.refused
        planned = time.perf_counter()
        self._reader = RingReader(agent, -1, overwrite=self.overwrite)
        if self.output is not None:
            self._log = CaptureLog(self.output, self.target.pid, force=self.force)
            self._log.begin(self._meta(plan))
            self._reader.write_to(self._log.fd)
        agent.record(on=True, waiting=self._reader.waiting)
        ready = time.perf_counter()
        try:
            self.merged = self.target.merge(plan, self.mode)
            self.on = None
            self.plan = plan = self._switch_on(plan)
            self._off = {p.site.address: poke_of(p, on=False) for p in plan.sites}
            self.switched_on = time.perf_counter()
            self.timings_ms = {
                "plan": (planned - started) * 1e3,
                "open": (ready - planned) * 1e3,
                "batch": (self.switched_on - ready) * 1e3,
            }
        except BaseException as exc:
            if not isinstance(exc, TextpokeError):  # an interrupt: what the batch did is not known
                self._take_back(plan.sites)
            self._abandon()
            raise

    def _switch_on(self, plan: Plan) -> Plan:
        """Switch on; what is on then. Int3s that stay come last: the rest can do without."""
        usual = [p for p in plan.sites if not p.handler]
        staying = [p for p in plan.sites if p.handler]
        request = Request.of(poke_of(planned, on=True) for planned in usual)
        agent = self.target.agent
        outcome = run_request(agent, request, mode=self.mode, leave_busy=True)
        plan, busy = settle(agent, replace(plan, sites=usual), outcome, self.mode)
        self.refused += busy
        if staying:
            try:
                more = run_request(agent, Request.of(poke_of(p, on=True) for p in staying))
            except (UnsupportedTarget, BatchRefused) as exc:
                self.refused += [(p.site, str(exc)) for p in staying]
            except TextpokeError:
                self._take_back(usual)
                raise
            else:
                outcome = _joined(outcome, more, len(usual))
                sites = sorted(plan.sites + staying, key=lambda p: p.site.address)
                plan = replace(plan, sites=sites)
        self.on = self.on or outcome
        return plan

    def drain(self) -> Drained:
        """Take what the rings hold to the capture; call it every few milliseconds.

        In overwrite mode nothing is taken before the end: the rings keep the last events.

        Raises:
            CaptureWrite: The capture cannot be written; tracing goes on until `stop`.
        """
        if self._reader is not None:
            self._look_for_modules()
        if self._reader is None or self.overwrite:
            return Drained()
        if self._log is not None:
            self._log.note()
        return self._drain(final=False)

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
        self._seen = {module.key for module in modules}
        # A process that is being taken apart may show a part of its modules, under other names.
        try:
            if fresh:
                self._drop_unsafe_traps()
            self._trace_in(self.find_in, fresh)
        except NoSuchTarget as exc:
            raise TargetExited(self.target.pid, "the recording") from exc

    def _drop_unsafe_traps(self) -> None:
        """What was opened since may block SIGTRAP: int3s that stay must not meet that."""
        staying = [poke.address for poke in self._off.values() if poke.handler]
        if not staying:
            return
        try:
            why = modes.why_no_trap_stays(self.target.agent)
            unsafe = {address: why(address) for address in staying if why(address)}
        except UnsupportedTarget as exc:
            unsafe = dict.fromkeys(staying, exc.detail)
        if not unsafe:
            return
        run_request(self.target.agent, Request.of(self._off[address] for address in unsafe))
        self.refused += [(s, unsafe[s.address]) for s in self.chosen if s.address in unsafe]
        for address in unsafe:
            del self._off[address]

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

    def _switch_on_more(self, found: list[Site]) -> None:
        plan = self.target.prepare(found, traps=self.traps)
        self.target.merge(plan, self.mode)
        self.refused += plan.refused
        plan = self._switch_on(plan)
        self.chosen += found
        self._off |= {p.site.address: poke_of(p, on=False) for p in plan.sites}
        if self._log is not None:
            self._log.more_sites(_names(plan))

    def run(self, seconds: float | None = None, stop: threading.Event | None = None) -> None:
        """Drain until the time is over, `stop` is set or the target has ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self.drain()
            if stop is not None and stop.is_set():
                return
            self.target.agent.require_alive("the recording")
            time.sleep(_DRAIN_S)

    def stop(self) -> None:
        """Switch off in one batch, take the rest, finish the capture."""
        if self._reader is None:
            return
        failure: TextpokeError | None = None
        try:
            self._switch_off()
            self.target.agent.record(on=False)
        except (TargetExited, NoSuchTarget):
            self.reason = "target exited"
        except TextpokeError as exc:
            failure = exc
        try:
            self._drain_rest()
            if self._log is not None:
                self._log.finish(self._end())
        finally:
            self._log = None
            self._lost_no_ring = self._reader.lost_no_ring
            self._reader = None
        if failure is not None:
            raise failure

    def _switch_off(self) -> None:
        """Put the sites back; those whose module is gone, or that others hold now, are left."""
        self.off, left = switch_off(self.target.agent, self._off.values(), self.mode)
        self.left_alone += left

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
        return drained

    def _drain_rest(self) -> None:
        # A thread may have reserved its last event and not yet written it.
        for _ in range(_FINAL_DRAINS):
            if not self._drain(final=False).incomplete:
                break
            time.sleep(_DRAIN_S)
        self._drain(final=True)

    def _meta(self, plan: Plan) -> dict[str, object]:
        return {
            "pid": self.target.pid,
            "exe": self.target.exe,
            "command": list(self.command) or self.target.command_line,
            "tracer": "function",
            "mode": "overwrite" if self.overwrite else "drop",
            "clock": clock_point(),
            "sites": _names(plan),
            "modules": [[m.name, m.path, m.bias] for m in self.target.modules],
            "cpus": os.cpu_count() or 0,
            "textpoke": __version__,
        }

    def _end(self) -> dict[str, object]:
        return {
            "clock": clock_point(),
            "events": self.totals.events,
            "lost": self.totals.lost,
            "lost_no_ring": self.lost_no_ring,
            "reason": self.reason,
            "on": self.on.as_dict() if self.on else None,
            "off": self.off.as_dict() if self.off else None,
            "hold_ns": self.target.agent.timings.hold_ns,
        }

    def _take_back(self, sites: Sequence[SitePlan]) -> None:
        agent = self.target.agent
        with suppress(TextpokeError):
            pokes = [poke_of(planned, on=True) for planned in sites]
            there = [poke for poke in pokes if held(agent, poke) == poke.new]
            self._off = {poke.address: poke.reversed() for poke in there}
            self._switch_off()

    def _abandon(self) -> None:
        """Nothing was switched on: leave no capture that would say otherwise."""
        with suppress(TextpokeError):
            self.target.agent.record(on=False)
        if self._log is not None:
            self._log.discard()
        self._reader = self._log = None


def _joined(first: Outcome, second: Outcome, count: int) -> Outcome:
    """Of two batches that were one request, the second from position `count` on."""
    choices = tuple(
        replace(choice, indexes=[count + i for i in choice.indexes]) for choice in second.choices
    )
    return first.plus(replace(second, choices=choices))


def _names(plan: Plan) -> list[list[object]]:
    return [[p.return_address, p.site.module, p.site.function] for p in plan.sites]
