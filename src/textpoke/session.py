# SPDX-License-Identifier: Apache-2.0
"""All recordings of one tool on one target, as the control socket changes them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from textpoke import clock, source_filter, target
from textpoke._errors import ControlFailed, UnknownFunction
from textpoke.capture import CaptureWriter
from textpoke.filters import FilterSet, SiteNames
from textpoke.recording import Recording
from textpoke.source_lines import files_of
from textpoke.tracer_names import LIBC, TRACERS
from textpoke.triggers import TriggerSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textpoke.model import Site
    from textpoke.tracer import Target


class RecordSession:
    """A `control_verbs.Session` over the recordings of a target.

    Args:
        of: The target.
        everything: What can be traced, as for `Target.sites`.
        traps: Likewise.

    Attributes:
        recordings: By name; "" is the one that the tool was started for.
    """

    def __init__(self, of: Target, *, everything: bool = False, traps: bool = False) -> None:
        self.target = of
        self._everything, self._traps = everything, traps
        self.recordings: dict[str, Recording] = {}
        self._sources = source_filter.ModuleSources(
            lambda: of.modules, lambda module: target.open_module(of.pid, module), files_of
        )
        self._names: tuple[tuple[object, ...], SiteNames] | None = None

    @property
    def pid(self) -> int:
        """The target."""
        return self.target.pid

    def drain(self) -> None:
        """Drain the recordings that were created here; the first one has a driver of its own."""
        for name, recording in list(self.recordings.items()):
            if name:
                recording.drain()

    def close(self) -> None:
        """End the recordings that were created here."""
        for name in [name for name in self.recordings if name]:
            self.remove(name)

    def names(self, filters: FilterSet, triggers: TriggerSet) -> SiteNames:
        """The names of all sites that these expressions may mean: `Recording`'s `names`.

        Modules that are neither the program's own nor compiled for tracing are looked into when an
        expression names them, or when one means nothing otherwise.
        """
        named = self._named(filters, triggers)
        names = self._of_modules(named)
        try:
            filters.select(names)
            triggers.place(names)
        except UnknownFunction:
            names = self._of_modules({m.name for m in self.target.modules})
        return names

    def _named(self, filters: FilterSet, triggers: TriggerSet) -> set[str]:
        return {
            module.name
            for module in self.target.modules
            if filters.names_module(module.name, is_main=module.is_main)
            or triggers.names_module(module.name, is_main=module.is_main)
        }

    def _of_modules(self, named: set[str]) -> SiteNames:
        modules = self.target.modules
        key = (frozenset(named), frozenset(module.key for module in modules))
        if self._names is not None and self._names[0] == key:
            return self._names[1]
        everything, traps = self._everything, self._traps
        usual = self.target.all_sites(everything=everything, traps=traps)
        found = {site.address: site for site in usual if site.patchable}
        for site in self.target.sites_of(named, everything=everything, traps=traps):
            if site.patchable:
                found.setdefault(site.address, site)
        names = SiteNames(
            [found[address] for address in sorted(found)],
            main=next((m.name for m in modules if m.is_main), ""),
            usual={site.module for site in usual},
            files=self._sources,
        )
        self._names = key, names
        return names

    def _recording(self, instance: str) -> Recording:
        if instance not in self.recordings:
            raise ControlFailed("instance", f"there is no instance {instance!r}")
        return self.recordings[instance]

    def status(self) -> Mapping[str, object]:
        """What is known about the whole."""
        agent = self.target.agent
        return {
            "exe": self.target.exe,
            "tool": os.getpid(),
            "hold_ns": self.target.hold_ns,
            "sites": self.target.records.count,
            "keep": self.target.keep,
            "agent": agent.tid,
        }

    def tracers(self) -> Sequence[str]:
        """Names of the tracers."""
        return list(TRACERS)

    def instances(self) -> Sequence[Mapping[str, object]]:
        """For each instance what it does."""
        return [_row(name, recording) for name, recording in self.recordings.items()]

    def switch(self, instance: str, tracer: str) -> Mapping[str, object]:
        """Go over to another tracer, in one batch; none where no code has to change."""
        recording = self._recording(instance)
        start = time.perf_counter_ns()
        rests = recording.switch(tracer)
        took_ns = time.perf_counter_ns() - start
        last = recording.trace.last
        return {
            "functions": recording.trace.function_count,
            "took_ns": took_ns,
            "sites": last.sites if last else 0,
            "total_ns": last.total_ns if last else 0,
            "refused": len(recording.trace.refused),
            "rests": rests,
        }

    def tracing(self, instance: str, *, on: bool) -> None:
        """Record or do not."""
        self._recording(instance).tracing(on=on)

    def counts(self, instance: str) -> Sequence[Mapping[str, object]]:
        """What the profile tracer has counted so far; nothing is stopped."""
        trace = self._recording(instance).trace
        sites = {address: site for site, address in trace.sites_by_return()}
        ns = clock.ns_per_tick()
        return [
            {
                "module": sites[row.address].module,
                "function": sites[row.address].function,
                **row.as_dict(ns),
            }
            for row in trace.profile().values()
            if row.address in sites
        ]

    def filters(self, instance: str) -> FilterSet:
        """What decides now."""
        return self._recording(instance).filters

    def set_filters(self, instance: str, filters: FilterSet) -> Mapping[str, object]:
        """Change over to this, in one batch."""
        return self._recording(instance).set_filters(filters)

    def listed(self, instance: str, *, notrace: bool) -> Sequence[str]:
        """The lines of ftrace's files."""
        recording = self._recording(instance)
        names = self.names(recording.filters, recording.triggers)
        return recording.filters.read_back(names, notrace=notrace)

    def available(self) -> Sequence[str]:
        """What can be traced."""
        return self.names(FilterSet(), TriggerSet()).available()

    def triggers(self, instance: str) -> TriggerSet:
        """The triggers that there are."""
        return self._recording(instance).triggers

    def set_triggers(self, instance: str, triggers: TriggerSet) -> Sequence[str]:
        """Have these."""
        return self._recording(instance).set_triggers(triggers)

    def create(self, name: str, tracer: str, filters: FilterSet, fd: int) -> Mapping[str, object]:
        """Begin a recording of its own, into a file that is open behind its header."""
        writer = CaptureWriter.of(fd)
        try:
            chosen = self._chosen(filters, tracer)
            trace = self.target.trace_of(chosen, writer, tracer=tracer, name=name)
            recording = Recording(trace, self.names, filters)
            recording.start()
        except BaseException:
            writer.close()
            raise
        self.recordings[name] = recording
        return _row(name, recording) | {"chosen": trace.function_count}

    def _chosen(self, filters: FilterSet, tracer: str) -> list[Site]:
        if tracer in LIBC and not filters.trace:
            return []
        names = self.names(filters, TriggerSet())
        return [names.sites[i] for i in filters.fixed(names).select(names).indices]

    def remove(self, name: str) -> Mapping[str, object]:
        """End a recording that `create` has begun."""
        recording = self.recordings.pop(name)
        recording.stop()
        return _row(name, recording)


def _row(name: str, recording: Recording) -> dict[str, object]:
    trace = recording.trace
    output = trace.output.path if isinstance(trace.output, CaptureWriter) else trace.output
    return {
        "name": name,
        "tracer": trace.tracer,
        "on": recording.on,
        "events": trace.events,
        "calls": trace.counted.calls,
        "lost": trace.lost,
        "overruns": trace.overruns,
        "functions": trace.function_count,
        "output": os.fspath(output) if output is not None else "",
        "threads": list(asdict(recording.filters.threads)["trace"]),
    }
