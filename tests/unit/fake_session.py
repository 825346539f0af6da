# SPDX-License-Identifier: Apache-2.0
"""A recording that is made up: everything that `control_verbs.Session` asks for, in memory."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from targets import site

from textpoke.control import ControlServer
from textpoke.filters import FilterSet, SiteNames, diff
from textpoke.tracer_names import TRACERS
from textpoke.triggers import TriggerSet

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

FUNCTIONS = [
    ("setCommand", "prog"),
    ("getCommand", "prog"),
    ("handle_request", "prog"),
    ("malloc", "libc.so.6"),
    ("free", "libc.so.6"),
]
SITES = [
    replace(site(name, module), address=place, entry=place)
    for place, (name, module) in enumerate(FUNCTIONS, start=4096)
]
NAMES = SiteNames(SITES, main="prog")


@dataclass
class Instance:
    """One recording."""

    tracer: str = "function"
    filters: FilterSet = field(default_factory=FilterSet)
    triggers: TriggerSet = field(default_factory=TriggerSet)
    on: bool = True
    fd: int = -1


class FakeSession:
    """As a tool that traces a program of five functions."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.known = {"": Instance()}

    @property
    def pid(self) -> int:
        return self._pid

    def status(self) -> dict[str, object]:
        return {"exe": "/bin/prog", "textpoke": os.getpid()}

    def tracers(self) -> list[str]:
        return [name for name in TRACERS if name != "branch"]

    def instances(self) -> list[dict[str, object]]:
        return [
            {
                "name": name,
                "tracer": one.tracer,
                "on": one.on,
                "events": 12,
                "lost": 0,
                "output": f"{name or 'prog'}.tptrace",
            }
            for name, one in self.known.items()
        ]

    def switch(self, instance: str, tracer: str) -> dict[str, object]:
        self.known[instance].tracer = tracer
        return {
            "functions": len(SITES),
            "took_ns": 2_500_000,
            "sites": len(SITES) if tracer != "function" else 0,
            "total_ns": 800_000,
        }

    def tracing(self, instance: str, *, on: bool) -> None:
        self.known[instance].on = on

    def counts(self, instance: str) -> list[dict[str, object]]:
        return [{"function": self.known[instance].tracer, "calls": 3}]

    def filters(self, instance: str) -> FilterSet:
        return self.known[instance].filters

    def set_filters(self, instance: str, filters: FilterSet) -> dict[str, object]:
        filters = filters.fixed(NAMES)
        old = self.known[instance].filters.choose(NAMES)
        new = filters.choose(NAMES)
        self.known[instance].filters = filters
        change = diff(old, new)
        return {"chosen": len(new), "on": len(change.on), "off": len(change.off)}

    def listed(self, instance: str, *, notrace: bool) -> list[str]:
        return self.known[instance].filters.read_back(NAMES, notrace=notrace)

    def available(self) -> list[str]:
        return NAMES.available()

    def triggers(self, instance: str) -> TriggerSet:
        return self.known[instance].triggers

    def set_triggers(self, instance: str, triggers: TriggerSet) -> list[str]:
        triggers.place(NAMES)
        self.known[instance].triggers = triggers
        return triggers.read_back(NAMES)

    def create(self, name: str, tracer: str, filters: FilterSet, fd: int) -> dict[str, object]:
        try:
            chosen = filters.choose(NAMES)
        except BaseException:
            os.close(fd)
            raise
        self.known[name] = Instance(tracer, filters, fd=fd)
        os.write(fd, b"begun")
        return {"chosen": len(chosen)}

    def remove(self, name: str) -> dict[str, object]:
        one = self.known.pop(name)
        os.write(one.fd, b"ended")
        os.close(one.fd)
        return {"events": 12}


class Serving:
    """A server for a fake session that another thread polls, as a tool's drain loop does."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.server = ControlServer(session)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.server.poll()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.server.close()
        for one in self.session.known.values():
            if one.fd >= 0:
                os.close(one.fd)
