# SPDX-License-Identifier: Apache-2.0
"""One recording with all that decides what goes into it: filters, triggers, threads, a budget.

A `Trace` writes everything that its functions record. Where triggers, thread filters, a flight
recorder or a budget are at work, its events take the way through a `Flow`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from textpoke import clock, target
from textpoke._errors import (
    BadFilter,
    BadTrigger,
    CaptureError,
    CaptureWrite,
    SiteError,
    TargetError,
)
from textpoke._native import lib
from textpoke.filters import FilterSet, Threads
from textpoke.governor import Governor
from textpoke.overhead import Meter, Overhead, cpu_ns, function_event_ns
from textpoke.tracer_names import BRANCH, FUNCTION, GRAPH, LIBC, NOP, PROFILE
from textpoke.tracer_options import why_not
from textpoke.triggers import Command, TriggerSet, span_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textpoke.filters import SiteNames
    from textpoke.flow import Flow, Flowed
    from textpoke.governor import Budget, Decision
    from textpoke.model import Module, Site
    from textpoke.one_trace import Trace
    from textpoke.ring import Drained
    from textpoke.ring_flight import RingFlight
    from textpoke.trigger_engine import Hit, TriggerEngine
    from textpoke.triggers import Trigger
    from textpoke.watch import Watch

    Names = Callable[[FilterSet, TriggerSet], SiteNames]

_HOLD_NS = 1_000_000_000
_MOST_HELD_BYTES = 256 << 20
_GOVERN_S = 0.25
_THREADS_S = 0.1
_READ_S = 0.1
_MOST_NAMES = 8  # of threads, in a remark
_MOST_REMARKS = 5  # about arguments, of one change
_COST_NS = {"function": 14.0, "function_graph": 40.0, "profile": 40.0}
_COST_OF_OTHERS_NS = 150.0


class Recording:
    """A trace, what decides about it, and what it has noted.

    Args:
        trace: Not started yet.
        names: Gives the names of all sites that there are now, for some expressions.
        filters: What is traced; the trace's own choice stands until they are changed.
        triggers: What happens at which function.
        only_kept: Write nothing but what a trigger's `keep` asks for: the flight recorder.
        budget: What tracing may cost the target; None for any amount.

    Attributes:
        trace: The same.
        filters: What was asked for last.
        triggers: Likewise.
        hits: Triggers that did something, for whoever shows them; take and clear.
        remarks: What the governor and the flight recorder have done, which arguments cannot be
            captured and which threads there are not, one line each.
        remarks_shown: How many of them somebody has shown.
        snapshots: Paths of the snapshots that were written.
    """

    def __init__(
        self,
        trace: Trace,
        names: Names,
        filters: FilterSet | None = None,
        triggers: TriggerSet | None = None,
        *,
        only_kept: bool = False,
        budget: Budget | None = None,
    ) -> None:
        self.trace = trace
        self.filters = filters or FilterSet(sample=trace.sample)
        self.triggers = triggers or TriggerSet()
        self.hits: list[Hit] = []
        self.remarks: list[str] = []
        self.remarks_shown = 0
        self.snapshots: list[str] = []
        self.kept = 0
        self._names = names
        self._only_kept = only_kept
        self._budget = budget
        self._governor: Governor | None = None
        self._governed: dict[int, Site] = {}  # by return address: switched off for the budget
        self._wanted: list[Site] = []
        self._flow: Flow | RingFlight | None = None
        self._flight: RingFlight | None = None  # the same, where nothing is drained
        self._watch: Watch | None = None  # and what its triggers act on
        self._engine: TriggerEngine | None = None
        self._partial: list[str] = []  # as the capture was told
        self._threads_before: set[int] | None = None
        self._next_threads = self._next_step = 0.0
        self._last_step = 0.0
        self._last_cpu_ns = 0
        self._lost = 0
        self._written = 0
        self._has_grown = False  # by functions of modules that have come
        self._own_choice = trace.find_in  # in modules that come, until the filters are set
        trace.find_in = self._find_in
        self._meter = Meter(trace.target.pid, known=not trace.durations_only)
        self._next_reading = 0.0

    @property
    def on(self) -> bool:
        """Whether events are recorded (tracing_on)."""
        return self._engine.on if self._engine is not None else True

    def start(self) -> None:
        """Switch on.

        Raises:
            UnknownFunction, BadTrigger: For a trigger that means nothing, or that can never act.
            BadFilter: For a filter or a budget that means nothing with the tracer.
            CaptureExists, PokeError and others: As `Trace.start`.
        """
        cure = f"record with -t {GRAPH}"
        self._require_that_they_act(self.triggers.triggers, cure)
        self._require_meaning(self.filters, FilterSet(), cure, self._budget)
        self.trace.sample = self.filters.sample
        places = self._trigger_sites(strict=True)
        if places or not self.filters.threads.everyone or self._only_kept or self._budget:
            self._make_flow()
        self._wanted = list(self.trace.chosen)
        if not self._only_kept:
            self._arm()
        function_event_ns()  # measured before anything is switched on
        self.trace.start()
        self._take_remarks()
        self._note_partial()
        self._meter.begin()
        self._place_triggers()
        self._last_step = self._next_step = time.monotonic()
        self._last_cpu_ns = cpu_ns(self.trace.target.pid)

    def drain(self) -> Drained:
        """Take what has come; act on triggers; keep to the budget. Raises as `Trace.drain`."""
        mark = int(lib.tp_rdtsc())
        drained = self.trace.drain()
        self._take_remarks()
        if self._has_grown:
            self._has_grown = False
            self._place_triggers()
        if self._flow is not None:
            self._look_at_threads()
            self._take(self._feed(mark, complete=not drained.incomplete))
            self._govern()
        if time.monotonic() >= self._next_reading:
            self._next_reading = time.monotonic() + _READ_S
            self._meter.look(self.trace.tracer, self.trace.written())
        return drained

    def stop(self) -> None:
        """Switch off, write the rest, finish the capture."""
        if self._watch is not None:
            self._watch.stop()
        self._read_meter()
        self.trace.stop(before_end=self._last)

    def _last(self) -> Mapping[str, object]:
        """The end of the events: fields for END."""
        self._meter.look(self.trace.tracer, self.trace.written())
        overhead = {"overhead": self.overhead.as_dict()}
        if self._flow is None:
            return overhead
        self._next_threads = 0.0
        self._look_at_threads()
        self._take(self._feed(None))
        self._flow.close()
        return {"remarks": self.remarks, "snapshots": self.snapshots, **overhead}

    def _take_remarks(self) -> None:
        notes, self.trace.remarks = self.trace.remarks, []
        self.remarks += [f"not captured: {note}" for note in notes[:_MOST_REMARKS]]
        if len(notes) > _MOST_REMARKS:
            self.remarks.append(f"not captured: and {len(notes) - _MOST_REMARKS:,} more")

    @property
    def overhead(self) -> Overhead:
        """What it has cost the target so far."""
        return self._meter.result()

    def _read_meter(self) -> None:
        calls = sum(row.hits for row in self.trace.profile().values())
        self._meter.look(self.trace.tracer, self.trace.written(), calls)

    def switch(self, tracer: str) -> list[str]:
        """Go over to another tracer; what of triggers, filters and budget rests with it, and why.

        Raises as `Trace.tracer`.
        """
        self._read_meter()
        sample = self.trace.sample
        self._sample(self.filters, tracer)
        try:
            self.trace.tracer = tracer
        except BaseException:
            self.trace.sample = sample
            raise
        self._note_partial()
        idle = [(t.text, self._why_idle(t, tracer)) for t in self.triggers.triggers if not t.remove]
        if self._governed and why_not("budget", tracer):
            self._governed.clear()
            self._governor = None
            self._choose(self._wanted)
        if tracer != NOP:
            idle += self._without_meaning(self.filters, self._budget, tracer)
        rests = [f"{text} rests: {why}" for text, why in idle if why]
        self.remarks += rests
        return rests

    def _note_partial(self) -> None:
        """Let the capture tell what leaves calls of traced functions out from now on."""
        tracer, filters = self.trace.tracer, self.filters
        if why_not("sample", tracer):
            filters = replace(filters, sample=1)
        if why_not("thread", tracer):
            filters = replace(filters, threads=Threads())
        partial = filters.partial()
        if partial != self._partial:
            self._partial = partial
            self.trace.note({"partial": partial})

    def _sample(self, filters: FilterSet, tracer: str) -> None:
        self.trace.sample = 1 if why_not("sample", tracer) else filters.sample

    @staticmethod
    def _without_meaning(
        filters: FilterSet, budget: Budget | None, tracer: str
    ) -> list[tuple[str, str]]:
        """What of this means nothing with a tracer, as `record` takes it, and why."""
        asked = (
            ("sample", f"--sample {filters.sample}", filters.sample > 1),
            ("thread", "--thread", not filters.threads.everyone),
            ("budget", "--budget", budget is not None),
        )
        whys = [(text, why_not(option, tracer)) for option, text, is_asked in asked if is_asked]
        return [(text, why) for text, why in whys if why]

    def _other_tracer(self) -> str:
        return f"textpoke switch -p {self.trace.target.pid} {GRAPH}"

    def _require_meaning(
        self, filters: FilterSet, before: FilterSet, cure: str, budget: Budget | None = None
    ) -> None:
        """Refuse what is new in filters and means nothing with the tracer."""
        rested = self._without_meaning(before, None, self.trace.tracer)
        for text, why in self._without_meaning(filters, budget, self.trace.tracer):
            if (text, why) not in rested:
                raise BadFilter(text, 1, f"{why}: {cure}")

    def tracing(self, *, on: bool) -> None:
        """Record or do not; everything stays patched."""
        if self._flow is None or self._engine is None:
            self._make_flow()
        if self._engine is not None:
            self._engine.switch(int(lib.tp_rdtsc()), on=on)

    def set_filters(self, filters: FilterSet) -> dict[str, int]:
        """Change over to other filters, in one batch; counts of what changed.

        Raises:
            UnknownFunction, BadFilter: Nothing was changed.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        if self.trace.tracer != NOP:  # with it everything rests
            self._require_meaning(filters, self.filters, self._other_tracer())
        names = self._names(filters, self.triggers)
        filters = filters.fixed(names)
        chosen = [names.sites[i] for i in filters.select(names).indices]
        before = {site.address for site in self.trace.chosen}
        after = {site.address for site in chosen}
        if not filters.threads.everyone and self._flow is None:
            self._make_flow()
        self._sample(filters, self.trace.tracer)
        self._wanted = chosen
        self._governed.clear()
        self._governor = None
        if self._flow is not None:
            self._flow.counter = None  # it must count the new ones, too
        self._choose(chosen)
        self.filters = filters
        self._note_partial()
        self._own_choice = None
        self._threads_before = None
        self._next_threads = 0.0
        return {
            "chosen": len(after),
            "on": len(after - before),
            "off": len(before - after),
        }

    def set_triggers(self, triggers: TriggerSet) -> list[str]:
        """Have these triggers; what ftrace would show of them.

        Raises:
            UnknownFunction, BadTrigger: As `TriggerSet.place`; or one that can never act.
        """
        names = self._names(self.filters, triggers)
        triggers.place(names)
        before = self.triggers.triggers
        known = len(before) if triggers.triggers[: len(before)] == before else 0
        self._require_that_they_act(triggers.triggers[known:], self._other_tracer())
        self.triggers = triggers
        if self._flow is None:
            self._make_flow()
        self._choose(self._wanted)
        return triggers.read_back(names)

    def _require_that_they_act(self, triggers: Sequence[Trigger], cure: str) -> None:
        for trigger in triggers:
            why = self._why_idle(trigger, self.trace.tracer)
            if why and not trigger.remove:
                column = trigger.text.rfind(">") + 1 if trigger.over_ns else 1
                raise BadTrigger(trigger.text, column, f"{why}: {cure}")

    def _why_idle(self, trigger: Trigger, tracer: str) -> str:
        """Why a trigger never acts under a tracer; "" if it does. With nop everything rests."""
        if self._only_kept:  # the flight recorder's triggers have probes of their own
            return ""
        if tracer in (PROFILE, BRANCH):
            return f"the {tracer} tracer counts and writes no events, which triggers act on"
        if tracer == FUNCTION and trigger.over_ns:
            over = span_text(trigger.over_ns)
            return f"the function tracer sees no returns, so no call takes longer than {over}"
        return ""

    def _choose(self, chosen: Sequence[Site]) -> None:
        """Trace these, and what triggers sit at."""
        off = {site.address for site in self._governed.values()}
        wanted = {site.address: site for site in chosen if site.address not in off}
        more = {} if self._only_kept else {s.address: s for s in self._trigger_sites()}
        self.trace.triggered = frozenset(more)
        more = {address: site for address, site in more.items() if address not in wanted}
        self.trace.choose(list(wanted.values()) + list(more.values()))
        self._place_triggers()

    def _find_in(self, modules: Sequence[Module]) -> list[Site]:
        """What is chosen, or has a trigger, in modules that have come; the others are as before."""
        come = {module.name for module in modules}
        try:
            names = self._names(self.filters, self.triggers)
            own = self._own_choice
            wanted = own(modules) if own else self._chosen_in(names, come)
            placed = self.triggers.place(names, strict=False)
        except SiteError:
            return []
        triggered = [names.sites[p.index] for p in placed]
        found = {s.address: s for s in (*wanted, *triggered) if s.module in come}
        self.trace.triggered |= {s.address for s in triggered if s.address in found}
        there = {site.address for site in self.trace.chosen}
        self._wanted = [s for s in self._wanted if s.address not in found] + wanted
        self._has_grown = bool(self.triggers.triggers)
        return [site for address, site in found.items() if address not in there]

    def _chosen_in(self, names: SiteNames, modules: set[str]) -> list[Site]:
        if self.trace.tracer in LIBC and not self.filters.trace:
            return []
        indices = self.filters.select(names, strict=False).indices
        return [names.sites[i] for i in indices if names.sites[i].module in modules]

    def _trigger_sites(self, *, strict: bool = False) -> list[Site]:
        if not self.triggers.triggers:
            return []
        names = self._names(self.filters, self.triggers)
        return [names.sites[p.index] for p in self.triggers.place(names, strict=strict)]

    def _arm(self) -> None:
        """Before the start: functions with triggers are traced, too, and not shown."""
        have = {site.address for site in self.trace.chosen}
        triggered = self._trigger_sites()
        self.trace.triggered = frozenset(s.address for s in triggered)
        self.trace.chosen += [s for s in triggered if s.address not in have]

    def _place_triggers(self) -> None:
        engine = self._engine
        if engine is None or not (self.triggers.triggers or self._watch):
            return
        names = self._names(self.filters, self.triggers)
        placed = self.triggers.place(names, strict=False)
        if self._watch is not None:
            self._watch.place([(names.sites[p.index], p.trigger) for p in placed])
            self.remarks += [f"no trigger at {site}: {why}" for site, why in self._watch.refused]
        tapped = self._watch or self.trace
        returns, engine.durations = tapped.return_addresses, tapped.durations
        pairs = [(names.sites[p.index].address, p.trigger) for p in placed]
        engine.arm((returns[a], trigger) for a, trigger in pairs if a in returns)
        shown = {site.address for site in self._wanted}
        engine.hidden = frozenset(returns[a] for a, _ in pairs if a in returns and a not in shown)
        self._hold()

    def _hold(self) -> None:
        from textpoke.flow import Flow

        if not isinstance(self._flow, Flow):
            return
        asking = (Command.SNAPSHOT, Command.DUMP)
        self._flow.holds = any(t.command in asking for t in self.triggers.triggers)
        self._flow.recorder.hold_ticks = round(_HOLD_NS / clock.ns_per_tick())

    def _make_flow(self) -> None:
        if self._only_kept:
            self._make_flight()
            return
        from textpoke.flight import FlightRecorder  # here: numpy takes 100 ms to import
        from textpoke.flow import Flow
        from textpoke.trigger_engine import TriggerEngine

        trace = self.trace
        engine = TriggerEngine(1 / clock.ns_per_tick(), durations=trace.durations)
        recorder = FlightRecorder(0, _MOST_HELD_BYTES, int(lib.tp_rdtsc()))
        flow = Flow(engine, recorder, -1, older=trace.overwrite)
        self._engine, self._flow = engine, flow
        self._written = trace.totals.events
        trace.divert(flow.tap.fd, flow.write_to)
        self._hold()

    def _make_flight(self) -> None:
        from textpoke.ring_flight import RingFlight
        from textpoke.trigger_engine import TriggerEngine
        from textpoke.watch import Watch

        trace = self.trace
        trace.overwrite = trace.on_demand = True
        self._watch = Watch(trace)
        self._engine = TriggerEngine(1 / clock.ns_per_tick())
        self._flow = self._flight = RingFlight(self._engine, trace, self._watch)

    def _feed(self, mark: int | None, *, complete: bool = True) -> Flowed:
        """What was drained since; `mark`: ticks before that drain began, None for the end."""
        flow = self._flow
        assert flow is not None  # noqa: S101 - who calls has looked
        try:
            return flow.finish() if mark is None else flow.feed(mark, complete=complete)
        except OSError as exc:
            raise CaptureWrite(str(self.trace.output or ""), exc.errno or 0) from exc

    def _take(self, flowed: Flowed) -> None:
        self.hits += flowed.hits
        self.kept += len(flowed.kept)
        self.remarks += flowed.remarks
        self._written += flowed.events
        self.trace.totals.events = self._written  # what was thrown away on the way does not count
        notes = flowed.notes()
        if flowed.snapshots:
            from textpoke.flight import snapshot_path, write_snapshot
        for hit, kept in flowed.snapshots:
            path = snapshot_path(str(self.trace.output or "textpoke.tptrace"), self._number())
            meta, threads, end = self.trace.snapshot_fields()
            meta["partial"] = self._partial
            try:
                write_snapshot(path, kept, meta, threads, end, force=self.trace.force)
            except CaptureError as exc:  # the recording itself goes on
                self.remarks.append(f"{hit.trigger.command} at {hit.tsc}: {exc}")
                continue
            self.snapshots.append(path)
            self.remarks.append(
                f"{hit.trigger.command} at {hit.tsc}: {kept.events:,} events, {path}"
            )
        if notes:
            self.trace.note({"notes": notes})

    def _number(self) -> int:
        return len(self.snapshots) + 1

    def _look_at_threads(self) -> None:
        """Which threads are recorded now, by the filters."""
        flow, threads = self._flow, self.filters.threads
        if flow is None or time.monotonic() < self._next_threads:
            return
        self._next_threads = time.monotonic() + _THREADS_S
        if threads.everyone:
            flow.tids = None
            return
        try:
            agent, pid = self.trace.target.agent.tid, self.trace.target.pid
            there = [(t.tid, t.name) for t in target.read_threads(pid) if t.tid != agent]
        except TargetError:
            return
        chosen = threads.choose(there, self._threads_before)
        flow.tids = chosen if self._threads_before is None else (flow.tids or set()) | chosen
        if self._threads_before is None:
            self._threads_before = {tid for tid, _ in there}
            self._say_unknown(threads.unknown(there), [name for _, name in there])

    def _say_unknown(self, rules: Sequence[str], names: Sequence[str]) -> None:
        """Of threads that are to be recorded, and that nobody is."""
        known = list(dict.fromkeys(names))
        some = ", ".join(known[:_MOST_NAMES]) + (", ..." if len(known) > _MOST_NAMES else "")
        self.remarks += [
            f"no thread is {rule!r} now; the {len(names)} there are called {some}" for rule in rules
        ]

    def _govern(self) -> None:
        """Once an interval: switch off what the budget does not allow, on what it allows again."""
        now = time.monotonic()
        flow = self._flow
        if self._budget is None or flow is None or now < self._next_step:
            return
        if why_not("budget", self.trace.tracer):
            return
        self._next_step = now + _GOVERN_S
        addresses = self.trace.return_addresses
        names = {address: str(site) for site, address in self.trace.sites_by_return()}
        if self._governor is None:
            self._governor = Governor(self._budget, name=lambda a: names.get(a, hex(a)))
        if flow.counter is None:
            from textpoke.flow import CallCounter

            flow.counter = CallCounter(addresses.values())
            return
        total_ns = cpu_ns(self.trace.target.pid)
        seconds, used = now - self._last_step, total_ns - self._last_cpu_ns
        self._last_step, self._last_cpu_ns = now, total_ns
        lost, self._lost = self.trace.lost - self._lost, self.trace.lost
        if self._flight is not None:
            lost = self._flight.sample()
        cost = _COST_NS.get(self.trace.tracer, _COST_OF_OTHERS_NS)
        decision = self._governor.step(now, max(seconds, 1e-6), used, flow.counter.take(lost), cost)
        if decision:
            self._obey(decision)

    def _obey(self, decision: Decision) -> None:
        by_return = {address: site for site, address in self.trace.sites_by_return()}
        for step in decision.off:
            if step.site in by_return:
                self._governed[step.site] = by_return[step.site]
        for step in decision.on:
            self._governed.pop(step.site, None)
        self._choose(self._wanted)
        texts = [step.note for step in (*decision.off, *decision.on)]
        self.remarks += texts
        self.trace.note({"notes": [{"governor": text} for text in texts]})
